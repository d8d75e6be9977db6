"""The timers of a machine, under a virtual clock."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from potluck.node.timers import Timers


async def test_timers_fire_in_the_order_of_their_times(autojump_clock: MockClock) -> None:
    fired: list[tuple[object, float]] = []
    timers = Timers(lambda key: fired.append((key, trio.current_time())))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        began_s = trio.current_time()
        for key, after_s in (("b", 2.0), ("c", 3.0), ("a", 1.0), ("never", 1.5)):
            timers.set(key, began_s + after_s)
        timers.stop("never")
        timers.set("c", began_s + 0.5)  # moved
        await trio.sleep(5)
        assert fired == [("c", 0.5), ("a", 1.0), ("b", 2.0)]
        timers.set("late", began_s)  # its time is over already
        await trio.testing.wait_all_tasks_blocked()
        assert fired[3:] == [("late", 5.0)]
        nursery.cancel_scope.cancel()


async def test_a_timer_stopped_or_moved_by_an_earlier_one_does_not_fire(
    autojump_clock: MockClock,
) -> None:
    """The event loop was held up, and all three are due at once."""
    fired: list[object] = []

    def fire(key: object) -> None:
        fired.append(key)
        if key == "first":
            timers.stop("stopped")
            timers.set("moved", trio.current_time() + 1)

    timers = Timers(fire)
    for key, at_s in (("stopped", 0.2), ("moved", 0.3), ("first", 0.1)):
        timers.set(key, at_s)
    autojump_clock.jump(10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        await trio.sleep(0.5)
        assert fired == ["first"]
        await trio.sleep(1)
        assert fired == ["first", "moved"]
        nursery.cancel_scope.cancel()
