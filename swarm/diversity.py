"""Which network a peer stands in, at three widths, and lists that no one landlord fills.

An address costs little, an address in another network costs more, and in another /8 most. So a
peer is known by what contains it, widest first (BASALT, Auvolat et al., 2023, for IPv4):

    ip4   /8   /16  /24        ip6   /32  /40  /48
    name  all names, the domain, the name          resolve it: a wildcard has any number of names
    none  all that the Internet does not route     a home, a test on loopback: one network

A list that is contested takes at most PER_NETWORK ids of the narrowest, and WIDE_SHARE of its
length of the middle one (algorithms 3.5); it is filled up with the others when it would stay short,
so that a swarm within one network works.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import ip_network
from typing import Final, TypeVar

from ..dht.network import PER_NETWORK, network_of

WIDE_SHARE: Final = 0.1  # of a list, for one /16: algorithms 3.5
Prefixes = tuple[str, str, str]  # from the widest to the narrowest
NOWHERE: Final[Prefixes] = ("none", "none", "none")

_WIDTHS: Final = {4: (8, 16), 6: (32, 40)}

T = TypeVar("T")


@lru_cache(maxsize=8192)
def prefixes_of(address: str) -> Prefixes:
    """Of a multiaddr; of one over a relay, the relay's."""
    narrow = network_of(address)
    if narrow is None:
        return NOWHERE
    if "/" not in narrow:  # a name
        return "name", ".".join(narrow.rstrip(".").split(".")[-2:]), narrow
    network = ip_network(narrow)
    wide, middle = (
        str(network.supernet(new_prefix=bits)) for bits in _WIDTHS[network.version]
    )  # fmt: skip
    return wide, middle, narrow


def diverse(ranked: Iterable[tuple[T, Prefixes]], count: int) -> Sequence[T]:
    """The first `count` of `ranked`; what is beyond its network's part comes last."""
    first: list[T] = []
    later: list[T] = []
    part = Part(count)
    for member, prefixes in ranked:
        if len(first) == count:
            break
        (first if part.take(prefixes) else later).append(member)
    return first + later[: count - len(first)]


class Part:
    """Counts what each network has got of a list of `count`."""

    def __init__(self, count: int) -> None:
        self._wide_max = max(PER_NETWORK, round(WIDE_SHARE * count))
        self._taken: dict[str, int] = {}

    def take(self, prefixes: Prefixes) -> bool:
        """Whether one more of this network still has its place; if so, it has taken it."""
        if prefixes == NOWHERE:
            return True
        _, middle, narrow = prefixes
        taken = self._taken
        if taken.get(narrow, 0) >= PER_NETWORK or taken.get(middle, 0) >= self._wide_max:
            return False
        for network in {middle, narrow}:
            taken[network] = taken.get(network, 0) + 1
        return True
