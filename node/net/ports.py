"""The ports where we listen, as something to dial from; and what others see of them.

A NAT gives each port of ours a mapping. Dialed from anywhere else, a peer would see another one
than the listener's, and tell us nothing (N2 of the audit). Who listens nowhere, as a client does,
gets a port when it needs one for a punch.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Final

import trio

from ...errors import RemoteError, TransportError, UserError
from ..log import get_logger
from .address import Address, address_of, reachable
from .host import Host
from .observed import Observations, is_public
from .peers import Connection
from .watch import own_hosts

log = get_logger()

OBSERVE_S: Final = 4.0  # to connect to an observer and hear what it sees
TOUCHED_S: Final = 600.0  # how long a NAT may remember whom we have dialed: RFC 5382 asks for more
FAMILIES: Final = {"ip4": socket.AF_INET, "ip6": socket.AF_INET6}
ANY: Final = {"ip4": "/ip4/0.0.0.0/tcp/0", "ip6": "/ip6/::/tcp/0"}


class Ports:
    """One listening port of each family, and its mappings."""

    def __init__(self, host: Host, *, may_open: bool, local: bool = False) -> None:
        """may_open: listen somewhere if we do not. local: loopback counts too (a test)."""
        self._host = host
        self._may_open = may_open
        self._local = local
        self.seen = {kind: Observations() for kind in FAMILIES}
        self._touched: dict[str, float] = {}
        self._looking = trio.Lock()
        host.came.append(self._on_connection)

    def source(self, address: Address) -> tuple[str, int] | None:
        """From where to dial an address; None when we listen nowhere in its family."""
        for listener in self._host.listeners:
            if listener.family == FAMILIES.get(address.kind):
                host, port = listener.getsockname()[:2]
                if self._local or not ipaddress.ip_address(host).is_loopback:
                    return host, port
        return None

    @property
    def listens(self) -> bool:
        return any(self.source(Address(kind, "", 0)) is not None for kind in FAMILIES)

    def numbers(self) -> tuple[int, ...]:
        """The ports that a stranger might reach us at: ours, and what others see of them."""
        found: list[int] = []
        for kind, seen in self.seen.items():
            source = self.source(Address(kind, "", 0))
            if source is not None:
                found.append(source[1])
            if seen.latest is not None:
                found.append(seen.latest.port)
        return tuple(dict.fromkeys(found))

    def kept(self) -> bool | None:
        """Whether others see our port under its own number; None while nobody has said."""
        for kind, seen in self.seen.items():
            source = self.source(Address(kind, "", 0))
            if source is not None and seen.latest is not None:
                return seen.latest.port == source[1]
        return None

    def touched(self) -> frozenset[str]:
        """Whom we have dialed from our ports lately: a NAT may let them in, though no others."""
        now = trio.current_time()
        self._touched = {host: at for host, at in self._touched.items() if now - at < TOUCHED_S}
        return frozenset(self._touched)

    def touch(self, host: str) -> None:
        self._touched[host] = trio.current_time()

    def predicted(self) -> list[Address]:
        """Where a SYN of a punch should be sent to reach our ports: public addresses only."""
        found: list[Address] = []
        for seen in self.seen.values():
            mapping = seen.agreed or seen.latest
            if mapping is not None and (self._local or is_public(mapping.host)):
                found.append(mapping)
        for place in reachable(self._host.listeners):
            if is_public(place.host) or self._local:
                found.append(place)
        return list(dict.fromkeys(found))

    async def ensure(self, observers: Iterable[Connection], *, words: int = 1) -> None:
        """Have a port, and the word of some network on its mapping, if that can be had soon.

        Whoever comes while another is looking waits for what that one finds.
        """
        async with self._looking:
            if self._may_open and any(":" in host and is_public(host) for host in own_hosts()):
                self._open("ip6")  # the relay may have been dialed by IPv4, and the peer has both
            for connection in observers:
                place = address_of(connection.remote)
                if len(self.seen[place.kind]) >= words:
                    continue
                if self.source(place) is None and not self._open(place.kind):
                    continue
                source = self.source(place)
                if source is not None and connection.mux.dialer:
                    # who dialed us did so from a port where it may not listen
                    await self._look(source, connection.mux.peer, place)

    async def _look(self, source: tuple[str, int], peer: str, place: Address) -> None:
        with trio.move_on_after(OBSERVE_S):
            try:
                self.touch(place.host)
                connection = await self._host.dial_from(source, peer, place)
                await connection.asked.wait()
                self._note(connection)
            except (TransportError, RemoteError) as error:
                log.debug("no observer", place=str(place), reason=str(error))

    def forget(self) -> None:
        """Our address has changed: what was seen is of the past."""
        for seen in self.seen.values():
            seen.clear()
        self._touched.clear()

    def _open(self, kind: str) -> bool:
        if not self._may_open:
            return False
        if self.source(Address(kind, "", 0)) is not None:
            return True
        try:
            self._host.listen_more(ANY[kind])
        except UserError as error:
            log.debug("cannot listen for a punch", reason=str(error))
            return False
        return True

    def _on_connection(self, connection: Connection) -> None:
        if connection.relay is None and connection.from_port:
            self.touch(connection.remote[0])
            self._host.nursery.start_soon(self._watch, connection)

    async def _watch(self, connection: Connection) -> None:
        await connection.asked.wait()
        self._note(connection)

    def _note(self, connection: Connection) -> None:
        if connection.claims is None or connection.claims.observed is None:
            return
        seen = connection.claims.observed
        if seen.kind in self.seen:
            self.seen[seen.kind].add(connection.remote[0], seen)
