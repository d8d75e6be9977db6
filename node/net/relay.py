"""Passing streams on for peers that nobody can dial: the relay's side of circuit relay v2.

Source: github.com/libp2p/specs/blob/master/relay/circuit-v2.md; the numbers are go-libp2p's where
they are not about model traffic. Everything that is given away has a bound: how many reservations
in all and from one network, how many circuits of one peer, the bytes and seconds of each circuit,
and the bytes of a peer, and of a network, in an hour. A reservation is the peer's at the other end
of the stream, whatever its message says (py-libp2p believes the message: N5 of the audit), and ends
with that peer's connection.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import trio

from ...crypto.keys import IdentityKey
from ...errors import RemoteError, TransportError
from ..log import get_logger
from .access import subnet
from .circuit import (
    HOP,
    HOP_CONNECT,
    HOP_STATUS,
    RESERVE,
    STOP,
    STOP_CONNECT,
    STOP_STATUS,
    Limit,
    Message,
    Reservation,
    Status,
    decode_hop,
    decode_stop,
    encode_hop,
    encode_stop,
    name,
    receive_message,
    send_message,
    voucher,
)
from .host import Host
from .mux_stream import MuxStream
from .peers import Connection
from .stream import Stream

log = get_logger()

MIB = 1 << 20
PIECE_BYTES = 64 * 1024
WORDS_S = 10.0  # for a peer to say what it wants, and for the called one to agree
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What a relay gives away."""

    reservations_max: int = 128  # go-libp2p
    reservations_per_subnet_max: int = 8  # go-libp2p, by address; a /24 here
    reservation_s: float = 3600.0  # go-libp2p
    circuits_max: int = 256
    circuits_per_peer_max: int = 16  # go-libp2p
    circuit_s: float = 1800.0  # guess: a long answer; go-libp2p's 120 s would cut it
    # Each way. One token of a model of width 8192 in f16 is 16 KiB: this is 4,096 of them, prompt
    # and answer, and then the session fails over; go-libp2p's 128 KiB would be eight tokens.
    circuit_bytes: int = 64 * MIB
    peer_bytes_per_hour: int = 512 * MIB  # guess: a sixth of a home's 8 Mbit/s uplink
    subnet_bytes_per_hour: int = 2048 * MIB  # guess: four peers' worth, however many they are


@dataclass(slots=True)
class _Seat:
    """Who may be reached through us."""

    connection: Connection
    subnet: str
    expires: float  # by trio's clock


class Relay:
    """The relay's role; made by the service of nat.py, which decides when it is played."""

    def __init__(
        self,
        host: Host,
        key: IdentityKey,
        limits: RelayLimits | None = None,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._key = key
        self._limits = limits or RelayLimits()
        self._wall = wall
        self._seats: dict[str, _Seat] = {}
        self._circuits: Counter[str] = Counter()
        self._spent: dict[str, tuple[float, float]] = {}  # peer or network: bytes, as of when
        self.circuits_served = 0

    @property
    def peers(self) -> tuple[str, ...]:
        """Who has a reservation."""
        return tuple(self._live())

    @property
    def circuits(self) -> int:
        return self._circuits.total() // 2

    def open(self) -> None:
        """Offer the role."""
        self._host.handle(HOP, self._serve)

    def close(self) -> None:
        """Offer it no more; circuits that run go on."""
        self._host.unhandle(HOP)
        self._seats.clear()
        self._host.keep(HOP, set())

    async def _serve(self, stream: Stream) -> None:
        assert isinstance(stream, MuxStream)
        called: MuxStream | None = None
        with trio.move_on_after(WORDS_S):
            raw = await receive_message(stream)
            try:
                message = decode_hop(raw)
            except RemoteError:
                await self._say(stream, Status.MALFORMED_MESSAGE)
                raise
            if message.kind == RESERVE:
                await self._reserve(stream)
            elif message.kind == HOP_CONNECT and message.peer is not None:
                called = await self._call(stream, message.peer)
            else:
                await self._say(stream, Status.UNEXPECTED_MESSAGE)
                raise RemoteError("neither a reservation nor a call")
        if called is not None:
            await self._pass_on(stream, called)

    # ---- reservations

    async def _reserve(self, stream: MuxStream) -> None:
        found = self._connection(stream)
        status = Status.OK if found else Status.PERMISSION_DENIED
        if found:
            status = self._seat(stream.peer, found)
        if status != Status.OK:
            await self._say(stream, status)
            return
        expires_s = int(self._wall() + self._limits.reservation_s)
        here = [
            replace(one, peer=self._key.peer_id) for one in self._host.places() if not one.relay
        ]
        reservation = Reservation(
            expires_s, tuple(here), voucher(self._key, stream.peer, expires_s)
        )
        await send_message(
            stream,
            encode_hop(
                Message(HOP_STATUS, reservation=reservation, limit=self._limit(), status=Status.OK)
            ),
        )

    def _seat(self, peer: str, connection: Connection) -> Status:
        live = self._live()
        near = subnet(connection.remote[0])
        old = live.get(peer)
        if old is None:
            if (
                sum(seat.subnet == near for seat in live.values())
                >= self._limits.reservations_per_subnet_max
            ):
                return Status.RESERVATION_REFUSED
            if len(live) >= self._limits.reservations_max:
                return Status.RESERVATION_REFUSED
        expires = trio.current_time() + self._limits.reservation_s
        self._seats[peer] = _Seat(connection, near, expires)
        self._host.keep(HOP, set(self._seats))
        return Status.OK

    def _live(self) -> dict[str, _Seat]:
        """Reservations that hold: in time, and their peer is connected."""
        now = trio.current_time()
        self._seats = {
            peer: seat
            for peer, seat in self._seats.items()
            if seat.expires > now and self._direct(peer) is not None
        }
        return self._seats

    # ---- circuits

    async def _call(self, stream: MuxStream, peer: str) -> MuxStream | None:
        """Ask `peer` to take a call; the stream to it, or None when it has been refused."""
        status = self._may_call(stream, peer)
        if status != Status.OK:
            await self._say(stream, status)
            return None
        connection = self._direct(peer)
        assert connection is not None
        with ExitStack() as otherwise:
            try:
                called = self._host.open_on(connection, STOP)
                otherwise.callback(called.reset_now, "the call was given up")
                call = Message(STOP_CONNECT, peer=stream.peer, limit=self._limit())
                await send_message(called, encode_stop(call))
                answer = decode_stop(await receive_message(called))
                if answer.kind != STOP_STATUS or answer.status != Status.OK:
                    raise TransportError(f"it says {name(answer.status or 0)}")
            except (TransportError, RemoteError) as error:
                log.debug("a call was not taken", peer=peer, reason=str(error))
                await self._say(stream, Status.CONNECTION_FAILED)
                return None
            done = Message(HOP_STATUS, limit=self._limit(), status=Status.OK)
            await send_message(stream, encode_hop(done))
            otherwise.pop_all()
        return called

    def _may_call(self, stream: MuxStream, peer: str) -> Status:
        if self._connection(stream) is None:
            return Status.PERMISSION_DENIED
        if peer not in self._live():
            return Status.NO_RESERVATION
        if self._circuits.total() >= 2 * self._limits.circuits_max:
            return Status.RESOURCE_LIMIT_EXCEEDED
        ends = (stream.peer, peer)
        if any(self._circuits[end] >= self._limits.circuits_per_peer_max for end in ends):
            return Status.RESOURCE_LIMIT_EXCEEDED
        if any(self._left(payer) <= 0 for payer in self._payers(ends)):
            return Status.RESOURCE_LIMIT_EXCEEDED
        return Status.OK

    def _payers(self, ends: tuple[str, str]) -> frozenset[str]:
        """Whose budgets a circuit is paid from: both peers' and, as ids cost little, networks'."""
        remotes = [one.remote[0] for end in ends if (one := self._direct(end)) is not None]
        return frozenset((*ends, *(subnet(remote) for remote in remotes)))

    async def _pass_on(self, near: MuxStream, far: MuxStream) -> None:
        """Carry bytes both ways until both ends have finished, or have had their share."""
        self.circuits_served += 1
        ends = (near.peer, far.peer)
        payers = self._payers(ends)
        self._circuits.update(ends)
        done = False
        try:
            with trio.move_on_after(self._limits.circuit_s):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, near, far, payers)
                    await self._pump(far, near, payers)
                done = True
        except* TransportError:
            pass  # an end has left: the finally tells the other
        finally:
            self._circuits.subtract(ends)
            self._circuits += Counter()  # drops the zeros
            if not done:
                near.reset_now("the circuit is over")
                far.reset_now("the circuit is over")
            else:
                far.close_now()

    async def _pump(self, source: MuxStream, sink: MuxStream, payers: frozenset[str]) -> None:
        left = self._limits.circuit_bytes
        while piece := await source.receive(PIECE_BYTES):
            left -= len(piece)
            if left < 0:
                raise TransportError("the circuit has had its bytes")
            for payer in payers:
                self._spend(payer, len(piece))
                if self._left(payer) <= 0:
                    raise TransportError(f"{payer} has had its bytes of this hour")
            await sink.send(piece)
        sink.finish_now()

    def _budget(self, payer: str) -> int:
        limits = self._limits
        return limits.subnet_bytes_per_hour if "/" in payer else limits.peer_bytes_per_hour

    def _left(self, payer: str) -> float:
        """Bytes that a peer or a network may still have; they come back evenly over an hour."""
        spent, since = self._spent.get(payer, (0.0, 0.0))
        budget = self._budget(payer)
        return budget - max(0.0, spent - (trio.current_time() - since) * budget / HOUR_S)

    def _spend(self, payer: str, size: int) -> None:
        now = trio.current_time()
        self._spent[payer] = (self._budget(payer) - self._left(payer) + size, now)
        while len(self._spent) > 16 * self._limits.reservations_max:
            del self._spent[next(iter(self._spent))]

    # ---- inside

    def _connection(self, stream: MuxStream) -> Connection | None:
        """The connection that a stream came on; None when a relay carries it: no chains."""
        for connection in self._host.connections(stream.peer):
            if connection.mux is stream.mux:
                return connection if connection.relay is None else None
        return None

    def _direct(self, peer: str) -> Connection | None:
        best = self._host.best(peer)
        return best if best is not None and best.relay is None else None

    def _limit(self) -> Limit:
        return Limit(int(self._limits.circuit_s), self._limits.circuit_bytes)

    async def _say(self, stream: MuxStream, status: Status) -> None:
        await send_message(stream, encode_hop(Message(HOP_STATUS, status=status)))
