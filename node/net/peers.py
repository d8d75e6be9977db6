"""Which connections there are, and which of two to the same peer is used. Nothing here waits.

A direct one goes before one over a relay.

When both ends dial at once, two connections come up. Both ends must choose the same: the one that
the smaller peer id dialed. When the second comes later than that, its dialer had lost the first, so
the newer is chosen. The other is closed once nothing uses it.
"""

from dataclasses import dataclass, field

import trio

from ...dht.network import NOWHERE, Prefixes, prefixes_of
from .access import plain, subnet
from .address import Address, address_of
from .identify import Claims
from .mux import Mux
from .versions import behind
from .worth import Standing, least_worth

AT_ONCE_S = 5.0  # two handshakes that cross are at most one dial's deadline apart
SURPLUS_TICKS = 3  # the other end may be opening a stream on it this very moment
REAP_TICKS = 900  # guess: longer than anything that is done by the clock between two peers
PER_PEER_MAX = 4
LOOPBACK = "127.0.0.1"


@dataclass(slots=True, eq=False)
class Connection:
    """A connection with what the host knows of it."""

    mux: Mux
    since: float  # by trio's clock
    remote: tuple[str, int]  # where its packets come from: the peer, or the relay
    relay: str | None = None  # the peer that passes it on; None: it is direct
    from_port: int = 0  # the port of ours that we dialed from, if we listen there
    local_host: str = ""  # the address of ours that it goes from
    place: Address | None = None  # what we dialed, if it was us and no relay is in between
    idle_ticks: int = 0  # without a stream
    quiet_ticks: int = 0  # without payload
    payloads: int = 0  # that had come by the last tick
    claims: Claims | None = None
    told: bytes = b""  # what we last said of ourselves; empty: it has not asked
    over: trio.Event = field(default_factory=trio.Event)
    asked: trio.Event = field(default_factory=trio.Event)  # its claims are there, or will not come

    @property
    def seat(self) -> str:
        """Where it is counted as from: over a relay, nowhere, for reservations bound those."""
        return LOOPBACK if self.relay else self.remote[0]

    @property
    def who(self) -> tuple[str, str | None]:
        """The peer and its IP address; over a relay nobody knows that."""
        return self.mux.peer, None if self.relay else self.remote[0]

    @property
    def network(self) -> Prefixes:
        """That its packets come from; over a relay, the relay's."""
        address = plain(self.remote[0])
        return prefixes_of(f"/ip{address.version}/{address}")

    @property
    def listens_at(self) -> Address | None:
        """Where the other end can be dialed, as we did it; None when it was they who dialed.

        A name counts only with a WebSocket: the web server there may know us by it.
        """
        if self.place is not None and self.place.over != "tcp":
            return self.place.bare
        return address_of(self.remote) if self.mux.dialer else None

    def speaks(self, protocol: str) -> bool:
        """Whether the peer has said so. To propose what it does not speak looks like a fault."""
        return self.claims is not None and protocol in self.claims.protocols

    def behind(self, protocol: str) -> str:
        """As versions.py's, of what the peer has said so far."""
        return "" if self.claims is None else behind(protocol, self.claims.protocols)


class Peers:
    """Every live connection, by peer."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._by_peer: dict[str, list[Connection]] = {}
        self.count = 0
        self.kept: set[str] = set()  # peers whose connection is not to be given up while idle
        self._kept_for: dict[str, set[str]] = {}

    def add(self, connection: Connection) -> None:
        """Take a new connection; a peer with too many loses its oldest."""
        found = self._by_peer.setdefault(connection.mux.peer, [])
        found.append(connection)
        self.count += 1
        if len(found) > PER_PEER_MAX:
            found[0].mux.close()

    def remove(self, connection: Connection) -> None:
        found = self._by_peer.get(connection.mux.peer, [])
        if connection in found:
            found.remove(connection)
            self.count -= 1
            if not found:
                del self._by_peer[connection.mux.peer]

    def keep(self, why: str, peers: set[str]) -> None:
        """Replaces those of this reason."""
        self._kept_for[why] = peers
        self.kept = set().union(*self._kept_for.values())

    def best(self, peer: str) -> Connection | None:
        """The connection for new streams to a peer."""
        best: Connection | None = None
        for connection in self._by_peer.get(peer, ()):  # oldest first
            if connection.mux.failure or connection.mux.leaving:
                continue
            if best is None or self._is_better(connection, best):
                best = connection
        return best

    def where(self, peer: str) -> Prefixes:
        """The network that its direct connections show it in, the first that counts; else
        NOWHERE."""
        direct = (one.network for one in self._by_peer.get(peer, ()) if one.relay is None)
        return next((network for network in direct if network != NOWHERE), NOWHERE)

    def of(self, peer: str) -> list[Connection]:
        return list(self._by_peer.get(peer, ()))

    def all(self) -> list[Connection]:
        return [connection for found in self._by_peer.values() for connection in found]

    def acquaintances(self) -> list[str]:
        """The peers: who is to be kept first, then by their last use."""
        live = [one for one in self.all() if one.mux.failure is None]
        live.sort(key=lambda one: (one.mux.peer not in self.kept, one.idle_ticks))
        return list(dict.fromkeys(one.mux.peer for one in live))

    def names(self) -> tuple[str, ...]:
        return tuple(self._by_peer)

    def tick(self) -> None:
        """Once a second: tick every connection; close what nobody needs, or another replaces."""
        for connection in self.all():
            connection.mux.tick()
            connection.idle_ticks = 0 if connection.mux.streams else connection.idle_ticks + 1
            moved = connection.mux.payloads - connection.payloads
            connection.quiet_ticks = 0 if moved else connection.quiet_ticks + 1
            connection.payloads = connection.mux.payloads
            if connection.idle_ticks >= REAP_TICKS and connection.mux.peer not in self.kept:
                connection.mux.close()
        for peer, found in list(self._by_peer.items()):
            if len(found) > 1:
                best = self.best(peer)
                for connection in list(found):
                    if connection is not best and connection.idle_ticks >= SURPLUS_TICKS:
                        connection.mux.close()

    def least_worth(self, host: str) -> Connection | None:
        """Which one is to leave for somebody at that address; None when nobody is."""
        all_ = [one for one in self.all() if one.mux.failure is None]
        found = least_worth([self._standing(one) for one in all_], subnet(host))
        return None if found is None else all_[found]

    def _standing(self, connection: Connection) -> Standing:
        mux = connection.mux
        used = any(not one.inbound and one not in mux.lingering for one in mux.streams.values())
        return Standing(
            network=connection.relay or subnet(connection.remote[0]),
            since=connection.since,
            idle_ticks=connection.idle_ticks,
            quiet_ticks=connection.quiet_ticks,
            has_streams=bool(mux.streams),
            stays=used or mux.peer in self.kept,
        )

    def _is_better(self, newer: Connection, older: Connection) -> bool:
        if (newer.relay is None) != (older.relay is None):
            return newer.relay is None
        if newer.since - older.since > AT_ONCE_S or newer.mux.dialer == older.mux.dialer:
            return True
        return newer.mux.dialer == (self._me < newer.mux.peer)
