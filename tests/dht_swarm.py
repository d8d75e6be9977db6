"""Swarms of real directories on a road of 20 ms: whom to join by, who is dead, who was blamed."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import trio

from potluck.crypto.keys import IdentityKey
from potluck.dht.calls import Stream
from potluck.dht.kad import KadDirectory, open_directory
from potluck.dht.memory_stream import MemoryStream, Parcel
from potluck.dht.network import NOWHERE, Prefixes
from potluck.dht.record import Announcement
from potluck.errors import Refused, RemoteError, TransportError

EPOCH_S = 1_790_000_000.0
DELAY_S = 0.02
MODEL, OTHER_MODEL = "ab" * 32, "cd" * 32


class RoadStream(MemoryStream):
    """Half of a stream; a dead end swallows everything and never answers."""

    def __init__(
        self, net: "MemoryNetwork", ends: tuple[str, str],
        out: "trio.MemorySendChannel[Parcel]", into: "trio.MemoryReceiveChannel[Parcel]",
    ) -> None:  # fmt: skip
        super().__init__(ends, out, into, DELAY_S)
        self._net = net

    async def send(self, *parts: bytes | bytearray | memoryview) -> None:
        if not self._net.dead & {self.me, self.peer}:
            await super().send(*parts)


def wall() -> float:
    return EPOCH_S + trio.current_time()


def announcement(peer: str, *, model: str = MODEL, start: int = 0, stop: int = 8) -> Announcement:
    return Announcement(
        model=model, name="org/name", start=start, stop=stop, blocks=64, state="online",
        device="cpu", dtype="float32", quantization="none", decode_tokens_s=900.0,
        prefill_tokens_s=9000.0, addresses=(f"/ip4/127.0.0.1/tcp/4001/p2p/{peer}",),
        cache_tokens_free=8192, context_tokens_max=2048, numerics="none", version="0.1.0",
    )  # fmt: skip


class MemoryHost:
    def __init__(self, net: "MemoryNetwork", peer_id: str) -> None:
        self.peer_id = peer_id
        self.handlers: dict[str, Callable[[Stream], Awaitable[None]]] = {}
        self._net = net
        net.hosts[peer_id] = self

    def addresses(self) -> tuple[str, ...]:
        return (f"/ip4/127.0.0.1/tcp/4001/p2p/{self.peer_id}",)

    async def connect(self, addresses: Sequence[str]) -> str:
        await self._net.reach(addresses[0].rpartition("/")[2])
        return addresses[0].rpartition("/")[2]

    async def open_stream(self, peer: str, protocol: str) -> RoadStream:
        handler = (await self._net.reach(peer)).handlers.get(protocol)
        if handler is None:
            raise TransportError(f"{peer} does not speak {protocol}")
        here_out, there_into = trio.open_memory_channel[Parcel](64)
        there_out, here_into = trio.open_memory_channel[Parcel](64)
        theirs = RoadStream(self._net, (peer, self.peer_id), there_out, there_into)
        self._net.nursery.start_soon(self._net.serve, handler, theirs)
        return RoadStream(self._net, (self.peer_id, peer), here_out, here_into)

    def learn(self, peer: str, addresses: Sequence[str]) -> None:
        pass

    def where(self, peer: str) -> Prefixes:
        return self._net.stands.get(peer, NOWHERE)

    def handle(self, protocol: str, handler: Callable[[Stream], Awaitable[None]]) -> None:
        self.handlers[protocol] = handler


class MemoryNetwork:
    """Hosts that reach one another, 20 ms away."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.hosts: dict[str, MemoryHost] = {}
        self.dead: set[str] = set()
        self.stands: dict[str, Prefixes] = {}  # as connections show it
        self.blamed: Counter[str] = Counter()

    async def reach(self, peer: str) -> MemoryHost:
        await trio.sleep(2 * DELAY_S)
        if peer in self.dead:
            await trio.sleep_forever()  # a machine that was switched off refuses nothing
        if peer not in self.hosts:
            raise TransportError(f"there is no {peer}")
        return self.hosts[peer]

    async def serve(self, handler: Callable[[Stream], Awaitable[None]], to: RoadStream) -> None:
        try:
            await handler(to)
        except (RemoteError, TransportError, Refused) as fault:
            self.blamed[to.peer] += isinstance(fault, RemoteError)
            await to.reset()


@dataclass
class Peer:
    key: IdentityKey
    host: MemoryHost
    directory: KadDirectory

    @property
    def id(self) -> str:
        return self.key.peer_id

    async def announce(self, **change: object) -> int:
        return await self.directory.announce(announcement(self.id, **change))  # type: ignore[arg-type]


class Swarm:
    """Peers that join by the first one, in turn."""

    def __init__(self, net: MemoryNetwork, stack: AsyncExitStack, seed: int) -> None:
        self.net = net
        self.peers: list[Peer] = []
        self.dice = random.Random(seed)
        self._stack = stack

    async def join(self, *, serve: bool = True, by: Peer | None = None) -> Peer:
        key = IdentityKey.from_bytes(self.dice.randbytes(32))
        host = MemoryHost(self.net, key.peer_id)
        by = by or (self.peers[0] if self.peers else None)
        opened = open_directory(
            host, key, boot=int(wall()), serve=serve, wall=wall, dice=self.dice,
            bootstrap=by.host.addresses() if by else (),
        )  # fmt: skip
        peer = Peer(key, host, await self._stack.enter_async_context(opened))
        self.peers.append(peer)
        return peer

    async def all_announce(self) -> None:
        async with trio.open_nursery() as nursery:
            for peer in self.peers:
                nursery.start_soon(peer.announce)

    def kill(self, share: float) -> None:
        """Switch off some, but not the first: they answer nothing from now on."""
        for peer in self.dice.sample(self.peers[1:], round(share * len(self.peers))):
            self.net.dead.add(peer.id)
            self.peers.remove(peer)

    async def found_by_all(self, model: str = MODEL) -> list[set[str]]:
        found = []
        for peer in self.peers:
            found.append({told.peer for told in await peer.directory.find(model)})
        return found


@asynccontextmanager
async def open_swarm(count: int = 0, *, seed: int = 1) -> AsyncIterator[Swarm]:
    async with trio.open_nursery() as nursery:
        async with AsyncExitStack() as stack:
            swarm = Swarm(MemoryNetwork(nursery), stack, seed)
            for _ in range(count):
                await swarm.join()
            yield swarm
        nursery.cancel_scope.cancel()
