"""Being reachable through others: two or three reservations at relays, kept fresh.

The client's side of circuit relay v2. A reservation is asked for on a connection dialed from the
port where we listen, so that the relay sees, and keeps open, the mapping that a NAT gives that
port: what the relay observes is where a punch will go (punch.py). It is renewed at half its time,
and another relay is asked as soon as one is lost. A relay that vouches falsely is not used, and
has committed a fault (guard.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import trio

from ...errors import RemoteError, TransportError
from ..log import get_logger
from .address import Address
from .carrier import StreamCarrier
from .circuit import (
    HOP,
    HOP_STATUS,
    RESERVE,
    STOP,
    STOP_CONNECT,
    STOP_STATUS,
    Message,
    Status,
    check_voucher,
    decode_hop,
    decode_stop,
    encode_hop,
    encode_stop,
    name,
    receive_message,
    send_message,
)
from .host import Host
from .mux_stream import MuxStream
from .peers import Connection
from .stream import Stream

log = get_logger()

WORDS_S = 10.0  # for a relay to answer
LIVE_S_MIN = 60.0  # a reservation of less is worth nothing
TRY_AGAIN_S = 30.0  # a relay that refused
FALSE_AGAIN_S = 3600.0  # guess: one that said what no honest relay says
CIRCUITS_MAX = 64  # that others hold to us through relays, in all


@dataclass(slots=True)
class _Held:
    """A reservation of ours. until, renew: by trio's clock."""

    places: tuple[Address, ...]  # where others find the relay: one of each family
    connection: Connection
    renew: float
    until: float


class Reservations:
    """What we hold at relays. `tend` is called every second or so."""

    def __init__(
        self,
        host: Host,
        *,
        wanted: int,
        source: Callable[[Address], tuple[str, int] | None],
        usable: Callable[[str], bool],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """source: from which port to dial an address; usable: whether a relay may be there."""
        self._host = host
        self._wanted = wanted
        self._source = source
        self._usable = usable
        self._wall = wall
        self._held: dict[str, _Held] = {}
        self._not_before: dict[str, float] = {}
        self._circuits = 0
        host.handle(STOP, self._take_call)

    @property
    def relays(self) -> tuple[str, ...]:
        return tuple(self._held)

    def addresses(self) -> tuple[Address, ...]:
        """Where we can be dialed through relays."""
        return tuple(
            replace(place, peer=None, relay=relay)
            for relay, held in self._held.items()
            for place in held.places
        )

    async def tend(self) -> bool:
        """Renew, replace, reserve as needed; whether anything has changed."""
        before = self.addresses()
        now = trio.current_time()
        for relay, held in list(self._held.items()):
            if held.connection.mux.failure is not None or held.until <= now:
                log.info("relay lost", relay=relay)
                del self._held[relay]
            elif held.renew <= now:
                await self._renew(relay, held)
        for relay in self._candidates():
            if len(self._held) >= self._wanted:
                break
            await self._try(relay)
        self._host.keep(STOP, set(self._held))
        return self.addresses() != before

    def release(self) -> None:
        """Hold nothing any more: we can be dialed."""
        self._held.clear()
        self._host.keep(STOP, set())

    async def _renew(self, relay: str, held: _Held) -> None:
        held.renew = trio.current_time() + TRY_AGAIN_S  # if this fails; it holds for as long again
        try:
            with trio.fail_after(WORDS_S):
                await self._ask(relay, held.connection)
        except RemoteError as error:
            self._distrust(relay, error)
        except (TransportError, trio.TooSlowError) as error:
            log.debug("reservation not renewed", relay=relay, reason=str(error))

    def _distrust(self, relay: str, error: RemoteError) -> None:
        """It is the relay's fault: what we hold there is let go, and it is not asked for long."""
        self._held.pop(relay, None)
        self._not_before[relay] = trio.current_time() + FALSE_AGAIN_S
        log.warning("false relay", relay=relay, reason=str(error))
        self._host.blame(relay, error)

    def _candidates(self) -> list[str]:
        """Connected peers that say that they relay, the nearest first."""
        now = trio.current_time()
        self._not_before = {peer: at for peer, at in self._not_before.items() if at > now}
        found = []
        for connection in self._host.connections():
            peer = connection.mux.peer
            ready = peer not in self._not_before and peer not in self._held
            near = connection.relay is None and self._usable(connection.remote[0])
            if ready and near and connection.speaks(HOP):
                found.append((connection.mux.rtt_s, peer))
        return list(dict.fromkeys(peer for _, peer in sorted(found)))

    async def _try(self, relay: str) -> None:
        try:
            with trio.fail_after(WORDS_S):
                connection = await self._from_our_port(relay)
                await self._ask(relay, connection)
        except RemoteError as error:
            self._distrust(relay, error)
        except (TransportError, trio.TooSlowError) as error:
            self._not_before[relay] = trio.current_time() + TRY_AGAIN_S
            log.debug("no reservation", relay=relay, reason=str(error))

    async def _from_our_port(self, relay: str) -> Connection:
        """A connection to a relay from where we listen: the one there is, or one more."""
        connections = [one for one in self._host.connections(relay) if one.relay is None]
        for connection in connections:
            if connection.from_port and connection.mux.failure is None:
                return connection
        if not connections:
            raise TransportError("it has left")
        dialed = [one for one in connections if one.mux.dialer] or connections
        claims = dialed[0].claims
        places = self._places(dialed[0], claims.addresses if claims else ())
        for place in places:
            source = self._source(place)
            if source is None:
                continue
            try:
                return await self._host.dial_from(source, relay, place)
            except (TransportError, RemoteError, OSError) as error:
                log.debug("not from our port", relay=relay, reason=str(error))
        return dialed[0]  # better seen from any port than not at all

    def _places(self, connection: Connection, claimed: Sequence[Address]) -> list[Address]:
        """Where a relay listens: where we dialed it, and where it says, one place a family.

        Callers may have one family alone.
        """
        told = [one for one in claimed if one.is_ip and not one.relay and self._usable(one.host)]
        dialed = connection.listens_at
        by_kind: dict[str, Address] = {}
        for one in [dialed, *told] if dialed else told:
            by_kind.setdefault(one.kind, one.bare)
        return list(by_kind.values())

    async def _ask(self, relay: str, connection: Connection) -> None:
        """Reserve, or renew. Raises TransportError, RemoteError."""
        stream = self._host.open_on(connection, HOP)
        try:
            await send_message(stream, encode_hop(Message(RESERVE)))
            answer = decode_hop(await receive_message(stream))
        finally:
            stream.close_now()
        if answer.kind != HOP_STATUS or answer.status != Status.OK or answer.reservation is None:
            raise TransportError(f"the relay says {name(answer.status or 0)}")
        lasts_s = answer.reservation.expires_s - self._wall()
        if lasts_s < LIVE_S_MIN:
            raise TransportError(f"a reservation of {lasts_s:.0f} s")
        signed = answer.reservation.voucher
        if signed:  # a relay need not send one
            check_voucher(signed, relay=relay, peer=self._host.peer_id, now=self._wall())
        places = self._places(connection, answer.reservation.addresses)
        if not places:
            raise TransportError("the relay cannot be dialed by others")
        now = trio.current_time()
        self._held[relay] = _Held(tuple(places), connection, now + lasts_s / 2, now + lasts_s)

    async def _take_call(self, stream: Stream) -> None:
        """A relay passes somebody on to us: their connection, inside this stream."""
        assert isinstance(stream, MuxStream)
        message, held = Message(STOP_STATUS), None
        with trio.move_on_after(WORDS_S):
            message = decode_stop(await receive_message(stream))
            if message.kind != STOP_CONNECT or message.peer is None:
                await self._say(stream, Status.UNEXPECTED_MESSAGE)
                raise RemoteError("a relay that calls for nobody")
            held = self._held.get(stream.peer)
            if held is None or self._circuits >= CIRCUITS_MAX:
                await self._say(stream, Status.PERMISSION_DENIED)
                return
            await self._say(stream, Status.OK)
        if message.peer is not None and held is not None:
            await self._hold(stream, message.peer, held.connection.remote)

    async def _hold(self, stream: MuxStream, caller: str, remote: tuple[str, int]) -> None:
        """Shake hands with the caller, and stay until its connection is over."""
        self._circuits += 1
        try:
            connection = None
            with trio.move_on_after(WORDS_S):
                connection = await self._host.adopt(
                    StreamCarrier(stream), remote, dialed=None, relay=stream.peer
                )
            if connection is None:
                raise TransportError(f"{caller} did not shake hands in {WORDS_S:.0f} s")
            if connection.mux.peer != caller:
                connection.mux.close()
                raise RemoteError(f"{connection.mux.peer} came where {caller} was announced")
            await connection.over.wait()
        finally:
            self._circuits -= 1

    async def _say(self, stream: MuxStream, status: Status) -> None:
        await send_message(stream, encode_stop(Message(STOP_STATUS, status=status)))
