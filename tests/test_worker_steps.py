"""Steps of sessions on the one thread of the device: together, taken back, beside the loop."""

import hashlib
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
import trio
import trio.testing
from sim.paged_stage import PRIME, WIDTH, PagedStage, alone

from potluck.errors import Refused, RemoteError
from potluck.node.compute.batch import Lane
from potluck.node.compute.engine import BatchEngine
from potluck.node.compute.pages import PAGE_TOKENS, Lease, Pool, page_stride
from potluck.node.compute.worker import Worker, open_worker
from potluck.swarm.blocks import BlockRange
from potluck.swarm.rates import PassTimes
from potluck.swarm.spare import PASSES
from potluck.swarm.wire import Step

HELD_S = 30  # that a pass is held at most, when something else has failed


class Held:
    """A stage whose passes wait to be let go; `started` once the first is on."""

    def __init__(self) -> None:
        self.started, self.gate = threading.Event(), threading.Event()
        self.stage = PagedStage(before_pass=self._hold)

    def _hold(self, sessions: object) -> None:
        self.started.set()
        assert self.gate.wait(HELD_S)

    async def until_started(self) -> None:
        await trio.to_thread.run_sync(self.started.wait)


async def cancel_when_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


@asynccontextmanager
async def serving(stage: PagedStage) -> AsyncIterator[tuple[Worker, BatchEngine]]:
    engine = BatchEngine(stage, stage.pool(2048))
    async with open_worker() as worker:
        worker.serve(Lane(engine, PassTimes(3, 3000.0, 30_000.0)))
        yield worker, engine


async def ask(worker: Worker, lease: Lease, rows: np.ndarray, at: int = 0) -> np.ndarray:
    payload = memoryview(bytearray(rows.astype("<f4").tobytes()))
    step = Step(at, (len(rows),), len(rows))
    answer, seconds = await worker.step(lease, "p", payload, step, "f32", within_s=60.0)
    assert seconds > 0
    return np.frombuffer(answer, "<f4").reshape(-1, WIDTH)


def random_rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, PRIME, (count, WIDTH)).astype(np.float32)


async def test_steps_that_wait_together_run_together() -> None:
    gate = threading.Event()
    stage = PagedStage()
    async with serving(stage) as (worker, engine):
        leases = [engine.open_cache(BlockRange(0, 3), 10) for _ in range(20)]
        said: dict[int, np.ndarray] = {}

        async def talk(number: int) -> None:
            said[number] = await ask(worker, leases[number], random_rows(3, number))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run, gate.wait)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(20):
                nursery.start_soon(talk, number)
            await trio.testing.wait_all_tasks_blocked()
            assert worker.waiting == 21
            gate.set()
    assert stage.passes == [[(0, 3)] * 20]
    assert all((said[number] == alone(random_rows(3, number))).all() for number in said)


async def test_a_step_cancelled_before_or_in_a_pass_harms_nobody() -> None:
    """One is taken back while it waits, one while its first slice is computed: its cache is closed
    at once, in order, and its pages are another's when the third session opens."""
    held = Held()
    stage = held.stage
    async with serving(stage) as (worker, engine):
        running, waiting, staying = (engine.open_cache(BlockRange(0, 3), 4096) for _ in range(3))
        free = engine._pool.free_pages
        said: list[np.ndarray] = []

        async def talk(lease: Lease, rows: np.ndarray, scope: trio.CancelScope) -> None:
            with scope:
                said.append(await ask(worker, lease, rows))

        async with trio.open_nursery() as nursery:
            first, second = trio.CancelScope(), trio.CancelScope()
            nursery.start_soon(talk, running, random_rows(4096, 1), first)
            await held.until_started()
            nursery.start_soon(talk, waiting, random_rows(4096, 2), second)
            nursery.start_soon(talk, staying, random_rows(200, 3), trio.CancelScope())
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()
            second.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert worker.waiting == 2  # the one in the pass waits for its end
            worker.post(engine.close_cache, waiting)
            held.gate.set()
        worker.post(engine.close_cache, running)
        assert await worker.run(lambda: engine._pool.free_pages) == free + 2 * 3 * 64
        assert len(said) == 1 and (said[0] == alone(random_rows(200, 3))).all()
        assert sum(count for one in stage.passes for _, count in one) < 4096 + 200


async def test_steps_that_were_taken_back_are_not_kept_until_their_turn() -> None:
    """Or whoever sends and leaves, again and again, fills the memory of a busy node."""
    held = Held()
    stage = held.stage
    async with serving(stage) as (worker, engine):
        busy, leaving = (engine.open_cache(BlockRange(0, 3), 4096) for _ in range(2))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, worker, busy, random_rows(1))
            await held.until_started()
            for _ in range(10):
                with trio.CancelScope() as scope:
                    nursery.start_soon(cancel_when_blocked, scope)
                    await ask(worker, leaving, random_rows(4096))
                assert scope.cancelled_caught
            held.gate.set()
        assert worker._lane is not None
        assert await worker.run(lambda: worker._lane.waiting) == 0
    assert stage.passes == [[(0, 1)]]


async def test_a_session_opens_beside_a_pass_or_once_the_one_before_it_is_closed() -> None:
    """The pool has room for two sessions. While a pass is held the second opens at once; the third
    finds no room, waits for its turn, and gets what the first gave back before it."""
    held = Held()
    stage = held.stage
    pages = 2 * 3  # of two sessions in three blocks
    pool = Pool(budget_bytes=pages * page_stride(stage.page_bytes), page_bytes=stage.page_bytes)
    engine = BatchEngine(stage, pool)
    async with open_worker() as worker:
        worker.serve(Lane(engine, PassTimes(3, 3000.0, 30_000.0)))
        blocks = BlockRange(0, 3)
        first = await worker.run(engine.open_cache, blocks, PAGE_TOKENS)
        third: list[Lease] = []

        async def open_third() -> None:
            third.append(await worker.run(engine.open_cache, blocks, PAGE_TOKENS))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, worker, first, random_rows(1))
            await held.until_started()
            with trio.fail_after(20):
                await worker.run(engine.open_cache, blocks, PAGE_TOKENS)
            worker.post(engine.close_cache, first)
            nursery.start_soon(open_third)
            await trio.testing.wait_all_tasks_blocked()
            assert not third
            held.gate.set()
        assert third


async def test_a_step_that_is_refused_or_wrong_says_so() -> None:
    async with serving(PagedStage()) as (worker, engine):
        lease = engine.open_cache(BlockRange(0, 3), 10)
        with pytest.raises(RemoteError, match="position 5"):
            await ask(worker, lease, random_rows(1), at=5)
        with pytest.raises(Refused):
            await worker.step(
                lease, "p", memoryview(bytearray(16)), Step(0, (1,), 1), "f32", within_s=-1.0
            )
        assert (await ask(worker, lease, random_rows(1)) == alone(random_rows(1))).all()


async def test_the_event_loop_turns_while_the_device_computes() -> None:
    """A prompt of 2,048 rows, whose passes hash without the interpreter's lock as kernels compute:
    the loop's longest silence is far below the prompt's time. The bound is generous: the machine
    may be busy with others."""

    def compute(sessions: Sequence[tuple[Lease, int, int]]) -> None:
        rows = sum(count for _, _, count in sessions)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1000 + 500 * rows)

    stage = PagedStage(before_pass=compute)
    async with serving(stage) as (worker, engine):
        lease = engine.open_cache(BlockRange(0, 3), 2048)
        gaps = [0.0]

        async def tick() -> None:
            while True:
                began_s = time.perf_counter()
                await trio.sleep(0.001)
                gaps.append(time.perf_counter() - began_s)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            began_s = time.perf_counter()
            await ask(worker, lease, random_rows(2048))
            spent_s = time.perf_counter() - began_s
            nursery.cancel_scope.cancel()
    assert len(stage.passes) > 1
    assert max(gaps) < max(0.05, spent_s / 2)


# ---- in spare time


async def test_slices_run_when_nobody_waits_and_in_line() -> None:
    ran: list[tuple[str, int]] = []

    def slices(name: str, count: int) -> Iterator[None]:
        for number in range(count):
            ran.append((name, number))
            yield

    async with serving(PagedStage()) as (worker, _), trio.open_nursery() as nursery:
        gate = threading.Event()
        nursery.start_soon(worker.run, gate.wait)
        await trio.testing.wait_all_tasks_blocked()
        for name in "ab":
            nursery.start_soon(worker.spare, slices(name, 3))
            await trio.testing.wait_all_tasks_blocked()
        assert worker.waiting == 1  # nobody waits behind slices
        gate.set()
    assert ran == [(name, number) for name in "ab" for number in range(3)]


async def test_steps_go_before_slices_and_slices_are_not_starved() -> None:
    """While somebody reads, of many passes few are followed by a slice, and yet some are."""
    order: list[str] = []
    stage = PagedStage(before_pass=lambda sessions: order.append("pass"))

    def slices() -> Iterator[None]:
        while True:
            order.append("slice")
            yield

    async with serving(stage) as (worker, engine), trio.open_nursery() as nursery:
        lease = engine.open_cache(BlockRange(0, 3), 200)
        await ask(worker, lease, random_rows(1))
        nursery.start_soon(worker.spare, slices())
        for at in range(1, 101):
            await ask(worker, lease, random_rows(1), at)
        nursery.cancel_scope.cancel()
    found = order[: 1 + max(at for at, what in enumerate(order) if what == "pass")]
    assert found.count("pass") == 101
    assert 1 <= found.count("slice") <= 1 + 101 // PASSES


async def test_slices_that_fail_or_are_given_up_leave_the_thread_to_others() -> None:
    begun = threading.Event()

    def failing() -> Iterator[None]:
        yield
        raise RemoteError("not finite")

    def endless() -> Iterator[None]:
        while True:
            begun.set()
            yield

    async with serving(PagedStage()) as (worker, _):
        with pytest.raises(RemoteError, match="not finite"):
            await worker.spare(failing())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.spare, endless())
            await trio.to_thread.run_sync(begun.wait)
            nursery.cancel_scope.cancel()
        ran: list[int] = []
        await worker.spare(ran.append(number) for number in range(3))  # type: ignore[func-returns-value]
        assert ran == [0, 1, 2]
