"""Groups over memory roads: equal bits, whoever dies in whatever phase."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import trio
from sim.group_town import COUNT, Citizen, Town, open_town
from trio.testing import MockClock

from potluck.swarm.run.group_events import (
    Came,
    Computed,
    Effect,
    Event,
    Received,
    Reduced,
    Shared,
)
from potluck.swarm.run.group_wire import (
    Agreed,
    Commit,
    Held,
    Plan,
    Prepare,
    Promise,
    Propose,
    Told,
)


@pytest.mark.parametrize("members", [1, 2, 3, 8])
async def test_all_end_at_the_same_bits_where_diloco_would(
    members: int, autojump_clock: MockClock
) -> None:
    """The oracle is the paper's formula in fp64. Rounding to 8 bits takes at most 1/254 of the
    greatest of 128 numbers, once from each and once from their mean; all numbers are below 2."""
    async with open_town(members) as town:
        anchor = momentum = torch.zeros(COUNT, dtype=torch.float64)
        for commits in range(1, 4):
            for one in town.citizens:
                one.learns(target=1.0)
            weights = [one.weights.double() for one in town.citizens]
            with trio.fail_after(30):
                found = await town.exchange()
            town.assert_equal()
            away = anchor - torch.stack(weights).mean(0)
            momentum = 0.5 * momentum + away
            anchor = anchor - 0.7 * (away + 0.5 * momentum)
            assert float((town.citizens[0].weights - anchor).abs().max()) < 0.05
            assert {one.group.place.commits for one in town.citizens} == {commits}
            assert all(len(one.peers) == members - 1 for one in found)
            for one in town.citizens:
                assert torch.equal(one.weights, town.citizens[0].weights)
        assert town.net.faults == []


def kills(town: Town, victim: Citizen, when: Callable[[Event], bool]) -> None:
    """The victim dies when its machine is told of that, before anything follows from it."""
    machine = victim.group._machine
    handle = machine.handle

    def handled(event: Event, now: float) -> list[Effect]:
        if victim.host.dead:
            return []
        if not when(event):
            return handle(event, now)
        town.nursery.start_soon(victim.die)
        victim.host.dead = True
        return []

    machine.handle = handled  # type: ignore[method-assign]


def hears(kind: type[object]) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Received) and isinstance(event.message, kind)


PHASES: dict[str, Callable[[Event], bool]] = {
    "a card": hears(Told),
    "a ballot": hears(Prepare),
    "a promise": hears(Promise),
    "the plan": hears(Plan),
    "its own parts": lambda event: isinstance(event, Shared),
    "a part to reduce": lambda event: isinstance(event, Came) and event.part.kind == "give",
    "its own mean": lambda event: isinstance(event, Reduced),
    "another's mean": lambda event: isinstance(event, Came) and event.part.kind == "mean",
    "the next state": lambda event: isinstance(event, Computed),
    "that one holds it": hears(Held),
    "the proposal": hears(Propose),
    "an agreement": hears(Agreed),
    "the commit": hears(Commit),
}
OF_THE_LEADER = ("a promise", "that one holds it", "an agreement")
OF_THE_OTHERS = ("a ballot", "the plan", "the proposal", "the commit")  # it tells itself of these


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("leads", [True, False], ids=["the leader", "another"])
async def test_whoever_dies_in_whatever_phase_the_others_finish_alike(
    phase: str, leads: bool, autojump_clock: MockClock
) -> None:
    """And the next exchange is as if nothing had happened. A minute is longer than any deadline
    here: a second's worth of parts, three seconds to a step."""
    if phase in (OF_THE_OTHERS if leads else OF_THE_LEADER):
        pytest.skip("only the other kind hears of it")
    async with open_town(4) as town:
        leader = town.leader()
        victim = leader if leads else next(one for one in town.citizens if one is not leader)
        for one in town.citizens:
            one.learns(target=1.0)
        kills(town, victim, PHASES[phase])
        with trio.fail_after(60):
            await town.exchange()
        assert victim not in town.alive
        for commits in (1, 2):
            town.assert_equal()
            assert {one.group.place.commits for one in town.alive} == {commits}
            with trio.fail_after(60):
                found = await town.exchange()
            assert all(len(one.peers) == 2 for one in found)
