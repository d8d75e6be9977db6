"""Which network an address stands in, so that one landlord does not fill a list with his tenants.

A /24 of IPv4 or a /48 of IPv6 is what one person gets cheaply (algorithms, 3.5). Addresses that the
Internet does not route (a home, a test on loopback) stand for no network: they are not counted.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final, TypeVar

PER_NETWORK: Final = 2  # algorithms 3.5: at most two ids of a /24 in any list that is contested

T = TypeVar("T")


@lru_cache(maxsize=4096)
def network_of(address: str) -> str | None:
    """The network of a multiaddr, or None when it is private or has no host that we know."""
    parts = address.split("/", 3)
    if len(parts) < 3:
        return None
    kind, host = parts[1], parts[2]
    try:
        match kind:
            case "ip4":
                return _routed(IPv4Address(host), 24)
            case "ip6":
                return _routed(IPv6Address(host), 48)
            case "dns" | "dns4" | "dns6" | "dnsaddr":
                return host.lower()
    except ValueError:
        return None
    return None


def _routed(ip: IPv4Address | IPv6Address, bits: int) -> str | None:
    return str(ip_network((ip, bits), strict=False)) if ip.is_global else None


def networks_of(addresses: Iterable[str]) -> frozenset[str]:
    found = (network_of(address) for address in addresses)
    return frozenset(network for network in found if network is not None)


def diverse_first(
    ranked: Iterable[tuple[T, frozenset[str]]], count: int, *, per_network: int = PER_NETWORK
) -> Sequence[T]:
    """The first `count` of `ranked`; members beyond `per_network` of one network come last.

    Nobody is shut out of a list that is not full: a swarm within one /24 works.
    """
    first: list[T] = []
    later: list[T] = []
    seen: dict[str, int] = {}
    for member, networks in ranked:
        if any(seen.get(network, 0) >= per_network for network in networks):
            later.append(member)
            continue
        for network in networks:
            seen[network] = seen.get(network, 0) + 1
        first.append(member)
        if len(first) == count:
            return first
    return first + later[: count - len(first)]
