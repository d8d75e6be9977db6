"""Peers and streams: the one place through which this node meets others.

    open_stream ──▶ connection, dialed when there is none ──▶ Stream
    listener ──▶ Gate ──▶ upgrade (noise, yamux) ──▶ Mux ──▶ negotiate ──▶ handler, a task each

The wire is libp2p's (TCP, multistream, Noise XX, yamux, identify, ping; Ed25519 identities), so
its other implementations are peers of ours. Every connection is py-libp2p's too (plug.py): whatever
protocol has a handler there is served beside our own. A handler's RemoteError, TransportError or
Refused ends its stream; any other exception is our own fault and ends the host.
"""

import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from ...errors import Refused, RemoteError, TransportError
from ..log import get_logger
from . import identify
from .access import Access
from .address import Address, listening, parse, parse_known, reachable
from .book import AddressBook
from .carrier import Carrier, SocketCarrier, StreamCarrier, remote_of
from .circuit import HOP, call_through
from .dialer import First, Joined, connect_tcp, race, tune
from .guard import Gate, Limits, Unread
from .introductions import Introductions
from .mux import Mux, MuxConfig
from .mux_stream import MuxStream
from .negotiate import Answer, Listener, proposal
from .noise import Identity, Scratch
from .observed import NatReport
from .peers import Connection, Peers
from .plug import Libp2p, PluggedConn, run_libp2p
from .stream import Stream
from .upgrade import upgrade_accepted, upgrade_dialed

Handler = Callable[[Stream], Awaitable[None]]
Yielding = Callable[[Carrier, str], Awaitable[tuple[str, First] | None]]

TICK_S = 1.0
DIAL_S = 10.0  # to reach a peer, all its addresses together
IDLE_TICKS = 20  # go-libp2p's grace period: a full host may drop a connection unused for so long
LOOPBACK = "127.0.0.1"
PAUSE_S = 0.1  # after the system had no descriptor for another connection
OUT_OF_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

log = get_logger()


@dataclass(frozen=True, slots=True)
class HostConfig:
    """Who this host is, where it listens, and what it lets peers take."""

    seed: bytes = field(repr=False)  # the Ed25519 seed of the identity key, 32 bytes
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)  # whom the owner bars, or admits alone
    mux: MuxConfig = field(default_factory=MuxConfig)


class Host:
    """Opens streams to peers and hands theirs to handlers."""

    libp2p: Libp2p  # set by open_host, before the first connection

    def __init__(
        self, config: HostConfig, listeners: list[socket.socket], nursery: trio.Nursery
    ) -> None:
        self._config = config
        self._identity = Identity(config.seed)
        self.peer_id = self._identity.peer_id
        self._listeners = listeners
        self._nursery = nursery
        self._scratch = Scratch()
        self._gate = Gate(config.limits, config.access)
        self._unread = Unread(
            connection_bytes_max=config.limits.unread_bytes_per_connection_max,
            total_bytes_max=config.limits.unread_bytes_max,
        )
        self._peers = Peers(self.peer_id)
        self._book = AddressBook()
        self._dials: Joined[Connection] = Joined(nursery)
        self._plugged: dict[Mux, PluggedConn] = {}
        self._inbound_streams = 0
        self._shaking: dict[socket.socket, trio.CancelScope] = {}  # handshakes, the oldest first
        self._published: tuple[Address, ...] = ()
        self._kept: dict[str, set[str]] = {}
        self.nat = NatReport()
        self.on_direct: list[Callable[[str], None]] = []  # told of a peer that was relayed till now
        self.came: list[Callable[[Connection], None]] = []  # told of each new connection
        self.yields_to: Yielding | None = None  # whom to dial back on a connection they dialed
        self._introductions = Introductions(
            self, self._identity.key.public, protocols=self._protocols, heard=self._heard
        )
        self._handlers: dict[str, Handler] = {
            identify.IDENTIFY: self._introductions.say,
            identify.PUSH: self._introductions.hear,
            identify.PING: identify.echo_pings,
        }

    # ---- for the node

    def addresses(self) -> tuple[str, ...]:
        """Where we can be dialed: full multiaddrs, those of other machines' reach first."""
        return tuple(f"{address}/p2p/{self.peer_id}" for address in self.places())

    def places(self) -> list[Address]:
        """The same, parsed and without our id."""
        return list(dict.fromkeys([*self._published, *reachable(self._listeners)]))

    def connected(self) -> tuple[str, ...]:
        """The peers that we are connected to."""
        return self._peers.names()

    @property
    def streams(self) -> int:
        """How many streams are open on all connections, those included that only linger."""
        return sum(len(connection.mux.streams) for connection in self._peers.all())

    def rtt_s(self, peer: str) -> float | None:
        """The shortest round trip seen on the connection in use; None when there is none."""
        connection = self._peers.best(peer)
        return connection.mux.rtt_s if connection else None

    def relay_of(self, peer: str) -> str | None:
        """The peer that passes on what we send to `peer`; None when it is direct, or not at all."""
        connection = self._peers.best(peer)
        return connection.relay if connection else None

    def claims(self, peer: str) -> identify.Claims | None:
        """What a connected peer says about itself, once it has."""
        connection = self._peers.best(peer)
        return connection.claims if connection else None

    def welcomes(self, peer: str) -> bool:
        """Whether we have to do with this peer: it is not barred, by the owner or for faults."""
        if self._gate.is_banned(peer, trio.current_time()):
            return False
        return self._gate.access.may_be(peer)

    def learn(self, peer: str, addresses: Sequence[str]) -> None:
        """Remember where a peer may be dialed; what cannot be dialed is passed over."""
        found = parse_known(addresses, peer)
        if found:
            self._book.learn(peer, found)

    def handle(self, protocol: str, handler: Handler) -> None:
        """Give every stream that a peer opens for `protocol` to `handler`, in a task of its own."""
        self._handlers[protocol] = handler

    def unhandle(self, protocol: str) -> None:
        """Serve `protocol` no more; streams that are open go on."""
        self._handlers.pop(protocol, None)

    async def connect(self, addresses: Sequence[str]) -> str:
        """Connect to the one peer that all these addresses name; return its id.

        Raises TransportError.
        """
        try:
            found = [parse(address) for address in addresses]
        except RemoteError as error:
            raise TransportError(str(error)) from error
        names = {address.peer for address in found if address.peer}
        if len(names) != 1:
            raise TransportError(f"addresses of one peer end in its /p2p/ id, not {addresses}")
        peer = names.pop()
        if self._peers.best(peer) is None:
            await self._dial(peer, found)
        return peer

    async def open_stream(self, peer: str, protocol: str) -> Stream:
        """A stream to a peer that is connected, or known and dialed now. Raises TransportError.

        The peer hears of it with the first bytes sent, or the first receive: no round trip is lost.
        That it does not speak `protocol` shows in the first receive, as TransportError.
        """
        return self._open(await self._reach(peer), protocol)

    async def dial_known(self, peer: str) -> None:
        """Connect to a peer by the addresses that we know of it. Raises TransportError."""
        await self._reach(peer)

    def disconnect(self, peer: str) -> None:
        """End every connection to a peer, and all streams on them."""
        for connection in self._peers.of(peer):
            connection.mux.close()

    async def identified(self, peer: str) -> None:
        """Wait until a connected peer has told who it is, or has failed to."""
        connection = self._peers.best(peer)
        if connection is not None:
            await connection.asked.wait()

    # ---- for what crosses NATs: nat.py and its parts

    @property
    def listeners(self) -> tuple[socket.socket, ...]:
        """Where we listen."""
        return tuple(self._listeners)

    def listen_more(self, text: str) -> None:
        """Listen at one more address. Raises UserError."""
        found = listening([text])
        self._listeners.extend(found)
        for listener in found:
            self._nursery.start_soon(self.accept_forever, listener)

    @property
    def nursery(self) -> trio.Nursery:
        """Of tasks that live as long as the host."""
        return self._nursery

    def publish(self, addresses: Sequence[Address]) -> None:
        """Where else we can be dialed: beyond a NAT, through a relay. Replaces the last ones."""
        self._published = tuple(addresses)

    def connections(self, peer: str | None = None) -> list[Connection]:
        """All that are open, or those to one peer."""
        return self._peers.all() if peer is None else self._peers.of(peer)

    def best(self, peer: str) -> Connection | None:
        """The connection that new streams to a peer take: a direct one, if there is any."""
        return self._peers.best(peer)

    def keep(self, why: str, peers: set[str]) -> None:
        """Whose connections are not to be given up while idle. Replaces the last of this reason."""
        self._kept[why] = peers
        self._peers.kept = set().union(*self._kept.values())

    def open_on(self, connection: Connection, protocol: str) -> MuxStream:
        """As `open_stream`, on this very connection. Raises TransportError."""
        return self._open(connection, protocol)

    async def dial_from(self, source: tuple[str, int], peer: str, address: Address) -> Connection:
        """One more connection to a peer, from a port where we listen. Raises TransportError."""
        sock = await connect_tcp(address, source)
        remote = (address.host, address.port)
        return await self.adopt(SocketCarrier(sock), remote, dialed=peer, from_port=source[1])

    async def dial_directly(self, peer: str, addresses: Sequence[Address]) -> Connection:
        """A connection that no relay carries, though one that a relay does is there already."""
        return await self._dial(peer, [one for one in addresses if one.relay is None])

    async def adopt(
        self,
        carrier: Carrier,
        remote: tuple[str, int],
        *,
        dialed: str | None,
        relay: str | None = None,
        from_port: int = 0,
        first: First | None = None,
    ) -> Connection:
        """Secure a carrier and take it up: as the dialer of a peer or, with None, as the dialed.

        first: shared by the dialer's handshakes of which only one is to be finished.
        Raises TransportError, RemoteError; the carrier is closed then, as when cancelled.
        """
        upgraded = None
        try:
            if dialed is None:
                upgraded = await upgrade_accepted(carrier, self._identity, self._scratch)
            else:
                claim = partial(first.claim, carrier) if first else None
                upgraded = await upgrade_dialed(
                    carrier, self._identity, dialed, self._scratch, proved=claim
                )
            host = None if relay else remote[0]
            if why := self._gate.refuses(upgraded.link.peer, host, trio.current_time()):
                upgraded = None
                raise TransportError(why)
        finally:
            if first is not None:
                first.settle(carrier, won=upgraded is not None)
            if upgraded is None:
                carrier.close()
        mux = Mux(
            upgraded.link,
            dialer=dialed is not None,
            config=self._config.mux,
            unread=self._unread,
            accept=self._on_stream,
            rtt_s=upgraded.rtt_s,
            early=upgraded.early,
        )
        now = trio.current_time()
        return self._take_up(Connection(mux, now, remote, relay, from_port, carrier.local_host))

    # ---- connections

    async def _reach(self, peer: str) -> Connection:
        connection = self._peers.best(peer)
        if connection is None:
            due = self._book.due(peer, trio.current_time())
            if not due:
                why = (
                    "its addresses failed a moment ago" if self._book.known(peer) else "no address"
                )
                raise TransportError(f"cannot reach {peer}: {why}")
            connection = await self._dial(peer, due)
        return connection

    async def _dial(self, peer: str, addresses: Sequence[Address]) -> Connection:
        if peer == self.peer_id:
            raise TransportError("that is this node itself")
        if not self.welcomes(peer):
            why = self._gate.refuses(peer, None, trio.current_time())
            raise TransportError(f"cannot reach {peer}: {why}")

        async def dial() -> Connection:
            first = First()
            with trio.move_on_after(DIAL_S):
                return await race(
                    [address for address in addresses if address.relay is None],
                    lambda address: self._attempt(peer, address, first),
                    failed=lambda address: self._book.failed(peer, address, trio.current_time()),
                    give_up=lambda connection: connection.mux.close(),
                    late=[address for address in addresses if address.relay is not None],
                )
            raise TransportError(f"no answer within {DIAL_S:.0f} s")

        return await self._dials.run(peer, addresses, dial)

    async def _attempt(self, peer: str, address: Address, first: First | None = None) -> Connection:
        carrier: Carrier
        if address.is_ip and not address.relay and self._gate.access.refuses_host(address.host):
            raise TransportError(self._gate.access.refuses_host(address.host))
        if address.relay is None:
            sock = await connect_tcp(address)
            remote = remote_of(sock)  # an address, though a name was dialed
            carrier = SocketCarrier(sock)
        else:
            carrier, remote = await self._through(address.relay, address, peer)
        connection = await self.adopt(
            carrier, remote, dialed=peer, relay=address.relay, first=first
        )
        self._book.worked(peer, address, trio.current_time())
        return connection

    async def _through(
        self, relay: str, address: Address, peer: str
    ) -> tuple[Carrier, tuple[str, int]]:
        """A stream that a relay passes on to `peer`, and where the relay is."""
        if relay in (self.peer_id, peer):
            raise TransportError("a relay cannot be one of the two ends")
        connection = self._peers.best(relay)
        if connection is None or connection.relay is not None:
            place = Address(address.kind, address.host, address.port)
            connection = await self._dial(relay, [place])
        stream = self._open(connection, HOP)
        try:
            await call_through(stream, peer)
        except BaseException:
            stream.reset_now("no way through the relay")
            raise
        return StreamCarrier(stream), connection.remote

    async def accept_forever(self, listener: socket.socket) -> None:
        """Welcome whoever connects to this listener."""
        while True:
            await trio.lowlevel.wait_readable(listener.fileno())
            try:
                sock, remote = listener.accept()
            except OSError as error:
                if error.errno in OUT_OF_DESCRIPTORS:
                    log.warning("no descriptor for another connection", reason=error.strerror)
                    await trio.sleep(PAUSE_S)  # nothing tells when one is free again
                continue  # or the peer had left already
            if self._has_room() and self._gate.admits(remote[0]):
                self._gate.handshake_began(remote[0])
                self._give_up_silent()
                scope = self._shaking[sock] = trio.CancelScope()
                self._nursery.start_soon(self._welcome, sock, (remote[0], remote[1]), scope)
            else:
                sock.close()

    def _give_up_silent(self) -> None:
        """Of too many handshakes the oldest goes: who says nothing cannot keep others out."""
        if len(self._shaking) >= self._config.limits.handshakes_max:
            oldest = next(iter(self._shaking))
            self._shaking.pop(oldest).cancel()

    async def _welcome(
        self, sock: socket.socket, remote: tuple[str, int], scope: trio.CancelScope
    ) -> None:
        """Shake hands with whoever has connected."""
        carrier = SocketCarrier(sock)
        try:
            sock.setblocking(False)
            tune(sock)
            scope.deadline = trio.current_time() + self._config.limits.handshake_s
            with scope:
                yielding = await self.yields_to(carrier, remote[0]) if self.yields_to else None
                dialed, first = yielding or (None, None)
                await self.adopt(carrier, remote, dialed=dialed, first=first)
        except (RemoteError, TransportError, OSError) as error:
            carrier.close()
            log.debug("handshake failed", remote=remote[0], reason=str(error))
        finally:
            self._shaking.pop(sock, None)
            self._gate.handshake_over(remote[0])

    def _take_up(self, connection: Connection) -> Connection:
        mux = connection.mux
        plugged = PluggedConn(mux, connection.remote, dialer=mux.dialer)
        self._plugged[mux] = plugged
        others = self._peers.of(mux.peer)
        was_relayed = bool(others) and all(other.relay for other in others)
        self._peers.add(connection)
        self._gate.connection_began(_seat(connection))
        self._nursery.start_soon(self._run, connection)
        self._nursery.start_soon(self.libp2p.run, plugged)
        for tell in self.came:
            tell(connection)
        if was_relayed and connection.relay is None:
            for tell_of in list(self.on_direct):
                tell_of(mux.peer)
        return connection

    async def _run(self, connection: Connection) -> None:
        """One connection's whole life."""
        peer = connection.mux.peer
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._introductions.ask, connection)
                await connection.mux.run()
                nursery.cancel_scope.cancel()
        finally:
            self._gate.connection_over(_seat(connection))
            self._plugged.pop(connection.mux).ended.set()
            self._peers.remove(connection)
            log.debug("connection over", peer=peer, reason=str(connection.mux.failure))
            connection.asked.set()
            connection.over.set()

    def _has_room(self) -> bool:
        """Whether one more connection may come, if need be in the place of an idle one."""
        if not self._gate.is_full:
            return True
        idlest = self._peers.idlest()
        if idlest is None or idlest.idle_ticks < IDLE_TICKS:
            return False
        idlest.mux.close()
        return True

    async def tick_forever(self) -> None:
        """Once a second: look after every connection."""
        while True:
            await trio.sleep(TICK_S)
            self._peers.tick()
            self._introductions.tick()

    def close_all(self) -> None:
        for connection in self._peers.all():
            connection.mux.close()

    # ---- streams

    def _open(self, connection: Connection, protocol: str) -> MuxStream:
        stream = connection.mux.open()
        stream.preface = proposal(protocol)
        stream.answer = Answer(protocol)
        return stream

    def _on_stream(self, stream: MuxStream) -> None:
        if self._inbound_streams >= self._config.limits.inbound_streams_max:
            crowd = max((one.mux for one in self._peers.all()), key=lambda mux: len(mux.streams))
            if crowd is stream.mux:
                stream.reset_now("too many streams")
                return
            crowd.shed("others want a stream too")
        self._inbound_streams += 1
        self._nursery.start_soon(self._serve, stream)

    async def _serve(self, stream: MuxStream) -> None:
        """Negotiate a peer's stream, and run its handler."""
        done = False
        try:
            handler: Handler | None = None
            with trio.move_on_after(self._config.limits.negotiation_s):
                handler = await self._negotiate(stream)
            if handler is not None:
                await handler(stream)
                done = True
        except (RemoteError, TransportError, Refused) as error:
            self._blame(stream, error)
        except BaseExceptionGroup as group:
            theirs, ours = group.split((RemoteError, TransportError, Refused))
            if ours is not None:
                raise
            for fault in theirs.exceptions if theirs else ():
                self._blame(stream, fault)
        finally:
            self._inbound_streams -= 1
            if done:
                stream.close_now()
            else:
                stream.reset_now("its handler failed")

    async def _negotiate(self, stream: MuxStream) -> Handler:
        listener = Listener(self._speaks)
        while True:
            piece = await stream.receive()
            if not piece:
                raise TransportError("the peer left before it said what it wanted")
            reply = listener.feed(piece)
            if listener.chosen is not None:
                break
            if reply:
                await stream.send(reply)
        if listener.data:  # the dialer did not wait for our yes, so it may go with the answer
            stream.push_back(bytes(listener.data))
            stream.preface = reply
        else:
            await stream.send(reply)
        return self._handlers.get(listener.chosen) or self._libp2p_handler(stream, listener.chosen)

    def _speaks(self, protocol: str) -> bool:
        return protocol in self._handlers or protocol in self.libp2p.protocols

    def _libp2p_handler(self, stream: MuxStream, protocol: str) -> Handler:
        plugged = self._plugged[stream.mux]
        return lambda _: self.libp2p.serve(plugged, stream, protocol)

    def _blame(self, stream: MuxStream, error: BaseException) -> None:
        log.debug("stream failed", peer=stream.peer, reason=str(error))
        if isinstance(error, RemoteError) and self._gate.fault(stream.peer, trio.current_time()):
            log.warning("banned", peer=stream.peer, reason=str(error))
            self.disconnect(stream.peer)

    def _protocols(self) -> list[str]:
        return sorted({*self._handlers, *self.libp2p.protocols})

    def _heard(self, connection: Connection, claims: identify.Claims) -> None:
        """What a peer has said about itself."""
        connection.claims = claims
        self._book.learn(connection.mux.peer, claims.addresses)
        self.libp2p.learn(claims, connection.mux.peer)


@asynccontextmanager
async def open_host(config: HostConfig) -> AsyncIterator[Host]:
    """Listen, and close everything on leaving. Raises UserError when a port is in use.

    A fault of a handler cancels the body and is raised here.
    """
    listeners = listening(config.listen)
    try:
        async with trio.open_nursery() as nursery:
            host = Host(config, listeners, nursery)
            host.libp2p = await nursery.start(run_libp2p, config.seed, host.dial_known)
            for listener in listeners:
                nursery.start_soon(host.accept_forever, listener)
            nursery.start_soon(host.tick_forever)
            try:
                yield host
            finally:
                host.close_all()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _only(group) from None
    finally:
        for listener in listeners:
            trio.lowlevel.notify_closing(listener.fileno())
            listener.close()


def _seat(connection: Connection) -> str:
    """From where a connection is counted: over a relay, from nowhere, for reservations bound it."""
    return LOOPBACK if connection.relay else connection.remote[0]


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception in a group of one, so that callers can catch it by its name."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found
