"""A lane: whatever shares a pass, a session's numbers are its own; no token waits for a prompt."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import outcome
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim.paged_stage import PRIME, WIDTH, PagedStage, alone

from potluck.errors import Refused, RemoteError
from potluck.node.compute.batch import Done, Lane, Order
from potluck.node.compute.engine import BatchEngine
from potluck.node.compute.pages import Lease
from potluck.swarm.blocks import BlockRange
from potluck.swarm.rates import PassTimes
from potluck.swarm.wire import Step


@dataclass
class Waits:
    """Who waits for a step. `gone`: it took the step back before it was run."""

    gone: bool = False
    leaving: bool = False
    held: bool = False

    def claim(self) -> bool:
        assert not self.held
        self.held = not self.gone
        return self.held

    def release(self) -> None:
        self.held = False

    def given_up(self) -> bool:
        return self.leaving


@dataclass
class Bench:
    """A lane over a stage without a model."""

    stage: PagedStage = field(default_factory=PagedStage)
    pages: int = 4096
    times: PassTimes = field(default_factory=lambda: PassTimes(3, 3000.0, 30_000.0))

    def __post_init__(self) -> None:
        self.pool = self.stage.pool(self.pages)
        self.engine = BatchEngine(self.stage, self.pool)
        self.lane = Lane(self.engine, self.times)

    def open(self, tokens: int = 2000, start: int = 0, stop: int = 3) -> Lease:
        return self.engine.open_cache(BlockRange(start, stop), tokens)

    def put(
        self,
        lease: Lease,
        rows: np.ndarray,
        at: int,
        *,
        peer: str = "p",
        wanted: int | None = None,
        sizes: Sequence[int] = (),
        until_s: float = math.inf,
        waits: Waits | None = None,
    ) -> Order:
        payload = memoryview(bytearray(rows.astype("<f4").tobytes()))
        step = Step(at, tuple(sizes) or (len(rows),), len(rows) if wanted is None else wanted)
        order = Order(lease, peer, payload, step, "f32", until_s, waits or Waits())
        self.failed = self.lane.add(order)
        return order

    def finish(self) -> dict[Order, np.ndarray]:
        found = {}
        while self.lane.waiting:
            for order, result in self.lane.turn():
                assert isinstance(result, outcome.Value)
                found[order] = np.frombuffer(result.value[0], "<f4").reshape(-1, WIDTH)
        return found


def random_rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, PRIME, (count, WIDTH)).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_session_gets_what_it_would_get_alone(data: st.DataObject) -> None:
    """Sessions of several peers join, send tokens and prompts, take steps back, repeat themselves
    from an earlier position and leave."""
    bench = Bench()
    live: dict[int, tuple[Lease, np.ndarray, int, tuple[int, int]]] = {}
    pending: dict[Order, tuple[int, int, int]] = {}
    number = 0
    for _ in range(data.draw(st.integers(5, 40))):
        what = data.draw(st.sampled_from(["join", "step", "step", "step", "pass", "leave"]))
        idle = [key for key in live if all(one[0] != key for one in pending.values())]
        if what == "join" and len(live) < 6:
            span = data.draw(st.sampled_from([(0, 3), (0, 3), (1, 3)]))
            lease = bench.open(400, *span)
            live[number] = (lease, random_rows(400, number), 0, span)
            number += 1
        elif what == "step" and idle:
            key = data.draw(st.sampled_from(idle))
            lease, rows, length, span = live[key]
            at = length if data.draw(st.booleans()) else data.draw(st.integers(0, length))
            stop = min(400, at + data.draw(st.sampled_from([1, 1, 1, 5, 60, 200])))
            if stop > at:
                wanted = data.draw(st.sampled_from([0, 1, stop - at]))
                order = bench.put(lease, rows[at:stop], at, peer=f"p{key % 3}", wanted=wanted)
                pending[order] = (key, stop, wanted)
                live[key] = (lease, rows, stop, span)
        elif what == "pass":
            check(bench.lane.turn() if bench.lane.waiting else [], pending, live)
        elif what == "leave" and idle:
            bench.engine.close_cache(live.pop(data.draw(st.sampled_from(idle)))[0])
    while bench.lane.waiting:
        check(bench.lane.turn(), pending, live)
    assert not pending
    for lease, *_ in live.values():
        lease.release()
    assert bench.pool.used_pages == 0 and bench.pool.free_pages == bench.pool.pages


def check(done: Done, pending: dict, live: dict) -> None:
    for order, result in done:
        key, stop, wanted = pending.pop(order)
        _, rows, _, span = live[key]
        said = np.frombuffer(result.unwrap()[0], "<f4").reshape(-1, WIDTH)
        assert (said == alone(rows[:stop], *span)[stop - wanted :]).all()


def test_tokens_of_all_sessions_share_one_pass() -> None:
    bench = Bench()
    rows = random_rows(1)
    orders = [bench.put(bench.open(), rows, 0, peer=f"p{index}") for index in range(16)]
    assert {order for order, _ in bench.lane.turn()} == set(orders)
    assert bench.stage.passes == [[(0, 1)] * 16]


def test_a_replay_in_many_small_steps_is_run_in_large_slices() -> None:
    """Five hundred steps of a token each, as a journal has them, in few passes."""
    bench = Bench()
    rows = random_rows(500)
    order = bench.put(bench.open(), rows, 0, sizes=[1] * 500)
    assert (bench.finish()[order] == alone(rows)).all()
    assert len(bench.stage.passes) < 20


def test_while_a_long_prompt_fills_tokens_are_in_every_pass() -> None:
    """And a pass now and then has them alone, to show what they take."""
    bench = Bench()
    prompt, talk = random_rows(3000, 1), random_rows(400, 2)
    filling, talking = bench.open(3000), bench.open(400)
    long = bench.put(filling, prompt, 0, wanted=1)
    said, passes = None, 0
    while said is None:
        token = bench.put(talking, talk[:1], 0, peer="q")
        done = dict(bench.lane.turn())
        passes += 1
        assert token in done, "a token waited for a prompt"
        said = done.get(long)
        assert passes < 3000
    assert (np.frombuffer(said.unwrap()[0], "<f4") == alone(prompt)[-1]).all()
    assert [(0, 1)] in bench.stage.passes


def test_what_is_announced_follows_from_the_passes_that_were_served() -> None:
    """At the start it was measured a thousand million tokens a second; no pass is as fast."""
    bench = Bench(times=PassTimes(3, 1e9, 1e9))
    lease = bench.open()
    for at in range(20):
        bench.put(lease, random_rows(1, at), at)
        bench.finish()
    bench.put(bench.open(), random_rows(600), 0)
    bench.finish()
    assert max(bench.times.announced(time.monotonic())) < 5e8


def test_two_ranges_of_blocks_are_two_passes() -> None:
    bench = Bench()
    rows = random_rows(3)
    whole, part = bench.open(), bench.open(start=1, stop=2)
    first, second = bench.put(whole, rows, 0), bench.put(part, rows, 0)
    found = bench.finish()
    assert (found[first] == alone(rows)).all() and (found[second] == alone(rows, 1, 2)).all()


def test_a_step_taken_back_is_never_run_and_leaves_the_others_alone() -> None:
    bench = Bench()
    rows = random_rows(300)
    stays, leaves = bench.open(), bench.open()
    gone = bench.put(leaves, rows, 0, waits=Waits(gone=True))
    kept = bench.put(stays, rows, 0)
    bench.engine.close_cache(leaves)  # as the server does once the task has its step back
    found = bench.finish()
    assert gone not in found and (found[kept] == alone(rows)).all()
    assert bench.pool.used_pages == 3 * 5


def test_a_session_that_ends_in_a_pass_waits_for_that_pass_alone() -> None:
    waits = Waits()
    bench = Bench(PagedStage(before_pass=lambda sessions: setattr(waits, "leaving", True)))
    order = bench.put(bench.open(8000), random_rows(8000), 0, waits=waits)
    assert bench.lane.turn() == [(order, None)]
    assert bench.lane.waiting == 0 and len(bench.stage.passes) == 1


def test_a_step_that_waited_too_long_is_refused() -> None:
    bench = Bench()
    order = bench.put(bench.open(), random_rows(1), 0, until_s=0.0)
    ((late, result),) = bench.lane.turn()
    assert late is order and isinstance(result, outcome.Error)
    assert isinstance(result.error, Refused)
    assert bench.stage.passes == [] and bench.lane.waiting == 0


def test_what_no_honest_client_sends_fails_alone() -> None:
    bench = Bench()
    lease = bench.open(100)
    bad = random_rows(2)
    bad[1, 1] = float("nan")
    for rows, at in ((random_rows(1), 1), (random_rows(101), 0), (bad, 0)):
        order = bench.put(lease, rows, at)
        ((failed, result),) = bench.failed
        assert failed is order and isinstance(result, outcome.Error)
        assert isinstance(result.error, RemoteError)
    bench.put(lease, random_rows(4), 0, sizes=[2])  # fewer than the payload holds
    assert len(bench.failed) == 1
    for blocks, tokens in (((0, 4), 10), ((0, 3), 0), ((0, 3), 9000)):
        with pytest.raises(RemoteError):
            bench.engine.open_cache(BlockRange(*blocks), tokens)
    assert bench.lane.waiting == 0


def test_a_fault_of_ours_reaches_everybody_in_the_pass() -> None:
    def fail(sessions: object) -> None:
        raise LookupError("no such kernel")

    bench = Bench(PagedStage(before_pass=fail))
    orders = [bench.put(bench.open(), random_rows(n), 0) for n in (1, 5000 - 3000)]
    done = bench.lane.turn()
    assert [order for order, _ in done] == orders
    assert all(isinstance(result.error, LookupError) for _, result in done)
    assert bench.lane.waiting == 0
