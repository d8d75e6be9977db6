"""The clock of the tests: it jumps to the next deadline, but never past what a thread does."""

from __future__ import annotations

import time

import trio
from trio.testing import MockClock


async def test_no_deadline_passes_while_a_thread_works(autojump_clock: MockClock) -> None:
    done_s: list[float] = []

    async def write() -> None:
        await trio.to_thread.run_sync(time.sleep, 0.1)  # the disk is slow today
        done_s.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        began_s = trio.current_time()
        nursery.start_soon(write)
        with trio.fail_after(1000):
            await trio.sleep(999)
        assert done_s == [began_s]


async def test_and_jumps_when_none_does(autojump_clock: MockClock) -> None:
    began_s, really_s = trio.current_time(), time.monotonic()
    await trio.to_thread.run_sync(int)
    await trio.sleep(1000)
    assert trio.current_time() == began_s + 1000
    assert time.monotonic() - really_s < 100
