"""Whom this node has to do with at all: a ban list and an allow-list, of peers and of networks.

    banned, by its id or its address ─────▶ refused, whatever else is said of it
    there is no allow-list ───────────────▶ admitted
    allowed, by its id or its address ────▶ admitted, all others are refused

An address is judged before the handshake, a peer right after it: only then it is known who it is.
Behind a relay nobody's address is known, so that only ids count there. Nothing here waits.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from ...crypto.keys import public_of
from ...errors import RemoteError, UserError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

BANNED: Final = "it is on the ban list"
NOT_ALLOWED: Final = "it is not on the allow-list"


@dataclass(frozen=True, slots=True)
class Listed:
    """Peers by their ids, and whoever is in some network."""

    peers: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    def holds(self, address: IpAddress) -> bool:
        return any(address.version == net.version and address in net for net in self.networks)


@dataclass(frozen=True, slots=True)
class Access:
    """Both lists. allowed: None admits whoever is not banned.

    swarm_key: of a private swarm, 32 bytes, without which nobody gets as far as the lists.
    """

    banned: Listed = Listed()
    allowed: Listed | None = None
    swarm_key: bytes = field(default=b"", repr=False)

    def refuses_host(self, host: str) -> str:
        """Why nobody at this IP address is welcome, whoever it is; "" when somebody may be."""
        address = plain(host)
        if self.banned.holds(address):
            return BANNED
        allowed = self.allowed
        if allowed is None or allowed.peers or allowed.holds(address):
            return ""
        return NOT_ALLOWED

    def refuses_peer(self, peer: str, host: str | None) -> str:
        """Why this peer is not welcome; "" when it is. host: None where nobody knows whence."""
        address = None if host is None else plain(host)
        if peer in self.banned.peers or (address and self.banned.holds(address)):
            return BANNED
        allowed = self.allowed
        if allowed is None or peer in allowed.peers or (address and allowed.holds(address)):
            return ""
        return NOT_ALLOWED

    def may_be(self, peer: str) -> bool:
        """Whether this peer would be welcome from some address."""
        if peer in self.banned.peers:
            return False
        return self.allowed is None or peer in self.allowed.peers or bool(self.allowed.networks)


def parse_listed(entries: Iterable[str]) -> Listed:
    """Peer ids, addresses that end in one, IP addresses and networks. Raises UserError."""
    peers: set[str] = set()
    networks: list[Network] = []
    for entry in entries:
        found = parse_entry(entry)
        if isinstance(found, str):
            peers.add(found)
        else:
            networks.append(found)
    return Listed(frozenset(peers), tuple(networks))


def parse_entry(entry: str) -> str | Network:
    """A peer id, or a network. Raises UserError."""
    name = entry.rpartition("/p2p/")[2]  # the whole address of a peer names it as well
    try:
        public_of(name)
        return name
    except RemoteError:
        pass  # then it is a network, or nothing
    try:
        return ipaddress.ip_network(entry)
    except ValueError as error:
        reason = str(error)
    if reason.endswith("has host bits set"):
        raise UserError(
            f"{entry}: write it as {ipaddress.ip_network(entry, strict=False)}, or one address "
            "without the /"
        )
    raise UserError(
        f"{entry:.80}: neither a peer id (12D3KooW...), nor an IP address, nor a network "
        "such as 203.0.113.0/24"
    )


def plain(host: str) -> IpAddress:
    """The IP address in a socket's words: without a scope, and IPv4 however it came."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def subnet(host: str) -> str:
    """What one party can hold many addresses of: a /24 of IPv4, a /56 of IPv6."""
    address = plain(host)
    bits = 24 if address.version == 4 else 56
    return str(ipaddress.ip_network((address, bits), strict=False))
