"""Members of one group, in one process, on memory roads, each with the driver of a node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import torch
import trio

from potluck.crypto.digest import digest
from potluck.crypto.keys import IdentityKey
from potluck.errors import TransportError
from potluck.node.net.identify import Claims
from potluck.node.runs.exchange import Exchanged
from potluck.node.runs.group import GroupExchange, Settings
from potluck.swarm.run.group import in_order

from .memory_host import MemoryHost, MemoryNet

RUN = digest("test run", b"a town")
COUNT = 1000


class GroupHost(MemoryHost):
    side = 0  # of a town that is cut in two

    def unhandle(self, protocol: str) -> None:
        self.handlers.pop(protocol, None)

    async def dial_known(self, peer: str) -> None:
        await trio.lowlevel.checkpoint()
        other = self._net.hosts.get(peer)
        far = isinstance(other, GroupHost) and other.side != self.side
        if other is None or other.dead or far:
            raise TransportError(f"no road to {peer}")

    async def identified(self, peer: str) -> None:
        await trio.lowlevel.checkpoint()

    def claims(self, peer: str) -> Claims | None:
        other = self._net.hosts.get(peer)
        return None if other is None else Claims("", tuple(other.handlers), (), None)


@dataclass(eq=False)
class Citizen:
    """weights: what its runner has now."""

    number: int
    host: GroupHost
    group: GroupExchange
    weights: torch.Tensor
    scopes: list[trio.CancelScope]
    blamed: list[str]

    def learns(self, *, target: float, share: float = 0.5) -> None:
        """So much of the way to where all would go, and a way of its own, smaller each time."""
        dice = torch.Generator().manual_seed(self.number)
        away = torch.randn(len(self.weights), generator=dice) * (target - self.weights).abs()
        self.weights = self.weights + share * (target - self.weights) + 0.1 * away

    async def exchange(self, tokens: int = 100, epoch: int = 0) -> Exchanged:
        found = await self.group.exchange(epoch, self.weights, tokens)
        self.weights = found.weights
        return found

    async def die(self) -> None:
        """As kill -9: nothing more is said, and every stream of it breaks."""
        self.host.dead = True
        for scope in self.scopes:
            scope.cancel()
        await self.host.die()


class Town:
    run = RUN

    def __init__(
        self, nursery: trio.Nursery, settings: Settings, start: torch.Tensor | None = None
    ) -> None:
        self.start = torch.zeros(COUNT) if start is None else start
        self.nursery = nursery
        self.net = MemoryNet(nursery)
        self.settings = settings
        self.citizens: list[Citizen] = []

    @property
    def alive(self) -> list[Citizen]:
        return [one for one in self.citizens if not one.host.dead]

    def leader(self) -> Citizen:
        """Who will lead first, if all stand where the first one does."""
        state = self.citizens[0].group.place.state
        first = in_order(state, [one.host.peer_id for one in self.citizens])[0]
        return next(one for one in self.citizens if one.host.peer_id == first)

    async def join(self, number: int, *, boot: int = 1, rate: int = 6_000_000) -> Citizen:
        key = IdentityKey.from_bytes(bytes([number + 1]) * 32)
        host = GroupHost(self.net, key.peer_id)
        self.net.hosts[key.peer_id] = host
        blamed: list[str] = []
        group = GroupExchange(
            host, key, RUN, self.start, boot=boot, settings=self.settings, rate=lambda: rate,
            peers=lambda: tuple(self.net.hosts), blame=lambda peer, error: blamed.append(peer),
        )  # fmt: skip
        scope = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await group.run(task_status=task_status)

        await self.nursery.start(run)
        self.citizens.append(Citizen(number, host, group, self.start.clone(), [scope], blamed))
        return self.citizens[-1]

    async def exchange(self, *some: Citizen, epoch: int = 0) -> list[Exchanged]:
        """Of these at once, or of all who live; nothing of whoever dies meanwhile."""
        found: dict[int, Exchanged] = {}

        async def one(citizen: Citizen) -> None:
            with trio.CancelScope() as scope:
                citizen.scopes.append(scope)
                found[citizen.number] = await citizen.exchange(epoch=epoch)

        async with trio.open_nursery() as nursery:
            for citizen in some or self.alive:
                nursery.start_soon(one, citizen)
        return [found[number] for number in sorted(found)]

    async def cut(self, *far: Citizen) -> None:
        """No road is left between these and the others; with nobody named all are whole again."""
        for one in self.citizens:
            one.host.side = int(one in far)
        for one in self.citizens:
            for stream in list(one.host.streams):
                other = self.net.hosts[stream.peer]
                if isinstance(other, GroupHost) and other.side != one.host.side:
                    await stream.reset()

    def assert_equal(self, *some: Citizen) -> None:
        """Of the survivors: state hashes, anchors and weights, to the bit."""
        first, *others = some or self.alive
        for other in others:
            assert other.group.place == first.group.place
            for mine, theirs in zip(first.group.anchor, other.group.anchor, strict=True):
                assert torch.equal(mine, theirs)


@asynccontextmanager
async def open_town(members: int, settings: Settings | None = None) -> AsyncIterator[Town]:
    async with trio.open_nursery() as nursery:
        town = Town(nursery, settings or Settings())
        for number in range(members):
            await town.join(number)
        yield town
        nursery.cancel_scope.cancel()
