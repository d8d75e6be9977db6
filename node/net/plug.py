"""py-libp2p over our connections: its host, network and protocols run on every node.

The host of py-libp2p keeps the peer store, the network and the handlers of the protocols that we
take from it; what lies beneath (dialing, Noise, yamux, negotiation) is ours, because its own can
be killed, dead-locked or used up by any peer. Each connection that we have secured is given
to its network as a muxed connection, by its own interfaces (`IMuxedConn`, `Swarm.add_conn`), and so
nothing inside it is patched but whom it dials.

    libp2p protocol ── NetStream ── PluggedStream ─┐
                                                   ├── Mux ── Link (Noise) ── socket
    our protocols ─────────────────────── Stream ──┘
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog
import trio
from libp2p import new_host
from libp2p.abc import ConnectionType, IMuxedConn, IMuxedStream, INotifee
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.host.basic_host import _IdentifyNotifee
from libp2p.network.config import ConnectionConfig
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamEOF,
    MuxedStreamReset,
)
from multiaddr import Multiaddr

from ...errors import RemoteError, TransportError
from .guard import foreign
from .identify import Claims
from .mux import Mux
from .mux_stream import MuxStream
from .service import run_service

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

Dial = Callable[[str], Awaitable[None]]

log = structlog.get_logger()

KNOWN_S = 5.0  # guess: until libp2p's network has taken a connection up, on a busy machine
STORED_S = 3600  # guess: how long libp2p's peer store keeps where a peer listens
AUTO_CONNECTOR = "libp2p.network.auto_connector"  # its log has a level of its own
UNLIMITED = 1 << 20  # connections: they are limited before libp2p hears of them (guard.py)


class PluggedStream(IMuxedStream):  # type: ignore[misc]  # libp2p's types are not read strictly
    """One of our streams, as libp2p's protocols see it."""

    def __init__(self, conn: PluggedConn, stream: MuxStream) -> None:
        self.muxed_conn = conn
        self.stream = stream

    async def read(self, n: int | None = None) -> bytes:
        """Up to n bytes. Raises MuxedStreamEOF at the end, as the stock muxer does."""
        try:
            piece = bytes(await self.stream.receive(n if n and n > 0 else 1 << 16))
        except TransportError as error:
            raise MuxedStreamReset(str(error)) from error
        if not piece:
            raise MuxedStreamEOF("the peer has finished")
        return piece

    async def write(self, data: bytes) -> None:
        try:
            await self.stream.send(data)
        except TransportError as error:
            raise MuxedStreamReset(str(error)) from error

    async def close(self) -> None:
        await self.stream.close()  # both ways, as libp2p's NetStream means it

    async def close_write(self) -> None:
        await self.stream.finish()

    async def reset(self) -> None:
        await self.stream.reset()

    def set_deadline(self, ttl: int) -> None:
        raise NotImplementedError("deadlines are cancel scopes here")

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.muxed_conn.remote

    async def __aenter__(self) -> PluggedStream:
        return self


class PluggedConn(IMuxedConn):  # type: ignore[misc]
    """One of our connections, as libp2p's network sees it. Streams that come in are negotiated by
    us and handed to their handlers, so `accept_stream` waits for nothing but the end."""

    on_close: Callable[[], Awaitable[None]] | None = None

    def __init__(self, mux: Mux, remote: tuple[str, int], *, dialer: bool) -> None:
        self.peer_id = ID.from_string(mux.peer)
        self.event_started = trio.Event()
        self.known = trio.Event()  # libp2p's network has taken it up, or declined it
        self.ended = trio.Event()
        self.mux = mux
        self.remote = remote
        self._dialer = dialer

    @property
    def is_initiator(self) -> bool:
        return self._dialer

    @property
    def is_established(self) -> bool:
        return not self.is_closed

    @property
    def is_closed(self) -> bool:
        return self.ended.is_set() or self.mux.failure is not None

    async def start(self) -> None:
        self.event_started.set()
        await self.ended.wait()

    async def close(self) -> None:
        self.mux.close()

    async def open_stream(self) -> PluggedStream:
        try:
            return PluggedStream(self, self.mux.open())
        except TransportError as error:
            raise MuxedConnUnavailable(str(error)) from error

    async def accept_stream(self) -> PluggedStream:
        await self.ended.wait()
        raise MuxedConnUnavailable("the connection is over")

    def get_transport_addresses(self) -> list[Multiaddr]:
        host, port = self.remote
        kind = "ip6" if ":" in host else "ip4"
        return [Multiaddr(f"/{kind}/{host.partition('%')[0]}/tcp/{port}")]

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT


class _Herald(INotifee):  # type: ignore[misc]
    """Tells a connection of ours that libp2p's network has taken it up.

    `add_conn` returns later: it waits for every service that hears of connections.
    """

    async def connected(self, network: Any, conn: Any) -> None:
        conn.muxed_conn.known.set()

    async def disconnected(self, network: Any, conn: Any) -> None: ...

    async def opened_stream(self, network: Any, stream: Any) -> None: ...

    async def closed_stream(self, network: Any, stream: Any) -> None: ...

    async def listen(self, network: Any, multiaddr: Any) -> None: ...

    async def listen_close(self, network: Any, multiaddr: Any) -> None: ...


class Libp2p:
    """The py-libp2p host of this node. Made by `run_libp2p`."""

    def __init__(self, host: Any, dial: Dial, nursery: trio.Nursery) -> None:
        self.host = host
        self._nursery = nursery
        self._network = host.get_network()
        self._dial = dial
        self._network.dial_peer = self._dial_peer  # whoever asks libp2p to dial, we do
        self._network.auto_connector.maybe_connect = _seek_nobody
        self._network.set_resource_manager(None)  # its limits are per 5 s; ours are in guard.py
        for notifee in list(self._network.notifees):
            if isinstance(notifee, _IdentifyNotifee):  # it would ask each peer a second time
                self._network.remove_notifee(notifee)
        self._network.register_notifee(_Herald())

    @property
    def protocols(self) -> tuple[str, ...]:
        """What libp2p's handlers speak here."""
        return tuple(str(name) for name in self.host.multiselect.handlers if name)

    async def run(self, conn: PluggedConn) -> None:
        """Have libp2p's network know this connection until it ends.

        Nothing of ours waits for it, or ends when it declines: it needs some milliseconds to take a
        connection up, and 100 to let it go.
        """
        direction = "outbound" if conn.is_initiator else "inbound"
        try:
            with foreign("libp2p"):
                await self._network.add_conn(conn, direction)
        except RemoteError as error:
            log.debug("not known to libp2p", peer=str(conn.peer_id), reason=str(error))
            conn.known.set()
        await conn.ended.wait()

    async def start(self, service: Any) -> None:
        """Run one of libp2p's services (Pubsub, GossipSub, KadDHT) for as long as the host lives.

        To be started before the first connection: libp2p tells a service of new peers alone.
        """
        await self._nursery.start(run_service, service)

    def learn(self, claims: Claims, peer: str) -> None:
        """Tell libp2p's peer store what a peer says about itself."""
        store = self.host.get_peerstore()
        name = ID.from_string(peer)
        store.set_protocols(name, claims.protocols)
        store.clear_addrs(name)  # else a peer could make it grow for ever
        known = []
        for address in claims.addresses:
            with suppress(RemoteError), foreign("an address"):  # libp2p takes fewer names than we
                known.append(Multiaddr(str(address)))
        store.add_addrs(name, known, STORED_S)

    async def serve(self, conn: PluggedConn, stream: MuxStream, protocol: str) -> None:
        """Run libp2p's handler of `protocol` on a stream that we negotiated.

        Its handlers raise whatever a peer's bytes make them raise, which in libp2p ends the whole
        host; here that is the peer's fault.
        """
        handler = self.host.multiselect.handlers[protocol]
        with trio.move_on_after(KNOWN_S):
            await conn.known.wait()
        known = [
            one for one in self._network.get_connections(conn.peer_id) if one.muxed_conn is conn
        ]
        if not known:
            raise TransportError("libp2p does not know this connection")
        net_stream = await known[0]._add_stream(PluggedStream(conn, stream))
        net_stream.set_protocol(protocol)
        try:
            await handler(net_stream)
        except Exception as error:  # of every kind: they are made by the peer's bytes
            raise RemoteError(f"{protocol}: {error!r:.200}") from error
        finally:
            known[0].remove_stream(net_stream)

    async def _dial_peer(self, peer: ID) -> list[Any]:
        try:
            await self._dial(str(peer))
        except TransportError as error:
            raise SwarmException(str(error)) from error
        return list(self._network.get_connections(peer))


async def _seek_nobody() -> None:
    """Instead of libp2p's own search for connections: it dials whoever its peer store knows."""


async def run_libp2p(
    seed: bytes, dial: Dial, *, task_status: TaskStatus[Libp2p] = trio.TASK_STATUS_IGNORED
) -> None:
    """A service: py-libp2p's host with our identity, listening nowhere itself.

    Noise is the one security that it may offer, for its defaults accept a forged identity; and it
    looks for no peers of its own. Cancelled, it is closed: leaving its `run` alone would not.
    """
    for name in ("libp2p", AUTO_CONNECTOR):  # each peer's fault, with a trace; and whom not to seek
        logging.getLogger(name).setLevel(logging.CRITICAL)
    noise = NoiseTransport(
        create_new_key_pair(seed), noise_privkey=create_noise_key_pair().private_key
    )
    host = new_host(
        key_pair=create_new_key_pair(seed),
        sec_opt={NOISE: noise},
        connection_config=ConnectionConfig(
            min_connections=0, low_watermark=0, high_watermark=UNLIMITED, max_connections=UNLIMITED
        ),
    )
    async with host.run([]), trio.open_nursery() as services:
        try:
            task_status.started(Libp2p(host, dial, services))
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await host.close()
