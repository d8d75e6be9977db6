"""Peers and streams: the one place through which this node meets others.

    open_stream ──▶ outbound.py: the connection, dialed when there is none ──▶ Stream
    listener ──▶ door.py ──▶ upgrade (noise, yamux) ──▶ Mux ──▶ inbound.py ──▶ handler, a task each

The wire is libp2p's (TCP, multistream, Noise XX, yamux, identify, ping; Ed25519 identities), so
its other implementations are peers of ours. Every connection is py-libp2p's too (plug.py): whatever
protocol has a handler there is served beside our own. A handler's RemoteError, TransportError or
Refused ends its stream; any other exception is our own fault and ends the host.
"""

import socket
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from ...dht.network import Prefixes
from ...errors import RemoteError, TransportError, only
from ..log import get_logger
from . import identify
from .access import Access
from .address import Address, listening, parse_all, parse_known, reachable
from .book import AddressBook
from .carrier import Carrier
from .dialer import First, connect_tcp
from .door import Door, Yielding
from .guard import Gate, Limits, Unread
from .inbound import Handler, Inbound
from .introductions import Introductions
from .mux import Mux
from .mux_config import MuxConfig
from .mux_stream import MuxStream
from .negotiate import Answer, proposal
from .noise import Identity, Scratch
from .observed import NatReport, is_public
from .outbound import Outbound
from .pace import Pace
from .peers import Connection, Peers
from .plug import Libp2p, PluggedConn, run_libp2p
from .stream import Stream
from .upgrade import upgrade
from .websocket import carry

TICK_S = 1.0

log = get_logger()


@dataclass(frozen=True, slots=True)
class HostConfig:
    """Who this host is, where it listens, and what it lets peers take."""

    seed: bytes = field(repr=False)  # the Ed25519 seed of the identity key, 32 bytes
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)  # whom the owner bars, or admits alone
    mux: MuxConfig = field(default_factory=MuxConfig)
    pace: Pace = field(default_factory=Pace)  # bytes a second, as the owner allows


class Host:
    """Opens streams to peers and hands theirs to handlers."""

    libp2p: Libp2p  # set by open_host, before the first connection

    def __init__(
        self, config: HostConfig, listeners: list[socket.socket], nursery: trio.Nursery
    ) -> None:
        self._config = config
        self.identity = Identity(config.seed, config.access.swarm_key)
        self.peer_id = self.identity.peer_id
        self._listeners = listeners
        self._own = reachable(listeners)  # as of the last tick
        self._nursery = nursery
        self._scratch = Scratch()
        self._gate = Gate(config.limits, config.access)
        self._unread = Unread(
            connection_bytes_max=config.limits.unread_bytes_per_connection_max,
            total_bytes_max=config.limits.unread_bytes_max,
        )
        self._peers = Peers(self.peer_id)
        self._book = AddressBook()
        self._outbound = Outbound(self, self._gate, self._peers, self._book)
        self._inbound = Inbound(self, config.limits)
        self._door = Door(self, config.limits, self._gate, self._peers)
        self._published: tuple[Address, ...] = ()
        self._closed: Collection[str] = ()
        self.nat = NatReport()
        self.work = b""  # that we paid for our identity, as identify says it
        self.on_direct: list[Callable[[str], None]] = []  # told of a peer that was relayed till now
        self.came: list[Callable[[Connection], None]] = []  # told of each new connection
        self.yields_to: Yielding | None = None  # whom to dial back on a connection they dialed
        self.plugged: dict[Mux, PluggedConn] = {}  # each connection, as libp2p knows it
        self._introductions = Introductions(
            self, self.identity.key.public, protocols=self._inbound.protocols, heard=self._heard
        )
        self.handle(identify.IDENTIFY, self._introductions.say)
        self.handle(identify.PUSH, self._introductions.hear)
        self.handle(identify.PING, identify.echo_pings)

    # ---- for the node

    def addresses(self) -> tuple[str, ...]:
        """Where we can be dialed: full multiaddrs, those of other machines' reach first."""
        return tuple(f"{address}/p2p/{self.peer_id}" for address in self.places())

    def places(self) -> list[Address]:
        """The same, parsed and without our id."""
        shut = self._closed
        own = [one for one in self._own if one.kind not in shut or not is_public(one.host)]
        return list(dict.fromkeys([*self._published, *own]))

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

    def where(self, peer: str) -> Prefixes:
        """The network that a direct connection shows this peer in; NOWHERE where none does."""
        return self._peers.where(peer)

    def welcomes(self, peer: str) -> bool:
        """Whether we have to do with this peer: no owner, evidence or fault of it bars it."""
        return self._gate.welcomes(peer, trio.current_time())

    def admit(self, access: Access) -> list[Connection]:
        """Have to do with these alone from now on; the others are sent away, and returned."""
        self._gate.access = access
        return self._door.turn_out()

    def shun(self, convicted: Callable[[str], bool]) -> None:
        """Have nothing to do with these peers from now on; call it again when there are more."""
        self._gate.convicted = convicted
        self._door.turn_out()

    def learn(self, peer: str, addresses: Sequence[str]) -> None:
        """Remember where a peer may be dialed; what cannot be dialed is passed over."""
        found = parse_known(addresses, peer)
        if found:
            self._book.learn(peer, found)

    def handle(self, protocol: str, handler: Handler) -> None:
        """Give every stream that a peer opens for `protocol` to `handler`, in a task of its own."""
        self._inbound.handlers[protocol] = handler

    def unhandle(self, protocol: str) -> None:
        """Serve `protocol` no more; streams that are open go on."""
        self._inbound.handlers.pop(protocol, None)

    async def connect(self, addresses: Sequence[str]) -> str:
        """Connect to the one peer that all these addresses name; return its id.

        Raises TransportError.
        """
        peer, found = parse_all(addresses)
        if self._peers.best(peer) is None:
            await self._outbound.dial(peer, found)
        return peer

    async def open_stream(self, peer: str, protocol: str) -> Stream:
        """A stream to a peer that is connected, or known and dialed now. Raises TransportError.

        The peer hears of it with the first bytes sent, or the first receive: no round trip is lost.
        That it does not speak `protocol` shows in the first receive, as TransportError.
        """
        return self.open_on(await self._outbound.reach(peer), protocol)

    async def dial_known(self, peer: str) -> None:
        """Connect to a peer by the addresses that we know of it. Raises TransportError."""
        await self._outbound.reach(peer)

    def disconnect(self, peer: str) -> None:
        """End every connection to a peer, and all streams on them."""
        for connection in self._peers.of(peer):
            connection.mux.close()

    def blame(self, peer: str, error: RemoteError) -> None:
        """Count what a peer did as its fault; one with too many is sent away for a while."""
        if self._gate.fault(peer, trio.current_time()):
            log.warning("banned", peer=peer, reason=str(error))
            self.disconnect(peer)

    def forgive(self, peer: str | None = None) -> None:
        """Dial a peer, or all, as if no dial had failed: our own network was away."""
        self._book.forgive(peer)

    def acquaintances(self) -> list[str]:
        """Whom we are connected to: who is to be kept first, then by their last use."""
        return self._peers.acquaintances()

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
        self._own = reachable(self._listeners)
        for listener in found:
            self._nursery.start_soon(self._door.accept_forever, listener)

    def start(self) -> None:
        """Let peers in, and look after connections, for as long as the host lives."""
        for listener in self._listeners:
            self._nursery.start_soon(self._door.accept_forever, listener)
        self._nursery.start_soon(self._tick_forever)

    @property
    def nursery(self) -> trio.Nursery:
        """Of tasks that live as long as the host."""
        return self._nursery

    def publish(self, addresses: Sequence[Address], closed: Collection[str] = ()) -> None:
        """Where else we can be dialed: beyond a NAT, through a relay. Replaces the last ones.

        closed: families (ip4, ip6) whose listeners here no stranger can dial.
        """
        self._published, self._closed = tuple(addresses), closed

    def connections(self, peer: str | None = None) -> list[Connection]:
        """All that are open, or those to one peer."""
        return self._peers.all() if peer is None else self._peers.of(peer)

    def best(self, peer: str) -> Connection | None:
        """The connection that new streams to a peer take: a direct one, if there is any."""
        return self._peers.best(peer)

    def keep(self, why: str, peers: set[str]) -> None:
        """Whose connections are not to be given up while idle. Replaces the last of this reason."""
        self._peers.keep(why, peers)

    def open_on(self, connection: Connection, protocol: str) -> MuxStream:
        """As `open_stream`, on this very connection. Raises TransportError."""
        stream = connection.mux.open()
        stream.preface = proposal(protocol)
        stream.answer = Answer(protocol, connection.behind)
        return stream

    async def dial_from(self, source: tuple[str, int], peer: str, address: Address) -> Connection:
        """One more connection to a peer, from a port where we listen. Raises TransportError."""
        carrier = await carry(await connect_tcp(address, source), address)
        where = (address.host, address.port)
        return await self.adopt(carrier, where, dialed=peer, from_port=source[1], place=address)

    async def dial_at(self, peer: str, addresses: Sequence[Address]) -> Connection:
        """A connection by these addresses, though there may be one by others already."""
        return await self._outbound.dial(peer, addresses)

    async def adopt(
        self,
        carrier: Carrier,
        remote: tuple[str, int],
        *,
        dialed: str | None,
        relay: str | None = None,
        from_port: int = 0,
        first: First | None = None,
        place: Address | None = None,
    ) -> Connection:
        """Secure a carrier and take it up: as the dialer of a peer or, with None, as the dialed.

        first: shared by the dialer's handshakes of which only one is to be finished. place: dialed.
        Raises TransportError, RemoteError; the carrier is closed then, as when cancelled.
        """
        upgraded = None
        carrier = self._config.pace.over(carrier)
        try:
            upgraded = await upgrade(carrier, self.identity, dialed, self._scratch, first)
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
            accept=self._inbound.take,
            rtt_s=upgraded.rtt_s,
            early=upgraded.early,
        )
        now, here = trio.current_time(), carrier.local_host
        return self._take_up(Connection(mux, now, remote, relay, from_port, here, place))

    # ---- connections

    def _take_up(self, connection: Connection) -> Connection:
        mux = connection.mux
        plugged = PluggedConn(mux, connection.remote, dialer=mux.dialer)
        self.plugged[mux] = plugged
        others = self._peers.of(mux.peer)
        was_relayed = bool(others) and all(other.relay for other in others)
        for other in others:
            other.mux.doubt()
        self._peers.add(connection)
        self._gate.connection_began(connection.seat)
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
            self._gate.connection_over(connection.seat)
            self.plugged.pop(connection.mux).ended.set()
            self._peers.remove(connection)
            log.debug("connection over", peer=peer, reason=str(connection.mux.failure))
            connection.asked.set()
            connection.over.set()

    async def _tick_forever(self) -> None:
        """Once a second: look after every connection."""
        while True:
            await trio.sleep(TICK_S)
            self._own = reachable(self._listeners)  # interfaces come and go
            self._peers.tick()
            self._introductions.tick()

    def close_all(self) -> None:
        for connection in self._peers.all():
            connection.mux.close()

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
            host.start()
            try:
                yield host
            finally:
                host.close_all()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise only(group) from None
    finally:
        for listener in listeners:
            trio.lowlevel.notify_closing(listener.fileno())
            listener.close()
