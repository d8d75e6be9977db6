"""Connections that we open: to a peer, by whatever address leads to it first.

reach ──▶ the connection there is, or dial ──▶ race ─┬─▶ TCP ─▶ perhaps WebSocket ─┐
                                                   └─▶ a stream of a relay ──────┴─▶ Host.adopt
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import trio

from ...errors import TransportError
from .address import Address
from .book import AddressBook
from .carrier import Carrier, StreamCarrier, remote_of
from .circuit import HOP, call_through
from .dialer import First, Joined, connect_tcp, race
from .guard import Gate
from .peers import Connection, Peers
from .websocket import carry

if TYPE_CHECKING:
    from .host import Host

DIAL_S = 10.0  # to reach a peer, all its addresses together


class Outbound:
    """Dials; part of the host."""

    def __init__(self, host: Host, gate: Gate, peers: Peers, book: AddressBook) -> None:
        self._host = host
        self._gate = gate
        self._peers = peers
        self._book = book
        self._dials: Joined[Connection] = Joined(host.nursery)

    async def reach(self, peer: str) -> Connection:
        """The connection to a peer, dialed where we know it if there is none."""
        connection = self._peers.best(peer)
        if connection is None:
            due = self._book.due(peer, trio.current_time())
            if not due:
                why = (
                    "its addresses failed a moment ago" if self._book.known(peer) else "no address"
                )
                raise TransportError(f"cannot reach {peer}: {why}")
            connection = await self.dial(peer, due)
        return connection

    async def dial(self, peer: str, addresses: Sequence[Address]) -> Connection:
        """A new connection, or that of a dial under way. Raises TransportError."""
        if peer == self._host.peer_id:
            raise TransportError("that is this node itself")
        if not self._host.welcomes(peer):
            why = self._gate.refuses(peer, None, trio.current_time())
            raise TransportError(f"cannot reach {peer}: {why}")

        async def dial() -> Connection:
            first = First()
            with trio.move_on_after(DIAL_S):
                return await race(
                    [address for address in addresses if address.relay is None],
                    lambda address: self.attempt(peer, address, first),
                    failed=lambda address: self._book.failed(peer, address, trio.current_time()),
                    give_up=lambda connection: connection.mux.close(),
                    late=[address for address in addresses if address.relay is not None],
                )
            raise TransportError(f"no answer within {DIAL_S:.0f} s")

        return await self._dials.run(peer, addresses, dial)

    async def attempt(self, peer: str, address: Address, first: First | None = None) -> Connection:
        """A new connection by one address. Raises TransportError, RemoteError."""
        if address.is_ip and not address.relay and self._gate.access.refuses_host(address.host):
            raise TransportError(self._gate.access.refuses_host(address.host))
        place = None
        if address.relay is None:
            place = address
            sock = await connect_tcp(address)
            remote = remote_of(sock)  # an address, though a name was dialed
            carrier = await carry(sock, address)
        else:
            carrier, remote = await self._through(address.relay, address, peer)
        connection = await self._host.adopt(
            carrier, remote, dialed=peer, relay=address.relay, first=first, place=place
        )
        self._book.worked(peer, address, trio.current_time())
        return connection

    async def _through(
        self, relay: str, address: Address, peer: str
    ) -> tuple[Carrier, tuple[str, int]]:
        """A stream that a relay passes on to `peer`, and where the relay is."""
        if relay in (self._host.peer_id, peer):
            raise TransportError("a relay cannot be one of the two ends")
        connection = self._peers.best(relay)
        if connection is None or connection.relay is not None:
            connection = await self.dial(relay, [address.end_point])
        stream = self._host.open_on(connection, HOP)
        with ExitStack() as otherwise:
            otherwise.callback(stream.reset_now, "no way through the relay")
            await call_through(stream, peer)
            otherwise.pop_all()
        return StreamCarrier(stream), connection.remote
