"""Whether strangers can dial us: peers are asked to try, and say what they saw.

AutoNAT's verdict cannot be had from stock peers: py-libp2p's dial-back ends at the connection that
is there already, so that everybody is public (N3 of the audit). Here the asked peer dials anew,
from a port and with a key of that moment, and a Noise handshake shows that it is us who answer.

    asker                             asked
    Ask{ports} ──────────────────▶          sees where the connection comes from: host
                                            dials host:port for each port, and nowhere else
               ◀──────────────────  Answer{host, port, reached}

Only the host that the question came from is dialed, at most PORTS_MAX ports of it: nobody can be
made to knock at another's door. A NAT that lets in whoever we have dialed ourselves would let the
asked peer in too; so those are asked to whom no connection from the listening port was made.

What one family of addresses shows says nothing of the other: a home's IPv4 stands behind a NAT, its
IPv6 perhaps behind a firewall.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, TypeVar

import trio

from ...crypto.codec import Range, Size, decode, encode
from ...errors import RemoteError, TransportError
from ..log import get_logger
from .access import subnet
from .address import Address, address_of
from .carrier import SocketCarrier
from .dialer import connect_tcp
from .host import Host
from .mux_stream import MuxStream
from .noise import Identity, Scratch
from .observed import Reachability, is_public
from .peers import Connection
from .stream import Stream
from .upgrade import upgrade_dialed

log = get_logger()

PROTOCOL: Final = "/potluck/reach/1"

PORTS_MAX: Final = 4
FRAME_BYTES_MAX: Final = 1024
LENGTH_BYTES: Final = 2
TRY_S: Final = 3.0  # for one dial back: three round trips, once retransmitted
ANSWER_S: Final = 8.0
AGAIN_S: Final = 3.0  # one question of a network within this time
AT_ONCE_MAX: Final = 8  # dials back under way
REMEMBERED_MAX: Final = 1024
ASKED_MAX: Final = 4  # peers of one round
AGREEING: Final = 2  # who must have come through, and more than have not, to be public

Port = Annotated[int, Range(1, 65535)]


@dataclass(frozen=True, slots=True)
class Ask:
    """Please dial me back at these ports."""

    TAG: ClassVar[str] = "ask"

    ports: Annotated[tuple[Port, ...], Size(PORTS_MAX, least=1)]


@dataclass(frozen=True, slots=True)
class Answer:
    """host: where the question came from. reached: the ports at which the asker answered.

    tried: False when the asked peer declined; then nothing is to be learned.
    """

    TAG: ClassVar[str] = "answer"

    host: Annotated[str, Size(64)]
    port: Annotated[int, Range(0, 65535)]
    reached: Annotated[tuple[Port, ...], Size(PORTS_MAX)]
    tried: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a round of questions showed. places: where we were reached, by AGREEING peers."""

    reachability: Reachability = "unknown"
    places: tuple[Address, ...] = ()
    asked: int = 0
    reached: int = 0


Message = TypeVar("Message", Ask, Answer)


class DialBack:
    """Answers the questions of others."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._last: dict[str, float] = {}
        self._busy = 0
        host.handle(PROTOCOL, self._serve)

    async def _serve(self, stream: Stream) -> None:
        assert isinstance(stream, MuxStream)
        with trio.move_on_after(ANSWER_S):
            question = await _receive(stream, Ask)
            connection = _under(self._host, stream)
            if connection is None or connection.relay is not None:
                raise RemoteError("a question over a relay: nobody knows whence")
            host, port = connection.remote
            if not self._may(host):
                await _send(stream, Answer(host, port, (), tried=False))
                return
            reached: list[int] = []
            self._busy += 1
            try:
                async with trio.open_nursery() as nursery:
                    for wanted in dict.fromkeys(question.ports):
                        place = address_of((host, wanted))
                        nursery.start_soon(self._try, stream.peer, place, reached)
            finally:
                self._busy -= 1
            await _send(stream, Answer(host, port, tuple(sorted(reached)), tried=True))

    def _may(self, host: str) -> bool:
        now = trio.current_time()
        near = subnet(host)
        if self._busy >= AT_ONCE_MAX or now - self._last.get(near, -AGAIN_S) < AGAIN_S:
            return False
        self._last.pop(near, None)
        self._last[near] = now
        if len(self._last) > REMEMBERED_MAX:
            del self._last[next(iter(self._last))]
        return True

    async def _try(self, peer: str, place: Address, reached: list[int]) -> None:
        """Dial as a stranger: a key of this moment, any port."""
        with trio.move_on_after(TRY_S):
            try:
                carrier = SocketCarrier(await connect_tcp(place))
                try:
                    swarm_key = self._host.identity.swarm_key
                    stranger = Identity(secrets.token_bytes(32), swarm_key)
                    await upgrade_dialed(carrier, stranger, peer, Scratch())
                finally:
                    carrier.close()
            except (TransportError, RemoteError) as error:
                log.debug("not dialed back", place=str(place), reason=str(error))
                return
            reached.append(place.port)


async def ask_around(
    host: Host,
    ports: tuple[int, ...],
    *,
    touched: frozenset[str],
    asked: Collection[str] = (),
    local: bool = False,
) -> dict[str, Answer]:
    """Ask up to ASKED_MAX peers of different networks to dial us back; answers by network.

    touched: hosts that were dialed from the listening port, whom a NAT lets in. asked: networks
    that have answered already. local: take addresses that are none of the internet's for strangers
    too, each peer for a network of its own (a test on one machine).
    """
    chosen: dict[str, Connection] = {}
    for connection in host.connections():
        where = connection.remote[0]
        network = connection.mux.peer if local else subnet(where)
        stranger = (local or is_public(where)) and where not in touched and network not in asked
        if connection.relay is None and stranger and connection.speaks(PROTOCOL):
            chosen.setdefault(network, connection)
    answers: dict[str, Answer] = {}

    async def ask(network: str, connection: Connection) -> None:
        try:
            with trio.fail_after(ANSWER_S + 1):
                answer = await _ask(host, connection, ports)
            if answer.tried:
                answers[network] = answer
        except (TransportError, RemoteError, trio.TooSlowError) as error:
            log.debug("no word on reachability", peer=connection.mux.peer, reason=str(error))

    async with trio.open_nursery() as nursery:
        for network, connection in list(chosen.items())[:ASKED_MAX]:
            nursery.start_soon(ask, network, connection)
    return answers


async def meet_stranger(
    host: Host, kind: str, *, touched: frozenset[str], spared: Collection[str]
) -> None:
    """Have a connection of this family to somebody who dials back, if any of our peers can be one.

    spared: peers whose connection is not to be replaced by a newer one.
    """
    ready = [one for one in host.connections() if one.relay is None and one.speaks(PROTOCOL)]
    if any(address_of(one.remote).kind == kind for one in ready):
        return
    for one in ready:
        claimed = one.claims.addresses if one.claims and one.mux.peer not in spared else ()
        places = [
            place
            for place in claimed
            if place.kind == kind and not place.relay and is_public(place.host)
            if place.host not in touched
        ]
        with trio.move_on_after(TRY_S):
            try:
                if places:
                    await (await host.dial_at(one.mux.peer, places)).asked.wait()
                    return
            except (TransportError, RemoteError) as error:
                log.debug("not met in the other family", peer=one.mux.peer, reason=str(error))


def decisive(answers: Collection[Answer]) -> list[Answer]:
    """Those by which we are public, or not: IPv4's, if there are any, for everybody has that."""
    four = [answer for answer in answers if _kind(answer) == "ip4"]
    return four or list(answers)


def closed_families(answers: Collection[Answer]) -> frozenset[str]:
    """Those in which somebody has tried, and nobody came through. One honest word is enough."""
    tried = {_kind(answer) for answer in answers}
    return frozenset(tried - {_kind(answer) for answer in answers if answer.reached})


def open_families(
    answers: Collection[Answer], forwarded: Collection[Address] = ()
) -> tuple[str, ...]:
    """Those in which strangers come through, each by its own answers alone."""
    by_kind: dict[str, list[Answer]] = {}
    for answer in answers:
        by_kind.setdefault(_kind(answer), []).append(answer)
    judged = {kind: judge(found, forwarded).reachability for kind, found in by_kind.items()}
    return tuple(sorted(kind for kind, verdict in judged.items() if verdict == "public"))


def _kind(answer: Answer) -> str:
    return address_of((answer.host, answer.port)).kind


def judge(answers: Collection[Answer], forwarded: Collection[Address] = ()) -> Verdict:
    """Public when AGREEING peers came through, and more than did not; private when most failed.

    forwarded: places of which the router says that it sends them on to us: there, one is enough.
    """
    places: Counter[Address] = Counter()
    reached = 0
    for answer in answers:
        reached += bool(answer.reached)
        places.update(address_of((answer.host, port)) for port in answer.reached)
    agreed = tuple(
        place for place, count in places.items() if count >= AGREEING or place in forwarded
    )
    failed = len(answers) - reached
    verdict: Reachability = "unknown"
    if agreed and reached > failed:
        verdict = "public"
    elif failed > reached:
        verdict = "private"
    return Verdict(verdict, agreed if verdict == "public" else (), len(answers), reached)


async def _ask(host: Host, connection: Connection, ports: tuple[int, ...]) -> Answer:
    stream = host.open_on(connection, PROTOCOL)
    try:
        await _send(stream, Ask(ports[:PORTS_MAX]))
        answer = await _receive(stream, Answer)
    finally:
        stream.close_now()
    try:
        ipaddress.ip_address(answer.host)
    except ValueError as error:
        raise RemoteError("it saw us at no IP address") from error
    if not set(answer.reached) <= set(ports):
        raise RemoteError("it says that it reached a port which it was not asked to try")
    return answer


def _under(host: Host, stream: MuxStream) -> Connection | None:
    """The connection that a stream came on."""
    found = [one for one in host.connections(stream.peer) if one.mux is stream.mux]
    return found[0] if found else None


async def _send(stream: MuxStream, message: Ask | Answer) -> None:
    raw = encode(message)
    await stream.send(len(raw).to_bytes(LENGTH_BYTES), raw)


async def _receive(stream: MuxStream, kind: type[Message]) -> Message:
    data = bytearray()
    while len(data) < LENGTH_BYTES or len(data) < LENGTH_BYTES + int.from_bytes(
        data[:LENGTH_BYTES]
    ):
        piece = await stream.receive(FRAME_BYTES_MAX)
        if not piece:
            raise TransportError("the stream ended in a message")
        data += piece
        if len(data) > FRAME_BYTES_MAX:
            raise RemoteError(f"a message of more than {FRAME_BYTES_MAX} bytes")
    return decode(bytes(data[LENGTH_BYTES:]), kind, max_bytes=FRAME_BYTES_MAX)
