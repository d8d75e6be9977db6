"""Swarms of real directories on simulated roads, under a virtual clock: some hostile, some dying.

    found = run(story, seed=3)      story(world) under MockClock: a day takes as long as its work

The directories, look-ups, tables, records and signatures are the real ones; a road has 5 to 75 ms
each way. A peer that is killed breaks its streams; one that is switched off is silent.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

import trio
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.dht.calls import Stream
from potluck.dht.kad import KadDirectory, open_directory
from potluck.dht.memory_stream import MemoryStream, Parcel
from potluck.dht.network import NOWHERE, Prefixes
from potluck.dht.record import Announcement
from potluck.errors import Refused, RemoteError, TransportError

EPOCH_S = 1_790_000_000.0
DELAY_S = (0.005, 0.075)  # one way: a town, half the world
QUEUE = 256
T = TypeVar("T")


def wall() -> float:
    return EPOCH_S + trio.current_time()


def announcement(host: Road, model: str, version: int) -> Announcement:
    """What a peer says; the version stands in a field, so that a reader proves what it read."""
    return Announcement(
        model=model, name="sim", start=0, stop=1, blocks=1, state="online", device="none",
        dtype="none", quantization="none", decode_tokens_s=1.0, prefill_tokens_s=1.0,
        addresses=host.addresses(), cache_tokens_free=version, context_tokens_max=1,
        numerics="none", version="0",
    )  # fmt: skip


class SimStream(MemoryStream):
    """One end of a stream, which its world counts until it is reset."""

    def __init__(
        self, world: World, ends: tuple[str, str], out: trio.MemorySendChannel[Parcel],
        into: trio.MemoryReceiveChannel[Parcel], delay_s: float,
    ) -> None:  # fmt: skip
        super().__init__(ends, out, into, delay_s)
        self._world = world
        self.open = True
        world.streams += 1

    def reset_now(self) -> None:
        super().reset_now()
        if self.open:
            self.open = False
            self._world.streams -= 1


class Road:
    """What a directory has for a host."""

    def __init__(self, world: World, peer_id: str, address: str) -> None:
        self.peer_id = peer_id
        self.handlers: dict[str, Callable[[Stream], Awaitable[None]]] = {}
        self.streams: set[SimStream] = set()
        self._world = world
        self._address = address

    def addresses(self) -> tuple[str, ...]:
        return (f"/ip4/{self._address}/tcp/4001/p2p/{self.peer_id}",)

    async def connect(self, addresses: Sequence[str]) -> str:
        peer = addresses[0].rpartition("/")[2]
        await self._world.reach(peer)
        return peer

    async def open_stream(self, peer: str, protocol: str) -> SimStream:
        other = await self._world.reach(peer)
        handler = other.handlers.get(protocol)
        if handler is None:
            raise TransportError(f"{peer} does not speak {protocol}")
        here, into_here = trio.open_memory_channel[Parcel](QUEUE)
        there, into_there = trio.open_memory_channel[Parcel](QUEUE)
        delay_s = self._world.dice.uniform(*DELAY_S)
        mine = SimStream(self._world, (self.peer_id, peer), there, into_here, delay_s)
        theirs = SimStream(self._world, (peer, self.peer_id), here, into_there, delay_s)
        for end in (mine, theirs):
            self.streams.add(end)
            other.streams.add(end)
        self._world.nursery.start_soon(self._world.serve, handler, other, self, mine, theirs)
        return mine

    def learn(self, peer: str, addresses: Sequence[str]) -> None:
        pass

    def where(self, peer: str) -> Prefixes:
        """Not shown: peers are where they say."""
        return NOWHERE

    def handle(self, protocol: str, handler: Callable[[Stream], Awaitable[None]]) -> None:
        self.handlers[protocol] = handler


@dataclass(eq=False)
class Peer:
    """An honest one."""

    key: IdentityKey
    road: Road
    model: str
    directory: KadDirectory
    version: int = 0
    announced_s: float = 0.0

    async def announce(self) -> int:
        self.version += 1
        self.announced_s = trio.current_time()
        return await self.directory.announce(self.said())

    def said(self) -> Announcement:
        return announcement(self.road, self.model, self.version)


class World:
    """Who is there."""

    def __init__(self, nursery: trio.Nursery, stack: AsyncExitStack, seed: int) -> None:
        self.nursery = nursery
        self.dice = random.Random(seed)
        self.roads: dict[str, Road] = {}
        self.silent: set[str] = set()  # switched off: whoever dials it waits
        self.peers: list[Peer] = []
        self.blamed: Counter[str] = Counter()
        self.streams = 0
        self._stack = stack

    def road(self, peer: str) -> Road:
        """A place on the network, each in a /24 of its own, as homes are."""
        address = ".".join(str(self.dice.randrange(1, 224)) for _ in range(4))
        self.roads[peer] = Road(self, peer, address)
        return self.roads[peer]

    async def join(self, by: Sequence[str] = ()) -> Peer:
        """An honest peer that stays to the end."""
        return await self._stack.enter_async_context(self.open_peer(by))

    def open_peer(self, by: Sequence[str]) -> _Opened:
        return _Opened(self, by)

    async def reach(self, peer: str) -> Road:
        await trio.sleep(2 * self.dice.uniform(*DELAY_S))
        if peer in self.silent:
            await trio.sleep_forever()
        if peer not in self.roads:
            raise TransportError(f"there is no {peer}")
        return self.roads[peer]

    def kill(self, peer: str) -> None:
        """Its streams break, and nobody answers there."""
        road = self.roads.pop(peer)
        for stream in list(road.streams):
            stream.reset_now()

    async def serve(
        self, handler: Callable[[Stream], Awaitable[None]], other: Road, by: Road,
        mine: SimStream, theirs: SimStream,
    ) -> None:  # fmt: skip
        try:
            await handler(theirs)
        except (RemoteError, TransportError, Refused) as fault:
            self.blamed[theirs.peer] += isinstance(fault, RemoteError)
        finally:
            for end in (mine, theirs):
                end.reset_now()
                other.streams.discard(end)
                by.streams.discard(end)


class _Opened:
    """`async with`: a peer with its directory; killed when left."""

    def __init__(self, world: World, by: Sequence[str]) -> None:
        self._world, self._by = world, by
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Peer:
        world = self._world
        key = IdentityKey.from_bytes(world.dice.randbytes(32))
        road = world.road(key.peer_id)
        opened = open_directory(
            road, key, boot=int(wall()), wall=wall, dice=world.dice, bootstrap=tuple(self._by)
        )
        directory = await self._stack.enter_async_context(opened)
        self._peer = Peer(key, road, world.dice.randbytes(32).hex(), directory)
        world.peers.append(self._peer)
        return self._peer

    async def __aexit__(self, *error: object) -> None:
        self._world.peers.remove(self._peer)
        self._world.kill(self._peer.key.peer_id)
        await self._stack.aclose()


def run(story: Callable[[World], Awaitable[T]], *, seed: int) -> T:
    """The story's end, in a world of its own."""

    async def main() -> T:
        async with trio.open_nursery() as nursery:
            async with AsyncExitStack() as stack:
                told = await story(World(nursery, stack, seed))
            nursery.cancel_scope.cancel()
        return told

    return trio.run(main, clock=MockClock(autojump_threshold=0))
