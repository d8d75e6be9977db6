"""A group over real hosts on loopback: one dies in mid-round, and the others have the same bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import trio

from potluck.node.net.host import Host
from potluck.node.runs.group import GroupExchange
from potluck.swarm.run.group_events import Came, Effect, Event

from .groups import Wanted, open_member

PEERS = 4
WANTED = Wanted(count=100_000, rate=10_000_000)


@dataclass(frozen=True)
class Seat:
    number: int
    scopes: list[trio.CancelScope]  # of all that it does
    host: Host
    group: GroupExchange


async def sit(number: int, names: list[str], task_status: trio.TaskStatus[Seat]) -> None:
    with trio.CancelScope() as scope:
        async with open_member(number, WANTED, lambda: names) as (host, group):
            task_status.started(Seat(number, [scope], host, group))
            await trio.sleep_forever()


def dies_of_its_first_part(seat: Seat) -> None:
    machine = seat.group._machine
    handle = machine.handle

    def handled(event: Event, now: float) -> list[Effect]:
        if not isinstance(event, Came):
            return handle(event, now)
        for scope in seat.scopes:
            scope.cancel()
        return []

    machine.handle = handled  # type: ignore[method-assign]


async def test_survivors_of_a_death_in_mid_round_stand_at_the_same_state() -> None:
    """Hosts, connections and streams are those of a node; who dies takes its connections along."""
    names: list[str] = []
    members: list[int] = []
    async with trio.open_nursery() as nursery:
        seats = [await nursery.start(sit, number, names) for number in range(PEERS)]
        for seat in seats:
            names.append(seat.host.peer_id)
            for other in seats:
                other.host.learn(seat.host.peer_id, seat.host.addresses())

        async def exchange(seat: Seat, commits: int) -> None:
            dice = torch.Generator().manual_seed(10 * commits + seat.number)
            weights = torch.cat(tuple(seat.group.anchor))
            weights = weights + 0.1 * torch.randn(WANTED.count, generator=dice)
            with trio.CancelScope() as scope:
                seat.scopes.append(scope)
                found = await seat.group.exchange(commits, weights, 1)
                members.append(len(found.peers) + 1)

        victim, *others = seats
        with trio.fail_after(100):
            for commits in (1, 2, 3):
                members.clear()
                if commits == 2:
                    dies_of_its_first_part(victim)
                async with trio.open_nursery() as round_:
                    for seat in others if commits > 2 else seats:
                        round_.start_soon(exchange, seat, commits)
                places = {seat.group.place for seat in (others if commits > 1 else seats)}
                assert len(places) == 1 and places.pop().commits == commits
                assert {*members} == {PEERS if commits == 1 else PEERS - 1}
        nursery.cancel_scope.cancel()
