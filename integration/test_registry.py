"""Sixteen nodes that were cut in two halves: real drivers, roads of memory, virtual time.

Four of them are for half an hour in tests/test_registrar.py.
"""

from __future__ import annotations

import pytest
import trio
from sim.parted import open_town
from trio.testing import MockClock

from potluck.dht.record import REFRESH_S

PARTED_S = 600.0  # a record lives 90 s


@pytest.mark.slow
async def test_sixteen_registries_are_equal_within_one_refresh_of_the_healing(
    autojump_clock: MockClock,
) -> None:
    """Nobody names the other half any more: each node asks one of those that it lost, a round."""
    async with open_town(16) as town:
        everybody = {one.id for one in town.citizens}
        await trio.sleep(180)
        assert all(one.holds() == everybody for one in town.citizens)
        town.part()
        await trio.sleep(PARTED_S)
        for half in (town.citizens[::2], town.citizens[1::2]):
            assert all(one.holds() == {other.id for other in half} for one in half)
        town.heal()
        town.refreshing = False  # else there is always something new on its way
        with trio.fail_after(REFRESH_S):
            while not town.alike():  # noqa: ASYNC110  # virtual time
                await trio.sleep(0.25)
        assert all(one.holds() == everybody for one in town.citizens)
        assert town.net.faults == []
