"""What a NAT makes of our port, from what peers say they see. Nothing here waits.

Two observers in different networks see the same mapping of one port of ours, or two (RFC 4787's
endpoint-independent and address-dependent mapping). A single one is not believed for an address
that is to be told to others: it may lie.

    198.51.100.7:4001, 198.51.100.7:4001   kind "endpoint-independent": a punch can be aimed
    198.51.100.7:4001, 198.51.100.7:61233  kind "per-destination": nobody knows the next port
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Final, Literal

from .access import plain, subnet
from .address import Address

Reachability = Literal["public", "private", "unknown"]
Kind = Literal["none", "endpoint-independent", "per-destination", "unknown"]
Filtering = Literal["open", "closed", "unknown"]
Mapped = Literal["not tried", "asking", "refused", "nat-pmp", "upnp"]

OBSERVERS_MAX: Final = 64
AGREEING: Final = 2  # observers of different networks, for an address that is told to others


@dataclass(frozen=True, slots=True)
class NatReport:
    """What stands between us and those who would dial us. `potluck status` shows it.

    relays: peer ids through which we can be reached. places: our addresses beyond the NAT.
    mapped: the router was asked to forward a port of an address of the internet's, and does;
    portmap: by which protocol, if any.
    port_kept: whether the NAT gives our port its own number; None while nobody has said.
    filtering: whom it lets in, whoever dials or those that we have dialed. asked, reached: how many
    strangers have tried to dial us, and how many of them came through. open: families (ip4, ip6) in
    which they do, though `reachability` is IPv4's wherever somebody has tried that.
    """

    reachability: Reachability = "unknown"
    kind: Kind = "unknown"
    relays: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    mapped: bool = False
    port_kept: bool | None = None
    filtering: Filtering = "unknown"
    asked: int = 0
    reached: int = 0
    portmap: Mapped = "not tried"
    open: tuple[str, ...] = ()


def is_public(host: str) -> bool:
    """Whether an address is one of the internet's."""
    return plain(host).is_global


class Observations:
    """Where others see one family's listening port; the newest word of each network counts."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, Address] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, observer: str, seen: Address) -> None:
        """observer: its IP address. seen: where it says our connection from that port comes from"""
        key = subnet(observer)
        self._seen[key] = seen.bare
        self._seen.move_to_end(key)
        while len(self._seen) > OBSERVERS_MAX:
            self._seen.popitem(last=False)

    def clear(self) -> None:
        self._seen.clear()

    @property
    def agreed(self) -> Address | None:
        """The mapping that several see; None while there is none."""
        if self.kind() != "endpoint-independent":
            return None
        return Counter(self._seen.values()).most_common(1)[0][0]

    @property
    def latest(self) -> Address | None:
        """The mapping that the last observer saw: good for an attempt, not for a record."""
        return next(reversed(self._seen.values()), None)

    def hosts(self) -> frozenset[str]:
        """Our addresses on the internet, as several say."""
        counts = Counter(seen.host for seen in self._seen.values())
        return frozenset(host for host, count in counts.items() if count >= AGREEING)

    def kind(self, own: frozenset[str] = frozenset()) -> Kind:
        """own: the addresses of our interfaces: seen by one of them, there is no NAT."""
        if any(seen.host in own for seen in self._seen.values()):
            return "none"
        if len(self._seen) < AGREEING:
            return "unknown"
        same = Counter(self._seen.values()).most_common(1)[0][1]
        if same >= AGREEING and 2 * same > len(self._seen):  # a liar is outvoted
            return "endpoint-independent"
        hosts = {seen.host for seen in self._seen.values()}
        return "per-destination" if len(hosts) < len(self._seen) else "unknown"
