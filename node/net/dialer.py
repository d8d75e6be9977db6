"""How a peer is reached: every address of it is tried, nearly at once; the first to answer wins.

py-libp2p tries one address of a kind and waits 250 ms on the way (D1 to D4 of the audit). Here the
next try starts when the one before has failed, or after 30 ms, as in RFC 8305 but sooner: whoever
wants a token does not wait for a stale address. A try has won once the peer has proved who it is,
so an address that leads to somebody else costs nothing; and of those that lead to it only one is
brought to its end (`First`), so that both ends know the same one connection.
"""

import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from ...errors import RemoteError, TransportError
from .address import Address, share_port

LATE_S = 0.3  # guess: what direct addresses get ahead of a relay, which must not win by a hair
STAGGER_S = 0.03  # RFC 8305 has 0.25 for pages; a hop's whole deadline is about one second
TRIES_MAX = 16  # addresses of one dial
SEND_AHEAD_BYTES = 256 * 1024  # unsent bytes in the kernel: what a small message may stand behind

Won = TypeVar("Won")
NAME_FAMILIES = {"dns4": socket.AF_INET, "dns6": socket.AF_INET6}


async def race(
    addresses: Sequence[Address],
    attempt: Callable[[Address], Awaitable[Won]],
    *,
    failed: Callable[[Address], None],
    give_up: Callable[[Won], None],
    stagger_s: float = STAGGER_S,
    late: Sequence[Address] = (),
) -> Won:
    """The first attempt that succeeds; the others are cancelled, or given up if they succeed too.

    late: addresses to be tried once the others have failed, or have had LATE_S.
    Raises TransportError, with every address's reason, when all have failed.
    """
    won: list[Won] = []
    reasons: list[str] = []

    async def run(address: Address, over: trio.Event) -> None:
        try:
            found = await attempt(address)
        except (TransportError, RemoteError) as error:
            if won:
                return  # it was only slower
            reasons.append(f"{address.host} port {address.port}: {error}")
            failed(address)
            over.set()
            return
        if won:
            give_up(found)
            return
        won.append(found)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        events: list[trio.Event] = []
        for address in addresses[:TRIES_MAX]:
            events.append(over := trio.Event())
            nursery.start_soon(run, address, over)
            with trio.move_on_after(stagger_s):
                await over.wait()
        if late:
            with trio.move_on_after(LATE_S):
                for event in events:
                    await event.wait()
        for address in late[:TRIES_MAX]:
            over = trio.Event()
            nursery.start_soon(run, address, over)
            with trio.move_on_after(stagger_s):
                await over.wait()
    if not won:
        raise TransportError("; ".join(reasons) or "no address of it is known")
    return won[0]


async def connect_tcp(address: Address, source: tuple[str, int] | None = None) -> socket.socket:
    """A connected socket, not blocking. Raises TransportError.

    source: where we listen, to dial from there; None for any free port.
    """
    reason = "no such name"
    for family, end_point in await _resolve(address):
        try:
            sock = socket.socket(family)
        except OSError as error:  # no descriptor is left, or no such family here
            reason = error.strerror or str(error)
            continue
        try:
            sock.setblocking(False)
            tune(sock)
            if source is not None:
                share_port(sock)
                sock.bind(source)
            await _connect(sock, end_point)
            return sock
        except OSError as error:
            sock.close()
            reason = error.strerror or str(error)
        except trio.Cancelled:
            sock.close()
            raise
    raise TransportError(reason)


def tune(sock: socket.socket) -> None:
    """Options of every connection: small messages leave at once, and bulk does not pile up."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, SEND_AHEAD_BYTES)


async def _connect(sock: socket.socket, end_point: tuple[str, int]) -> None:
    try:
        sock.connect(end_point)
    except BlockingIOError:
        await trio.lowlevel.wait_writable(sock.fileno())
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code)) from None


async def _resolve(address: Address) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    if address.is_ip:
        family = socket.AF_INET6 if address.kind == "ip6" else socket.AF_INET
        return [(family, (address.host, address.port))]
    wanted = NAME_FAMILIES.get(address.kind, socket.AF_UNSPEC)
    try:
        found = await trio.socket.getaddrinfo(
            address.host, address.port, family=wanted, type=socket.SOCK_STREAM
        )
    except OSError as error:
        raise TransportError(f"{address.host} has no address: {error.strerror}") from error
    except UnicodeError as error:
        raise TransportError(f"{address.host:.80} is no name of a host") from error
    return [(family, (end[0], end[1])) for family, _, _, _, end in found[:TRIES_MAX]]


class First:
    """Of several handshakes with one peer, lets one be finished; the others wait how it ends.

    Were all finished, each end would have its own order of them, and either could close the one
    that the other uses.
    """

    def __init__(self) -> None:
        self._won = False
        self._claimer: object | None = None
        self._changed = trio.lowlevel.ParkingLot()

    async def claim(self, claimer: object) -> None:
        """Wait for leave to finish. Raises TransportError when another one has."""
        while self._claimer is not None and not self._won:
            await self._changed.park()
        if self._won:
            raise TransportError("another way to it was faster")
        self._claimer = claimer

    def settle(self, claimer: object, *, won: bool) -> None:
        """Its handshake is over: with `won` so are all others, else the next may try."""
        if self._claimer is claimer:
            self._claimer = None
            self._won = self._won or won
            self._changed.unpark_all()


@dataclass
class _Flight(Generic[Won]):
    """One dial in progress, and who waits for it."""

    addresses: frozenset[Address]
    scope: trio.CancelScope
    over: trio.Event
    waiting: int = 0
    won: Won | None = None
    failure: Exception | None = None


class Joined(Generic[Won]):
    """Dials that share: whoever wants a peer that is being dialed waits for that dial."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._flights: dict[str, _Flight[Won]] = {}

    async def run(
        self, peer: str, addresses: Sequence[Address], dial: Callable[[], Awaitable[Won]]
    ) -> Won:
        """What `dial` gives, or what one under way to the same addresses does.

        The dial goes on in a task of its own, until the last who waits for it is cancelled.
        """
        flight = self._flights.get(peer)
        if flight is None or not flight.addresses.issuperset(addresses):
            flight = _Flight(frozenset(addresses), trio.CancelScope(), trio.Event())
            self._flights[peer] = flight
            self._nursery.start_soon(self._fly, peer, flight, dial)
        flight.waiting += 1
        try:
            await flight.over.wait()
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                self._forget(peer, flight)
                flight.scope.cancel()
        if flight.won is None:
            raise TransportError(f"cannot reach {peer}: {flight.failure}") from flight.failure
        return flight.won

    async def _fly(
        self, peer: str, flight: _Flight[Won], dial: Callable[[], Awaitable[Won]]
    ) -> None:
        try:
            with flight.scope:
                flight.won = await dial()
        except (TransportError, RemoteError) as error:
            flight.failure = error
        finally:
            self._forget(peer, flight)
            flight.over.set()

    def _forget(self, peer: str, flight: _Flight[Won]) -> None:
        if self._flights.get(peer) is flight:
            del self._flights[peer]
