"""Peers and streams: the host through which the node meets others."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import multiaddr
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo, info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport

from ...errors import Refused, RemoteError, TransportError, UserError
from .stream import Stream

Handler = Callable[[Stream], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class HostConfig:
    """Who this host is, and where it listens."""

    seed: bytes  # the Ed25519 seed of the identity key, 32 bytes
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)


class _NetStream:
    """py-libp2p's stream behind our Stream."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.peer: str = str(inner.muxed_conn.peer_id)

    async def send(self, *parts: bytes | bytearray | memoryview) -> None:
        try:
            await self._inner.write(b"".join(parts))
        except (BaseLibp2pError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise TransportError(f"stream to {self.peer} broke: {error!r}") from error

    async def receive(self, max_bytes: int = 65536) -> bytes | bytearray | memoryview:
        try:
            piece: bytes = await self._inner.read(max_bytes)
        except StreamEOF:
            return b""
        except (BaseLibp2pError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise TransportError(f"stream from {self.peer} broke: {error!r}") from error
        return piece

    async def close(self) -> None:
        try:
            await self._inner.close()
        except BaseLibp2pError:
            await self._inner.reset()

    async def reset(self) -> None:
        await self._inner.reset()


class Host:
    """Opens streams to peers and hands theirs to handlers."""

    def __init__(self, libp2p: Any, nursery: trio.Nursery) -> None:
        self.libp2p = libp2p
        self.peer_id = str(libp2p.get_id())
        self._nursery = nursery

    def addresses(self) -> tuple[str, ...]:
        """Full multiaddrs that end in /p2p/<peer id>."""
        return tuple(str(address) for address in self.libp2p.get_addrs())

    async def connect(self, addresses: Sequence[str]) -> str:
        """Connect to the one peer that these addresses name; return its id."""
        infos = [info_from_p2p_addr(multiaddr.Multiaddr(address)) for address in addresses]
        peer = infos[0].peer_id
        await self._dial(PeerInfo(peer, [address for info in infos for address in info.addrs]))
        return str(peer)

    async def open_stream(self, peer: str, protocol: str) -> Stream:
        """Open a stream to a peer that is connected or known. Raises TransportError."""
        try:
            return _NetStream(await self.libp2p.new_stream(ID.from_string(peer), [protocol]))
        except (BaseLibp2pError, OSError) as error:
            raise TransportError(f"no stream to {peer}: {error!r}") from error

    def learn(self, peer: str, addresses: Sequence[str]) -> None:
        """Remember where a peer may be dialled."""
        found = [info_from_p2p_addr(multiaddr.Multiaddr(address)) for address in addresses]
        kept = [address for info in found for address in info.addrs]
        self.libp2p.get_peerstore().add_addrs(ID.from_string(peer), kept, 3600)

    def handle(self, protocol: str, handler: Handler) -> None:
        """Give every stream that a peer opens for `protocol` to `handler`, in a task of its own."""

        async def serve(inner: Any) -> None:
            done = trio.Event()
            self._nursery.start_soon(self._serve, _NetStream(inner), handler, done)
            await done.wait()

        self.libp2p.set_stream_handler(protocol, serve)

    def connected(self) -> tuple[str, ...]:
        """The peer ids that we are connected to."""
        return tuple(str(peer) for peer in self.libp2p.get_connected_peers())

    async def _dial(self, info: PeerInfo) -> None:
        try:
            await self.libp2p.connect(info)
        except (BaseLibp2pError, OSError) as error:
            raise TransportError(f"cannot connect to {info.peer_id}: {error!r}") from error

    async def _serve(self, stream: Stream, handler: Handler, done: trio.Event) -> None:
        try:
            await handler(stream)
        except (RemoteError, TransportError, Refused):
            await stream.reset()
        finally:
            done.set()


@asynccontextmanager
async def open_host(config: HostConfig) -> AsyncIterator[Host]:
    """Listen, and close everything on leaving. Raises UserError when a port is in use."""
    keys = create_new_key_pair(config.seed)
    noise = NoiseTransport(keys, noise_privkey=create_new_x25519_key_pair().private_key)
    listen = [multiaddr.Multiaddr(address) for address in config.listen]
    libp2p = new_host(key_pair=keys, sec_opt={NOISE: noise}, listen_addrs=listen)
    async with libp2p.run(listen), trio.open_nursery() as nursery:
        if not libp2p.get_transport_addrs():
            raise UserError(f"cannot listen on {', '.join(config.listen)}: is the port in use?")
        yield Host(libp2p, nursery)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await libp2p.close()
