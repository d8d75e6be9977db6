"""A host whose roads are memory: streams that can be cut, stalled or bent.

One `MemoryNet` joins any number of hosts. A stream is delivered as a real one is: the handler runs
in its own task; RemoteError, TransportError and Refused of it reset the stream, anything else is
loud.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import trio

from potluck.crypto.keys import IdentityKey
from potluck.dht.network import NOWHERE, Prefixes
from potluck.errors import Refused, RemoteError, TransportError, Unspoken


@dataclass(eq=False)
class _Pipe:
    """One direction. `held` keeps bytes from being seen; `bend` changes them on the way."""

    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    broken: bool = False
    held: bool = False
    changed: trio.Event = field(default_factory=trio.Event)

    def touch(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class MemoryStream:
    """One end of a stream; implements node.net.stream.Stream."""

    def __init__(self, peer: str, inward: _Pipe, outward: _Pipe) -> None:
        self.peer = peer
        self.inward = inward
        self.outward = outward
        self.bend: Callable[[bytes], bytes] | None = None

    async def send(self, *parts: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if self.outward.broken or self.outward.ended:
            raise TransportError("the stream is gone")
        data = b"".join(parts)
        self.outward.data += self.bend(data) if self.bend else data
        self.outward.touch()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        pipe = self.inward
        while True:
            if pipe.data and not pipe.held:
                data = bytes(pipe.data[:max_bytes])
                del pipe.data[:max_bytes]
                await trio.lowlevel.checkpoint()
                return data
            if pipe.broken:
                raise TransportError("the stream was reset")
            if pipe.ended and not pipe.held:
                return b""
            await pipe.changed.wait()

    async def broken(self) -> None:
        while not self.inward.broken:
            await self.inward.changed.wait()

    async def close(self) -> None:
        self.outward.ended = True
        self.outward.touch()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        self.cut()
        await trio.lowlevel.checkpoint()

    def cut(self) -> None:
        """Broken both ways, by the road or by an end."""
        for pipe in (self.inward, self.outward):
            pipe.broken = True
            pipe.touch()


class MemoryHost:
    """One peer on a MemoryNet; has what the services need of node.net.host.Host."""

    def __init__(self, net: MemoryNet, peer_id: str) -> None:
        self._net = net
        self.peer_id = peer_id
        self.handlers: dict[str, Callable[[MemoryStream], Awaitable[None]]] = {}
        self.streams: list[MemoryStream] = []  # the ends that this peer serves
        self.dead = False
        self.blamed: list[tuple[str, RemoteError]] = []
        self.stands: dict[str, Prefixes] = {}  # the network in which each is seen
        self.relays: dict[str, str] = {}  # peer: through whom we reach it
        self.on_direct: list[Callable[[str], None]] = []
        self.dialed: list[tuple[str, str]] = []  # whom, by which protocol
        self.cannot_reach: set[str] = set()
        self.strangers: set[str] = set()  # to whom we are not connected before we dial them
        self.identity = SimpleNamespace()  # with a key, where one is needed

    @property
    def nursery(self) -> trio.Nursery:
        return self._net.nursery

    def connected(self) -> tuple[str, ...]:
        return tuple(peer for peer in self._net.hosts if peer not in self.strangers)

    def claims(self, peer: str) -> SimpleNamespace | None:
        """What a peer says that it speaks."""
        other = self._net.hosts.get(peer)
        return None if other is None else SimpleNamespace(protocols=tuple(other.handlers))

    async def identified(self, peer: str) -> None:
        await trio.lowlevel.checkpoint()

    def welcomes(self, peer: str) -> bool:
        return True

    def rtt_s(self, peer: str) -> float | None:
        """Known of whoever is connected; here, of whoever is there."""
        return 0.001

    def where(self, peer: str) -> Prefixes:
        """Nothing that counts, as at home, unless a test says so."""
        return self.stands.get(peer, NOWHERE)

    def relay_of(self, peer: str) -> str | None:
        return self.relays.get(peer)

    def becomes_direct(self, peer: str) -> None:
        """A way to the peer without a relay has opened."""
        del self.relays[peer]
        for tell in list(self.on_direct):
            tell(peer)

    def addresses(self) -> tuple[str, ...]:
        return (f"/memory/{self.peer_id}/p2p/{self.peer_id}",)

    def learn(self, peer: str, addresses: Sequence[str]) -> None:
        pass

    def handle(self, protocol: str, handler: Callable[[MemoryStream], Awaitable[None]]) -> None:
        self.handlers[protocol] = handler

    def unhandle(self, protocol: str) -> None:
        self.handlers.pop(protocol, None)

    def blame(self, peer: str, error: RemoteError) -> None:
        self.blamed.append((peer, error))

    async def open_stream(self, peer: str, protocol: str) -> MemoryStream:
        await trio.lowlevel.checkpoint()
        self.dialed.append((peer, protocol))
        other = self._net.hosts.get(peer)
        if other is None or other.dead:
            raise TransportError(f"cannot reach {peer}")
        if peer in self.cannot_reach:
            raise TransportError(f"no way to {peer}")
        if protocol not in other.handlers:  # a real road tells it later, at the first receive
            raise Unspoken(f"{peer} does not speak {protocol}")
        there, back = _Pipe(), _Pipe()
        mine, theirs = MemoryStream(peer, back, there), MemoryStream(self.peer_id, there, back)
        other.streams.append(theirs)
        self._net.nursery.start_soon(other._serve, protocol, theirs)
        return mine

    async def _serve(self, protocol: str, stream: MemoryStream) -> None:
        try:
            await self.handlers[protocol](stream)
        except (RemoteError, TransportError, Refused) as error:
            self._net.faults.append((self.peer_id, error))
            await stream.reset()
        finally:
            self.streams.remove(stream)

    async def die(self) -> None:
        """As kill -9 looks from outside: every stream breaks, nobody can be dialled."""
        self.dead = True
        for stream in list(self.streams):
            await stream.reset()

    def stall(self) -> None:
        """As a cable cut looks: nothing comes any more, and nothing says so."""
        for stream in self.streams:
            stream.outward.held = True


class MemoryNet:
    """What joins the hosts. `faults`: what handlers raised, with whose they were."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.hosts: dict[str, MemoryHost] = {}
        self.faults: list[tuple[str, Exception]] = []

    def host(self, peer_id: str, key: IdentityKey | None = None) -> MemoryHost:
        made = self.hosts.setdefault(peer_id, MemoryHost(self, peer_id))
        if key is not None:
            made.identity.key = key
        return made
