"""More peers than a group has: a grid of groups, whose weights come together."""

from __future__ import annotations

import torch
import trio
from sim.group_town import COUNT, Citizen, open_town
from trio.testing import MockClock

from potluck.node.runs.group import Settings
from potluck.swarm.run.group import companions

PEERS = 18  # a grid of 5 by 4: the least whose sides have room


def spread(citizens: list[Citizen]) -> float:
    """How far the weights are apart, each number by itself, on average."""
    return float(torch.stack([one.weights for one in citizens]).std(0).mean())


async def test_each_group_has_one_mean_and_the_whole_comes_together(
    autojump_clock: MockClock,
) -> None:
    """Nobody takes steps of its own, so all there is to see is averaging. Nesterov's step with .7
    and .9 brings two anchors nearer by half a round (its roots have the modulus .52)."""
    async with open_town(PEERS, Settings(grid=True)) as town:
        for number, one in enumerate(town.citizens):
            dice = torch.Generator().manual_seed(number)
            one.weights = torch.randn(COUNT, generator=dice)
        began = spread(town.citizens)
        for epoch in range(4):
            with trio.fail_after(120):
                found = await town.exchange(epoch=epoch)
            peers = {one.host.peer_id: one for one in town.citizens}
            for one, told in zip(town.citizens, found, strict=True):
                group = companions(town.run, peers.keys(), one.host.peer_id, epoch)
                assert {*told.peers, one.host.peer_id} == {*group} and 3 <= len(group) <= 5
                assert {peers[other].group.place.state for other in group} == {
                    one.group.place.state
                }
        assert spread(town.citizens) < 0.3 * began
        assert town.net.faults == []
