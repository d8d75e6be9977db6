"""The one thread of the device: in order, bounded, and cancelled cleanly."""

import threading

import pytest
import torch
import trio
import trio.testing

from potluck.errors import Refused
from potluck.node.compute.worker import open_worker


async def test_calls_run_in_order_on_one_thread_that_is_not_ours() -> None:
    ran: list[tuple[int, int]] = []

    def note(number: int) -> int:
        ran.append((number, threading.get_ident()))
        return number * 2

    async with open_worker() as worker, trio.open_nursery() as nursery:
        results: dict[int, int] = {}

        async def ask(number: int) -> None:
            results[number] = await worker.run(note, number)

        for number in range(50):
            nursery.start_soon(ask, number)
    assert results == {number: number * 2 for number in range(50)}
    assert len({thread for _, thread in ran}) == 1
    assert ran[0][1] != threading.get_ident()


async def test_what_is_handed_over_first_runs_first() -> None:
    gate, ran = threading.Event(), []
    async with open_worker() as worker, trio.open_nursery() as nursery:
        nursery.start_soon(worker.run, gate.wait)
        for number in range(20):
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(worker.run, ran.append, number)
        await trio.testing.wait_all_tasks_blocked()
        assert worker.waiting == 21
        gate.set()
    assert ran == list(range(20))
    assert worker.waiting == 0


async def test_an_exception_comes_back_and_the_thread_lives_on() -> None:
    def fail() -> None:
        raise LookupError("no such thing")

    async with open_worker() as worker:
        for _ in range(3):
            with pytest.raises(LookupError, match="no such thing"):
                await worker.run(fail)
        assert await worker.run(lambda: 5) == 5


async def test_a_call_cancelled_while_it_waits_never_runs() -> None:
    gate, ran = threading.Event(), []
    async with open_worker() as worker, trio.open_nursery() as nursery:
        nursery.start_soon(worker.run, gate.wait)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_when_blocked, scope)
            await worker.run(ran.append, "cancelled")
        assert scope.cancelled_caught
        assert worker.waiting == 1
        gate.set()
        await worker.run(ran.append, "after")
    assert ran == ["after"]


async def cancel_when_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


async def test_a_call_cancelled_while_it_runs_is_waited_for() -> None:
    """A kernel cannot be stopped, and what it writes to must not be freed under it."""
    gate, started, ended = threading.Event(), threading.Event(), []

    def kernel() -> str:
        started.set()
        gate.wait()
        ended.append(True)
        return "result"

    async with open_worker() as worker, trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:

            async def cancel() -> None:
                await trio.to_thread.run_sync(started.wait)
                scope.cancel()
                await trio.testing.wait_all_tasks_blocked()
                gate.set()

            nursery.start_soon(cancel)
            assert await worker.run(kernel) == "result"
            assert ended
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught


async def test_too_many_waiting_are_refused() -> None:
    gate = threading.Event()
    async with open_worker(queued_max=3) as worker:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(worker.run, gate.wait)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Refused) as refusal:
                await worker.run(int)
            assert refusal.value.retry_after_s > 0
            gate.set()
        assert await worker.run(int) == 0


async def test_a_cancelled_task_hands_nothing_over() -> None:
    ran: list[int] = []
    async with open_worker() as worker:
        with trio.CancelScope() as scope:
            scope.cancel()
            await worker.run(ran.append, 1)
    assert not ran


async def test_the_thread_has_the_threads_it_was_given_and_ends_with_its_worker() -> None:
    before = torch.get_num_threads()
    async with open_worker(threads=2) as worker:
        assert await worker.run(torch.get_num_threads) == 2
        thread = await worker.run(threading.current_thread)
        assert thread.is_alive()
    assert not thread.is_alive()
    torch.set_num_threads(before)


async def test_it_ends_when_its_task_is_cancelled() -> None:
    with trio.CancelScope() as scope:
        async with open_worker() as worker:
            thread = await worker.run(threading.current_thread)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert not thread.is_alive()
