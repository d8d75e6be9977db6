"""Which network a peer stands in, at three widths, and lists that no one landlord fills.

An address costs little, an address in another network costs more, and in another /8 most. So a
peer is known by what contains it, widest first (BASALT, Auvolat et al., 2023, for IPv4):

    ip4   /8   /16  /24        ip6   /32  /40  /48
    name  all names, the domain, the name          resolve it: a wildcard has any number of names
    none  all that the Internet does not route     a home, a test on loopback: one network

A list that is contested takes at most PER_NETWORK ids of the narrowest, and WIDE_SHARE of its
length of the middle one (algorithms 3.5); it is filled up with the others when it would stay short,
so that a swarm within one network works. What the Internet does not route is not counted.

What a peer says of where it is costs it nothing. So where we are connected the road counts: the
address that its packets come from. Over a relay the road shows the relay alone, and at home, or
through a gateway that hides who knocks, nothing that counts: there what it says has to do.
"""

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final, TypeVar

PER_NETWORK: Final = 2  # algorithms 3.5: at most two ids of a /24 in any list that is contested
WIDE_SHARE: Final = 0.1  # of a list, for one /16: algorithms 3.5
Prefixes = tuple[str, str, str]  # from the widest to the narrowest
NOWHERE: Final[Prefixes] = ("none", "none", "none")

_IP4: Final = (8, 16, 24)
_IP6: Final = (32, 40, 48)

T = TypeVar("T")


@lru_cache(maxsize=4096)
def prefixes_of(address: str) -> Prefixes:
    """Of a multiaddr; of one over a relay, the relay's. NOWHERE when it has no host that counts."""
    parts = address.split("/", 3)
    if len(parts) < 3:
        return NOWHERE
    kind, host = parts[1], parts[2]
    try:
        match kind:
            case "ip4":
                return _routed(IPv4Address(host), _IP4)
            case "ip6":
                return _routed(IPv6Address(host), _IP6)
            case "dns" | "dns4" | "dns6" | "dnsaddr":
                name = host.lower().rstrip(".")
                return "name", ".".join(name.split(".")[-2:]), name
    except ValueError:
        return NOWHERE
    return NOWHERE


def _routed(ip: IPv4Address | IPv6Address, bits: tuple[int, int, int]) -> Prefixes:
    if not ip.is_global:
        return NOWHERE
    wide, middle, narrow = (str(ip_network((ip, each), strict=False)) for each in bits)
    return wide, middle, narrow


def networks_of(addresses: Iterable[str], seen: Prefixes = NOWHERE) -> frozenset[Prefixes]:
    """Where a peer with these addresses stands, all that counts; empty for one at home. seen: as
    in `place_of`."""
    return frozenset({seen} if seen != NOWHERE else map(prefixes_of, addresses)) - {NOWHERE}


def place_of(addresses: Iterable[str], seen: Prefixes = NOWHERE) -> Prefixes:
    """Where a peer with these addresses stands, by the first that counts; NOWHERE at home.

    seen: where a direct connection shows it (Host.where), which goes before all that it says.
    """
    if seen != NOWHERE:
        return seen
    found = map(prefixes_of, addresses)
    return next((where for where in found if where != NOWHERE), NOWHERE)


def diverse(ranked: Iterable[tuple[T, Collection[Prefixes]]], count: int) -> Sequence[T]:
    """The first `count` of `ranked`; who is beyond the part of one of its networks comes last.

    Nobody is shut out of a list that is not full: a swarm within one /24 works.
    """
    first: list[T] = []
    later: list[T] = []
    part = Part(count)
    for member, networks in ranked:
        if len(first) == count:
            break
        (first if part.take(networks) else later).append(member)
    return first + later[: count - len(first)]


class Part:
    """Counts what each network has got of a list of `count`."""

    def __init__(self, count: int) -> None:
        self._wide_max = wide_max(count)
        self._taken: dict[str, int] = {}

    def take(self, networks: Collection[Prefixes]) -> bool:
        """Whether one more of these networks still has its place; if so, it has taken it."""
        taken = self._taken
        narrow, middle = names_of(networks)
        if any(taken.get(network, 0) >= PER_NETWORK for network in narrow):
            return False
        if any(taken.get(network, 0) >= self._wide_max for network in middle):
            return False
        for network in narrow | middle:
            taken[network] = taken.get(network, 0) + 1
        return True


def names_of(networks: Collection[Prefixes]) -> tuple[set[str], set[str]]:
    """(the narrowest, the middle ones) that are counted."""
    counted = [each for each in networks if each != NOWHERE]
    return {narrow for _, _, narrow in counted}, {middle for _, middle, _ in counted}


def wide_max(count: int) -> int:
    """How many of a list of `count` may be of one /16."""
    return max(PER_NETWORK, round(WIDE_SHARE * count))
