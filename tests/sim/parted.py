"""Hosts with addresses on memory roads, that can be parted and joined again, with real drivers.

A peer is reached only where it is: whoever was told a wrong address of it, and has no connection,
dials in vain. `Town` runs a Sampler and a Registrar for each peer; its directory tells each one the
peers it joined by, and nobody else: what they know of each other they have from the drivers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import trio

from potluck.crypto.keys import IdentityKey
from potluck.dht.known import Known
from potluck.dht.message import Contact
from potluck.dht.network import NOWHERE, Prefixes, prefixes_of
from potluck.dht.record import REFRESH_S, Record, sign_fact
from potluck.errors import RemoteError, TransportError
from potluck.node.gossip.registry import Registrar
from potluck.node.gossip.sampling import Sampler
from potluck.node.net.address import Address, parse
from potluck.node.net.identify import Claims

from .memory_host import MemoryHost, MemoryNet, MemoryStream
from .memory_swarm import BLOCKS, announcement

EPOCH_S = 1_790_000_000.0
SLOTS = 128  # of twelve peers each is in one of them, but once in 10^5


def wall() -> float:
    return EPOCH_S + trio.current_time()


@dataclass(frozen=True)
class Muxed:
    dialer: bool


@dataclass(frozen=True)
class Seen:
    """What seen_at needs of a node.net.peers.Connection."""

    mux: Muxed
    remote: tuple[str, int]
    claims: Claims | None
    relay: str | None = None
    from_port: int = 0

    @property
    def listens_at(self) -> Address | None:
        host, port = self.remote
        return parse(f"/ip4/{host}/tcp/{port}") if self.mux.dialer else None


class Asked:
    """A connection whose other end has said who it is."""

    def __init__(self) -> None:
        self.asked = trio.Event()
        self.asked.set()


class TownHost(MemoryHost):
    def __init__(self, net: TownNet, peer_id: str, place: str) -> None:
        super().__init__(net, peer_id)
        self._town = net
        self.place = place
        self.side = 0  # of the town, while it is parted
        self.claimed = [parse(place)]
        self.known: dict[str, set[str]] = {}
        self.links: dict[str, bool] = {}  # peer: whether we dialled it
        self.blamed: list[str] = []
        self.sent = 0  # bytes
        self.kept: set[str] = set()

    def addresses(self) -> tuple[str, ...]:
        return (f"{self.place}/p2p/{self.peer_id}",)

    def learn(self, peer: str, addresses: Sequence[str]) -> None:
        tail = f"/p2p/{peer}"
        self.known.setdefault(peer, set()).update(one.removesuffix(tail) for one in addresses)

    async def dial_known(self, peer: str) -> None:
        await trio.lowlevel.checkpoint()
        other = self._town.towns.get(peer)
        if other is None or other.dead or other.side != self.side:
            self.links.pop(peer, None)
            raise TransportError(f"cannot reach {peer}")
        if peer not in self.links:
            if other.place not in self.known.get(peer, ()):
                raise TransportError(f"{peer} is not where it was said to be")
            self.links[peer] = True
            other.links.setdefault(self.peer_id, False)

    async def dial_at(self, peer: str, addresses: Sequence[Address]) -> Asked:
        """By these addresses alone."""
        await self.dial_known(peer)
        if self._town.towns[peer].place not in {str(address.bare) for address in addresses}:
            raise TransportError(f"{peer} is not at {addresses}")
        self.links[peer] = True
        return Asked()

    async def open_stream(self, peer: str, protocol: str) -> MemoryStream:
        await self.dial_known(peer)
        stream = await super().open_stream(peer, protocol)
        stream.bend = self._count
        return stream

    def _count(self, data: bytes) -> bytes:
        self.sent += len(data)
        return data

    async def identified(self, peer: str) -> None:
        await trio.lowlevel.checkpoint()

    def claims(self, peer: str) -> Claims | None:
        other = self._town.towns.get(peer)
        if other is None or peer not in self.links:
            return None
        return Claims("", tuple(other.handlers), tuple(other.claimed), None)

    def where(self, peer: str) -> Prefixes:
        return prefixes_of(self._town.towns[peer].place) if peer in self.links else NOWHERE

    def connected(self) -> tuple[str, ...]:
        return tuple(self.links)

    def connections(self, peer: str) -> list[Seen]:
        if peer not in self.links:
            return []
        there = parse(self._town.towns[peer].place)
        dialed = self.links[peer]
        port = there.port if dialed else 50_000
        return [Seen(Muxed(dialed), (there.host, port), self.claims(peer))]

    def keep(self, why: str, peers: set[str]) -> None:
        self.kept = peers

    def blame(self, peer: str, error: RemoteError) -> None:
        self.blamed.append(peer)

    def unhandle(self, protocol: str) -> None:
        del self.handlers[protocol]


class TownNet(MemoryNet):
    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__(nursery)
        self.towns: dict[str, TownHost] = {}

    def settle(self, peer_id: str, place: str) -> TownHost:
        host = self.hosts[peer_id] = self.towns[peer_id] = TownHost(self, peer_id, place)
        return host


@dataclass
class Guide:
    """A directory that knows whom one joined by."""

    joined: list[Contact] = field(default_factory=list)
    peers: float = 1.0
    again: list[str] = field(default_factory=list)  # by whom it was joined again

    async def wander(self) -> Sequence[Contact]:
        await trio.lowlevel.checkpoint()
        return self.joined

    def size(self) -> float:
        return self.peers

    def answered(self) -> Sequence[Known]:
        return ()

    async def bootstrap(self, addresses: Sequence[str]) -> int:
        await trio.lowlevel.checkpoint()
        self.again.extend(addresses)
        return 1


@dataclass
class Citizen:
    key: IdentityKey
    host: TownHost
    guide: Guide
    sampler: Sampler
    registrar: Registrar
    seq: int = 0

    @property
    def id(self) -> str:
        return self.key.peer_id

    def record(self) -> Record:
        """What it says of itself now."""
        self.seq += 1
        told = announcement(0, BLOCKS, self.host)
        return sign_fact(self.key, told, boot=1, seq=self.seq, now=wall())

    def holds(self) -> set[str]:
        """Whose records."""
        return {record.slot.peer for record in self.registrar._replica.live(wall())}


class Town:
    def __init__(self, net: TownNet, seed: int) -> None:
        self.net = net
        self.dice = Random(seed)
        self.citizens: list[Citizen] = []
        self.refreshing = True

    def settle(self, *, place: str = "") -> Citizen:
        number = len(self.citizens)
        key = IdentityKey.from_bytes(self.dice.randbytes(32))
        where = place or f"/ip4/{11 + number % 150}.{number // 150}.7.1/tcp/4001"
        host = self.net.settle(key.peer_id, where)
        guide = Guide()
        if self.citizens:
            first = self.citizens[0]
            guide.joined.append(Contact(first.id, first.host.addresses()))
        sampler = Sampler(host, guide, Random(self.dice.random()), slots=SLOTS)  # type: ignore[arg-type]
        registrar = Registrar(
            host, sampler.contacts, Random(self.dice.random()), wall=wall  # type: ignore[arg-type]
        )  # fmt: skip
        self.citizens.append(Citizen(key, host, guide, sampler, registrar))
        return self.citizens[-1]

    async def refresh(self, one: Citizen) -> None:
        while True:
            if self.refreshing:
                one.registrar.put(one.record())
            await trio.sleep(REFRESH_S * self.dice.uniform(0.8, 1.2))

    def part(self) -> None:
        for number, one in enumerate(self.citizens):
            one.host.side = number % 2

    def heal(self) -> None:
        for one in self.citizens:
            one.host.side = 0

    def alike(self) -> bool:
        """Whether all hold the same records."""
        return len({one.registrar.digest() for one in self.citizens}) == 1


@asynccontextmanager
async def open_town(count: int, *, seed: int = 1) -> AsyncIterator[Town]:
    """Everybody samples, compares and refreshes, until left; no fault may have been left over."""
    async with trio.open_nursery() as nursery:
        town = Town(TownNet(nursery), seed)
        for _ in range(count):
            one = town.settle()
            one.guide.peers = float(count)
            nursery.start_soon(one.sampler.run)
            nursery.start_soon(one.registrar.run)
            nursery.start_soon(town.refresh, one)
        yield town
        nursery.cancel_scope.cancel()
