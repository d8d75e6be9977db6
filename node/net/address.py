"""Where a peer listens: multiaddrs over TCP or a WebSocket, and the interfaces behind 0.0.0.0.

Source: multiformats.io/multiaddr. Of the many kinds, these can be dialed here:

    /ip4/192.0.2.7/tcp/4001[/p2p/12D3KooW...]    also ip6, dns, dns4, dns6
    /ip4/192.0.2.7/tcp/443/ws[/p2p/...]    inside a WebSocket; /tls/ws, or /wss: that in TLS
    /ip4/192.0.2.7/tcp/4001[/ws]/p2p/RELAY/p2p-circuit[/p2p/...]    through a relay that is there
"""

import errno
import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import ifaddr

from ...crypto.keys import public_of
from ...errors import RemoteError, TransportError, UserError

Over = Literal["tcp", "ws", "wss"]

IP_KINDS = {"ip4": 4, "ip6": 6}
NAME_KINDS = frozenset(("dns", "dns4", "dns6"))
PEER_KINDS = frozenset(("p2p", "ipfs"))  # ipfs: the same, before 2019
CIRCUIT = "p2p-circuit"
OVER: dict[tuple[str, ...], Over] = {("ws",): "ws", ("wss",): "wss", ("tls", "ws"): "wss"}
SPELLED: dict[Over, str] = {"tcp": "", "ws": "/ws", "wss": "/tls/ws"}
TEXT_CHARS_MAX = 400
NAME_CHARS_MAX = 253  # RFC 1035
LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"  # RFC 1123
NAME = re.compile(rf"{LABEL}(?:\.{LABEL})*")


@dataclass(frozen=True, slots=True)
class Address:
    """One TCP end point, and who is said to listen there, or behind the relay that does."""

    kind: str  # ip4, ip6, dns, dns4 or dns6
    host: str
    port: int
    peer: str | None = None
    relay: str | None = None  # who listens there and passes on to `peer`; None: `peer` itself
    over: Over = "tcp"  # what carries the bytes

    def __str__(self) -> str:
        through = f"/p2p/{self.relay}/p2p-circuit" if self.relay else ""
        tail = f"/p2p/{self.peer}" if self.peer else ""
        return f"/{self.kind}/{self.host}/tcp/{self.port}{SPELLED[self.over]}{through}{tail}"

    @property
    def bare(self) -> "Address":
        """The same place, without saying who is there."""
        return replace(self, peer=None)

    @property
    def end_point(self) -> "Address":
        """Who listens there: the peer, or the relay before it."""
        return replace(self, peer=None, relay=None)

    @property
    def is_ip(self) -> bool:
        return self.kind in IP_KINDS


def parse(text: str) -> Address:
    """The address that a multiaddr means. Raises RemoteError for any that cannot be dialed."""
    if len(text) > TEXT_CHARS_MAX:
        raise RemoteError(f"an address of {len(text)} characters")
    parts = text.split("/")
    if len(parts) < 5 or parts[0] or parts[3] != "tcp":
        raise RemoteError(f"{text!r} is no TCP address such as /ip4/192.0.2.7/tcp/4001/p2p/...")
    kind, host, port = parts[1], parts[2], parts[4]
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise RemoteError(f"{text!r} has no port")
    if kind in IP_KINDS:
        host = _checked_ip(host, IP_KINDS[kind], text)
    elif kind not in NAME_KINDS or len(host) > NAME_CHARS_MAX or not NAME.fullmatch(host):
        raise RemoteError(f"{text!r} is neither an IP address nor a name")
    over, rest = _over(parts[5:])
    relay, peer = _who(rest, text)
    return Address(kind, host, int(port), peer, relay, over)


def _over(parts: list[str]) -> tuple[Over, list[str]]:
    """What the parts behind the port say of the carrier, and those behind that."""
    for size in (2, 1):
        over = OVER.get(tuple(parts[:size]))
        if over is not None and len(parts) >= size:
            return over, parts[size:]
    return "tcp", parts


def _who(parts: list[str], text: str) -> tuple[str | None, str | None]:
    """The relay and the peer that the parts behind the carrier name. Raises RemoteError."""
    relay = peer = None
    if len(parts) in (3, 5) and parts[0] in PEER_KINDS and parts[2] == CIRCUIT:
        relay = parts[1]
        public_of(relay)
        parts = parts[3:]
    if parts:
        if len(parts) != 2 or parts[0] not in PEER_KINDS:
            raise RemoteError(f"{text!r} goes on after the port with {'/'.join(parts)!r}")
        peer = parts[1]
        public_of(peer)
    return relay, peer


def parse_all(addresses: Sequence[str]) -> tuple[str, list[Address]]:
    """Of one peer, and which that is. Raises TransportError: nobody else can be dialed by them."""
    try:
        found = [parse(address) for address in addresses]
    except RemoteError as error:
        raise TransportError(str(error)) from error
    names = {address.peer for address in found if address.peer}
    if len(names) != 1:
        raise TransportError(f"addresses of one peer end in its /p2p/ id, not {addresses}")
    return names.pop(), found


def parse_known(texts: Iterable[str], peer: str) -> list[Address]:
    """Of addresses that somebody gave for `peer`, those that can be dialed."""
    found = []
    for text in texts:
        try:
            address = parse(text)
        except RemoteError:
            continue  # another transport, a newer kind, or nonsense: no use to us
        if address.peer in (None, peer) and address.port:
            found.append(address)
    return found


def listening(texts: Sequence[str]) -> list[socket.socket]:
    """Sockets that listen on these multiaddrs. Raises UserError."""
    opened: list[socket.socket] = []
    try:
        for text in texts:
            opened.append(_listen(text))
    except UserError:
        for sock in opened:
            sock.close()
        raise
    return opened


def every_interface(port: int) -> tuple[str, ...]:
    """Where to listen to be dialed at each address of this machine: IPv6's too, if it has that."""
    places = [f"/ip4/0.0.0.0/tcp/{port}"]
    if socket.has_ipv6:
        try:
            with socket.socket(socket.AF_INET6) as sock:
                sock.bind(("::", 0))
            places.append(f"/ip6/::/tcp/{port}")
        except OSError:
            pass  # built with it, but switched off
    return tuple(places)


class Listening(socket.socket):
    """A socket that listens. Each takes WebSockets too; `over` is what it is announced as."""

    over: Over = "tcp"


def reachable(sockets: Sequence[socket.socket]) -> list[Address]:
    """Where these sockets can be dialed: a wildcard stands for every interface's address."""
    found: list[Address] = []
    for sock in sockets:
        host, port = sock.getsockname()[:2]
        kind = "ip6" if sock.family == socket.AF_INET6 else "ip4"
        hosts = _interfaces(kind) if host in ("0.0.0.0", "::") else [host]
        over = sock.over if isinstance(sock, Listening) else "tcp"
        found += [Address(kind, each, port, over=over) for each in hosts]
    return sorted(set(found), key=lambda address: (_is_loopback(address.host), str(address)))


def _listen(text: str) -> Listening:
    try:
        address = parse(text)
    except RemoteError as error:
        raise UserError(f"cannot listen on {text}: {error}") from error
    if not address.is_ip:
        raise UserError(f"cannot listen on {text}: give an IP address, such as /ip4/0.0.0.0/tcp/0")
    if address.over == "wss":
        raise UserError(f"cannot listen on {text}: give /ws, and put a web server with TLS before")
    sock = Listening(socket.AF_INET6 if address.kind == "ip6" else socket.AF_INET)
    sock.over = address.over
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.kind == "ip6":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
        sock.listen(128)
        share_port(sock)  # after the bind: another listener here is still refused
    except OSError as error:
        sock.close()
        raise UserError(f"cannot listen on {text}: {_remedy(error, address.port)}") from error
    return sock


def share_port(sock: socket.socket) -> None:
    """Let a socket have the port of another one of this user: a dial from where we listen.

    Only so does the NAT in front of us give the dial the mapping that the listener has.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):  # Windows has none: SO_REUSEADDR means as much there
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def address_of(end_point: tuple[str, int]) -> Address:
    """The address of a socket's end."""
    host = end_point[0].partition("%")[0]
    return Address("ip6" if ":" in host else "ip4", host, end_point[1])


def _remedy(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use; stop what uses it, or choose another port"
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges; choose one above 1023"
    return f"{error.strerror}; choose an address of this machine"


def _interfaces(kind: str) -> list[str]:
    hosts = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            host = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            address = ipaddress.ip_address(host)
            if address.version == IP_KINDS[kind] and not address.is_link_local:
                hosts.append(host)
    return hosts or ["127.0.0.1" if kind == "ip4" else "::1"]


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def _checked_ip(host: str, version: int, text: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise RemoteError(f"{text!r} has no IP address") from error
    if address.version != version or getattr(address, "scope_id", None):
        raise RemoteError(f"{text!r} has no IPv{version} address")
    return str(address)
