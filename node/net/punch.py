"""From a relayed connection to a direct one: both ends dial at the same moment, from where they
listen, so that each NAT takes the other's SYN for an answer. libp2p's DCUtR, over TCP.

Source: github.com/libp2p/specs/blob/master/relay/DCUtR.md; Ford, Srisuresh and Kegel, 2005.

    called (B)                      over the relay                      caller (A)
    CONNECT{where B is seen}  ──────────────────────────────▶
                              ◀──────────────────────────────  CONNECT{where A is seen}
    SYNC                      ──────────────────────────────▶
    waits half a round trip, dials                                      dials at once

Whatever TCP makes of it, A is the client and B the server of what follows. If B's SYN was first and
A's NAT let it in, A finds a connection on its listener on which nobody speaks, for B waits for the
client's first words: then A speaks (`yields_to`). So NATs are opened, too, behind which a port
cannot be foretold, if the other's lets any port in. Both SYNs may get through: of the connections
that come of one punch A, who speaks first on each, finishes one (`First`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from ...errors import RemoteError, TransportError
from ..log import get_logger
from . import protobuf
from .address import Address
from .carrier import Carrier, SocketCarrier
from .circuit import MESSAGE_BYTES_MAX, receive_message, send_message
from .dialer import First, connect_tcp
from .host import Host
from .identify import from_binary, to_binary
from .mux_stream import MuxStream
from .observed import is_public
from .peers import Connection
from .ports import Ports
from .stream import Stream

log = get_logger()

PROTOCOL: Final = "/libp2p/dcutr"
CONNECT, SYNC = 100, 300
ROUNDS: Final = 3  # the specification's
ROUND_S: Final = 4.0  # of dialing; a SYN that was too early is sent again after 1 s by the kernel
FIRST_TRY_S: Final = 0.35  # then the SYN is sent anew, with twice the patience each time
AFTER_REFUSAL_S: Final = 0.05  # a NAT without a mapping yet may answer with a reset
SILENCE_S: Final = 0.4  # on an accepted connection, after which it is we who speak first
WORDS_S: Final = 10.0
DIRECT_S: Final = 2.0  # for a dial of what the peer says of itself, before anything else
ADDRESSES_MAX: Final = 4
PUNCHES_MAX: Final = 32  # at once: who names addresses shall not have us knock hard at any of them
TURN_S: Final = 1.0  # for the round before to end


@dataclass(slots=True)
class _Punch:
    """One under way."""

    came: trio.Event = field(default_factory=trio.Event)  # the peer is there directly
    first: First = field(default_factory=First)


class Puncher:
    """Turns relayed connections into direct ones, for as long as the host lives."""

    def __init__(self, host: Host, ports: Ports, *, local: bool = False) -> None:
        self._host = host
        self._ports = ports
        self._local = local
        # host that a peer may dial from: the peer, which is the server of what follows
        self._calling: dict[str, tuple[str, First]] = {}
        self._punches: dict[str, _Punch] = {}  # by peer
        self._rounds: dict[tuple[str, bool], trio.Event] = {}  # under way; set when over
        self.tried = 0
        self.opened = 0
        host.handle(PROTOCOL, self._serve)
        host.yields_to = self._yields_to
        host.came.append(self._on_connection)

    def _on_connection(self, connection: Connection) -> None:
        peer = connection.mux.peer
        if connection.relay is None:
            if peer in self._punches:
                self._punches[peer].came.set()
        elif connection.mux.dialer:
            self._host.nursery.start_soon(self._prepare, connection)
        else:
            self._host.nursery.start_soon(self._upgrade, connection)

    async def _prepare(self, connection: Connection) -> None:
        """Know how we are seen before the other asks."""
        await self._ports.ensure(self._observers(connection))

    def _observers(self, connection: Connection) -> list[Connection]:
        """Who may tell how we are seen: the relay, for it is there; others if need be."""
        best = self._host.best(connection.relay or "")
        return [best] if best is not None and best.relay is None else []

    # ---- the called one's side

    async def _upgrade(self, connection: Connection) -> None:
        peer = connection.mux.peer
        self.tried += 1
        try:
            with trio.move_on_after(WORDS_S):
                await connection.asked.wait()
                await self._ports.ensure(self._observers(connection))
            if await self._plainly(connection):
                return
            await self._while_direct(connection)
            for _ in range(ROUNDS if connection.speaks(PROTOCOL) else 0):
                if connection.mux.failure is not None or self._is_direct(peer):
                    break
                if await self._round(connection):
                    self.opened += 1
                    log.info("direct now", peer=peer)
                    return
        except (TransportError, RemoteError) as error:
            log.debug("stays relayed", peer=peer, reason=str(error))

    async def _while_direct(self, connection: Connection) -> None:
        """Wait: why would a peer call over a relay while it is direct? That one may be dead."""
        while connection.mux.failure is None:
            best = self._host.best(connection.mux.peer)
            if best is None or best.relay is not None:
                return
            async with trio.open_nursery() as nursery:

                async def until(event: trio.Event, scope: trio.CancelScope) -> None:
                    await event.wait()
                    scope.cancel()

                nursery.start_soon(until, best.over, nursery.cancel_scope)
                nursery.start_soon(until, connection.over, nursery.cancel_scope)

    async def _plainly(self, connection: Connection) -> bool:
        """Whether the caller can simply be dialed, where it says it is public."""
        claims = connection.claims
        places = [one for one in claims.addresses if self._worth(one)] if claims else []
        if not places:
            return False
        with trio.move_on_after(DIRECT_S):
            try:
                await self._host.dial_at(connection.mux.peer, places)
                return True
            except (TransportError, RemoteError) as error:
                log.debug("cannot simply be dialed", reason=str(error))
        return False

    async def _round(self, connection: Connection) -> bool:
        """One exchange and one punch; whether we are direct then."""
        stream = self._host.open_on(connection, PROTOCOL)
        try:
            with trio.fail_after(WORDS_S):
                began = trio.current_time()
                await send_message(stream, _encode(CONNECT, self._ports.predicted()))
                kind, places = _decode(await receive_message(stream))
                if kind != CONNECT:
                    raise RemoteError("an answer to CONNECT that is none")
                # the peer may have taken its time to look; the handshake's round trip did not wait
                rtt_s = min(trio.current_time() - began, connection.mux.rtt_s)
                await send_message(stream, _encode(SYNC, []))
        except trio.TooSlowError as error:
            raise TransportError("no answer to CONNECT") from error
        finally:
            stream.close_now()
        await trio.sleep(rtt_s / 2)  # the specification's: until SYNC has arrived there
        return await self._punch(connection.mux.peer, places, client=False)

    # ---- the caller's side

    async def _serve(self, stream: Stream) -> None:
        assert isinstance(stream, MuxStream)
        found = [one for one in self._host.connections(stream.peer) if one.mux is stream.mux]
        if not found or found[0].relay is None:
            raise RemoteError("a punch on a connection that is direct")
        places: list[Address] | None = None
        with trio.move_on_after(WORDS_S):
            places = await self._agree(stream, found[0])
        if places is None:
            raise TransportError("no word of a punch in time")
        await self._punch(stream.peer, places, client=True)

    async def _agree(self, stream: MuxStream, connection: Connection) -> list[Address]:
        """The called one's places, once it has said SYNC."""
        kind, places = _decode(await receive_message(stream))
        if kind != CONNECT:
            raise RemoteError("a punch that does not begin with CONNECT")
        await self._ports.ensure(self._observers(connection))
        await send_message(stream, _encode(CONNECT, self._ports.predicted()))
        kind, _ = _decode(await receive_message(stream))
        if kind != SYNC:
            raise RemoteError("a punch without SYNC")
        return places

    # ---- both

    async def _punch(self, peer: str, places: list[Address], *, client: bool) -> bool:
        """Dial all places, again and again, for ROUND_S; whether a direct connection came of it."""
        if self._is_direct(peer):
            return True  # the other's SYN was let in before we began
        worth = [one for one in places if self._worth(one)][:ADDRESSES_MAX]
        async with self._one_round(peer, client):
            if self._is_direct(peer):
                return True  # the round before has opened the way
            return await self._dial_all(peer, worth, client)

    @asynccontextmanager
    async def _one_round(self, peer: str, client: bool) -> AsyncIterator[None]:
        """One at a time with each peer, and few in all. Raises TransportError when it is not so."""
        turn = (peer, client)
        with trio.move_on_after(TURN_S):
            while turn in self._rounds:
                await self._rounds[turn].wait()
        if turn in self._rounds or len(self._rounds) >= PUNCHES_MAX:
            raise TransportError("other punches are under way")
        over = self._rounds[turn] = trio.Event()
        try:
            yield
        finally:
            del self._rounds[turn]
            over.set()

    async def _dial_all(self, peer: str, worth: list[Address], client: bool) -> bool:
        """The round itself."""
        found = self._punches.setdefault(peer, _Punch())
        waits = (peer, found.first)
        if client:
            self._calling.update(dict.fromkeys((one.host for one in worth), waits))
        try:
            with trio.move_on_after(ROUND_S):
                async with trio.open_nursery() as nursery:
                    for place in worth:
                        nursery.start_soon(self._dial, peer, place, found.first if client else None)
                    await found.came.wait()
                    nursery.cancel_scope.cancel()
        finally:
            if self._punches.get(peer) is found:
                del self._punches[peer]
            for one in worth:
                if self._calling.get(one.host) == waits:  # else another's behind the same NAT
                    del self._calling[one.host]
        return found.came.is_set()

    async def _dial(self, peer: str, place: Address, first: First | None) -> None:
        """One place, until the round is over. first: None for the server."""
        source = self._ports.source(place)
        if source is None:
            return
        self._ports.touch(place.host)
        patience_s = FIRST_TRY_S
        while True:
            sock = None
            with trio.move_on_after(patience_s):
                try:
                    sock = await connect_tcp(place, source)
                except TransportError as error:
                    log.debug("punch refused", place=str(place), reason=str(error))
                    await trio.sleep(AFTER_REFUSAL_S)  # its NAT may open in the next moment
            if sock is None:
                patience_s *= 2
                continue
            try:
                carrier = SocketCarrier(sock)
                remote = (place.host, place.port)
                connection = await self._host.adopt(
                    carrier,
                    remote,
                    dialed=None if first is None else peer,
                    from_port=source[1],
                    first=first,
                )
                if connection.mux.peer == peer:
                    return
                connection.mux.close()
            except (TransportError, RemoteError) as error:
                log.debug("punched, but no handshake", place=str(place), reason=str(error))
                await trio.sleep(AFTER_REFUSAL_S)

    async def _yields_to(self, carrier: Carrier, host: str) -> tuple[str, First] | None:
        """Who waits for our first words on a connection that came; None: it speaks itself."""
        found = self._calling.get(host)
        if found is None:
            return None
        with trio.move_on_after(SILENCE_S):
            await carrier.readable()
            return None
        return found

    def _is_direct(self, peer: str) -> bool:
        best = self._host.best(peer)
        return best is not None and best.relay is None

    def _worth(self, place: Address) -> bool:
        """Private addresses are not dialed: beyond two NATs they are somebody else's."""
        return place.is_ip and not place.relay and (self._local or is_public(place.host))


def _encode(kind: int, places: Iterable[Address]) -> bytes:
    seen = b"".join(protobuf.field(2, to_binary(place)) for place in places)
    return protobuf.field(1, kind) + seen


def _decode(raw: bytes) -> tuple[int, list[Address]]:
    """Raises RemoteError."""
    if len(raw) > MESSAGE_BYTES_MAX:
        raise RemoteError(f"a message of {len(raw)} bytes")
    found = protobuf.fields(raw)
    kind = found.get(1, [0])[-1]
    places = [from_binary(value) for value in found.get(2, [])]
    if not isinstance(kind, int):
        raise RemoteError("a punch of no kind")
    return kind, [place for place in places if place is not None]
