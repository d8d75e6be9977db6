"""Nodes that gossip evidence over memory roads, in virtual time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio
from receipts import key
from sim.memory_host import MemoryHost, MemoryNet
from testimonies import NOW, accusation, announced
from trio.testing import wait_all_tasks_blocked

from potluck.crypto.codec import encode
from potluck.crypto.keys import IdentityKey
from potluck.dht.network import Prefixes, prefixes_of
from potluck.dht.reading import Checker
from potluck.dht.record import DOMAIN, Announcement
from potluck.errors import RemoteError, TransportError
from potluck.node.net.gossip_wire import pack
from potluck.node.trust.bans import Bans
from potluck.node.trust.book import Trust
from potluck.node.trust.evidence import Compute, Court
from potluck.node.trust.standing import Standings
from potluck.swarm.blocks import BlockRange
from potluck.swarm.testimony import (
    Case,
    Item,
    SignedAccusation,
    contradiction_of,
    sign_accusation,
)
from potluck.swarm.topics import EVIDENCE, PROTOCOL, Message, Rpc, topic_of

MODEL = bytes(range(32)).hex()  # as of what testimonies.accusation accuses


def wall() -> float:
    return NOW + trio.current_time()


@dataclass(frozen=True)
class Mux:
    peer: str
    dialer: bool


@dataclass(eq=False)
class Connection:
    mux: Mux
    remote: tuple[str, int]
    over: trio.Event = field(default_factory=trio.Event)
    asked: trio.Event = field(default_factory=trio.Event)

    @property
    def network(self) -> Prefixes:
        return prefixes_of(f"/ip4/{self.remote[0]}")

    def speaks(self, protocol: str) -> bool:
        return True


class Host(MemoryHost):
    """One with connections: what a Gossiper and a Court need of node/net/host.py."""

    def __init__(self, net: MemoryNet, peer_id: str, address: str) -> None:
        super().__init__(net, peer_id)
        self.address = address
        self.came: list[Callable[[Connection], None]] = []
        self.links: dict[str, Connection] = {}
        self.blamed: list[str] = []
        self.convicted: Callable[[str], bool] = lambda peer: False

    def connections(self) -> list[Connection]:
        return list(self.links.values())

    def best(self, peer: str) -> Connection | None:
        return self.links.get(peer)

    def welcomes(self, peer: str) -> bool:
        return not self.convicted(peer)

    def blame(self, peer: str, error: RemoteError) -> None:
        self.blamed.append(peer)

    def unhandle(self, protocol: str) -> None:
        self.handlers.pop(protocol, None)

    def dial(self, other: Host) -> None:
        """Both ends agree on who is refused."""
        if other.peer_id in self.links or not (
            self.welcomes(other.peer_id) and other.welcomes(self.peer_id)
        ):
            return
        for one, far, dialer in ((self, other, True), (other, self, False)):
            link = Connection(Mux(far.peer_id, dialer), (far.address, 4001))
            link.asked.set()
            one.links[far.peer_id] = link
            for tell in list(one.came):
                tell(link)

    def hang_up(self, peer: str) -> None:
        link = self.links.pop(peer, None)
        if link is not None:
            link.over.set()
            for stream in self.streams:
                if stream.peer == peer:
                    stream.cut()
            other = self._net.hosts.get(peer)
            if isinstance(other, Host):
                other.hang_up(self.peer_id)

    def shun(self, convicted: Callable[[str], bool]) -> None:
        self.convicted = convicted
        for peer in [peer for peer in self.links if convicted(peer)]:
            self.hang_up(peer)


class Records:
    """A directory that all read."""

    def __init__(self) -> None:
        self.told: list[Announcement] = []

    async def find(self, model: str) -> tuple[Announcement, ...]:
        return tuple(self.told)


@dataclass
class Node:
    key: IdentityKey
    host: Host
    trust: Trust
    court: Court
    checker: Checker
    scope: trio.CancelScope

    @property
    def id(self) -> str:
        return self.key.peer_id


class Town:
    """Who is there. dice: which links there are; each node has at least `links`."""

    def __init__(self, nursery: trio.Nursery, seed: int = 1) -> None:
        self.net = MemoryNet(nursery)
        self.nursery = nursery
        self.dice = random.Random(seed)
        self.records = Records()
        self.nodes: list[Node] = []
        self._clock = trio.lowlevel.current_clock()

    def wall(self) -> float:
        """The same as `wall`, in a thread too."""
        return NOW + self._clock.current_time()

    def host(self, key: IdentityKey, address: str = "127.0.0.1") -> Host:
        made = Host(self.net, key.peer_id, address)
        self.net.hosts[key.peer_id] = made
        return made

    async def add(
        self,
        key: IdentityKey,
        *,
        home: Path | None = None,
        compute: Compute | None = None,
        blocks: BlockRange | None = None,
        clock: Callable[[], float] | None = None,
    ) -> Node:
        clock = clock or self.wall
        host = self.host(key)
        trust = Trust(home, clock=clock)
        standings = Standings(trust.trust, home, wall=clock)
        dice = random.Random(key.peer_id)
        court = Court(host, key, trust, Bans(home), standings, dice, wall=clock)  # type: ignore[arg-type]
        checker = Checker()
        checker.contradicted.append(court.contradicts)
        await court.restore()
        node = Node(key, host, trust, court, checker, trio.CancelScope())
        serving = [(MODEL, blocks)] if blocks else []

        async def run() -> None:
            with node.scope:
                await court.run(lambda: serving, compute)

        self.nursery.start_soon(run)
        self.nodes.append(node)
        return node

    def link(self, links: int) -> None:
        """A ring, so that it hangs together, and links at random."""
        count = len(self.nodes)
        for number, node in enumerate(self.nodes):
            node.host.dial(self.nodes[(number + 1) % count].host)
            others = [other for other in self.nodes if other is not node]
            for other in self.dice.sample(others, links - 2):
                node.host.dial(other.host)

    async def until(self, holds: Callable[[], object], within_s: float) -> float:
        """How long it took, in virtual time."""
        began_s = trio.current_time()
        with trio.fail_after(within_s):
            while not holds():  # noqa: ASYNC110  # virtual time
                await trio.sleep(0.05)
        return trio.current_time() - began_s

    def all_ban(self, peer: str, nodes: Sequence[Node] | None = None) -> bool:
        return all(node.court.banned(peer) for node in nodes or self.nodes)


@asynccontextmanager
async def town(seed: int = 1) -> AsyncIterator[Town]:
    async with trio.open_nursery() as nursery:
        made = Town(nursery, seed)
        yield made
        nursery.cancel_scope.cancel()


# ---- what is said among them

MALLORY, VICTIM = key("m"), key("victim")
SEGMENT = topic_of(MODEL, 0)
PROOF = contradiction_of(DOMAIN, announced(MALLORY, stop=4).raw, announced(MALLORY, stop=8).raw)


def case_of(
    accused: IdentityKey, accuser: IdentityKey, *, gave: bytes = b"gave", now: float = NOW
) -> SignedAccusation:
    """As of the blocks 0:2 of the model that all here serve."""
    return sign_accusation(accuser, accusation(accused, gave=gave, now=now))


async def says(host: Host, to: Node, *rpcs: Rpc | bytes) -> None:
    with suppress(TransportError):
        stream = await host.open_stream(to.id, PROTOCOL)
        await stream.send(*(pack(rpc) if isinstance(rpc, Rpc) else rpc for rpc in rpcs))
        await stream.close()
    await wait_all_tasks_blocked()


def news(*items: Item, topic: str = EVIDENCE) -> Rpc:
    return Rpc(messages=tuple(Message(topic, encode(item)) for item in items))


async def stranger(place: Town, to: Node, letter: str = "stranger") -> Host:
    """Somebody who is connected, and says what it likes."""
    host = place.host(key(letter))

    async def listen(stream: object) -> None:
        while await stream.receive():  # type: ignore[attr-defined]
            pass

    host.handle(PROTOCOL, listen)
    host.dial(to.host)
    await wait_all_tasks_blocked()
    return host


Find = Callable[[Case], Awaitable[str | None]]


def finding(right: set[str]) -> Find:
    """Computing takes a while; those in `right` did right."""

    async def compute(case: Case) -> str | None:
        await trio.sleep(0.5)
        return "right" if case.told.accused in right else "wrong"

    return compute


async def servers(place: Town, count: int, right: set[str]) -> None:
    """All serve the first blocks, and are found in the directory."""
    for number in range(count):
        one = key(f"node {number}")
        compute = finding(right)
        await place.add(one, compute=compute, blocks=BlockRange(0, 8))  # type: ignore[arg-type]
