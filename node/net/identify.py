"""What two peers tell each other about themselves: libp2p's identify and ping.

Source: github.com/libp2p/specs, identify and ping. Each side asks once per connection; the answer
says where the other may be dialed, and from which address it sees us. Whatever it says is its own
claim: only the peer id is proved, by the handshake.
"""

import ipaddress
import socket
from dataclasses import dataclass

import trio

from ...crypto.keys import PUBLIC_BYTES, peer_id_of, public_of
from ...errors import RemoteError, TransportError
from . import protobuf
from .address import CIRCUIT, Address, parse
from .noise import ED25519_KEY
from .stream import Stream

IDENTIFY = "/ipfs/id/1.0.0"
PUSH = "/ipfs/id/push/1.0.0"
PING = "/ipfs/ping/1.0.0"
PROTOCOL_VERSION = "ipfs/0.1.0"  # what all implementations say
MESSAGE_BYTES_MAX = 64 * 1024  # go-libp2p sends up to 8 KiB
ADDRESSES_MAX = 32  # that are read; a thousand would hold up everybody else for 0.3 s
PROTOCOLS_MAX = 256  # go-libp2p speaks some 30
PING_BYTES = 32
PING_IDLE_S = 60.0  # then the stream is closed; go-libp2p's own
ANSWER_S = 10.0

# fields of the message
PUBLIC_KEY, LISTENS, PROTOCOLS, OBSERVED, PROTOCOL_OF, AGENT = 1, 2, 3, 4, 5, 6
WORK = 28_783  # "po": ours; libp2p's end at 8, and whoever does not know a field passes over it
WORK_BYTES_MAX = 64

# multiaddr codes, github.com/multiformats/multicodec
IP4, TCP, DNS, DNS4, DNS6, IP6, P2P, P2P_CIRCUIT = 4, 6, 53, 54, 55, 41, 421, 290
TLS, WS, WSS = 448, 477, 478
IDENTITY_MULTIHASH = b"\x00\x24"  # the key itself, 36 bytes, and no hash of it
_IP_BYTES = {IP4: 4, IP6: 16}
_NAMES = {IP4: "ip4", IP6: "ip6", DNS: "dns", DNS4: "dns4", DNS6: "dns6"}
_CODES = {name: code for code, name in _NAMES.items()}
_CARRIERS = {TLS: "tls", WS: "ws", WSS: "wss"}
_OVER = {"tcp": (), "ws": (WS,), "wss": (TLS, WS)}


@dataclass(frozen=True, slots=True)
class Claims:
    """What a peer said about itself, bounded and parsed, but not proved."""

    agent: str
    protocols: tuple[str, ...]
    addresses: tuple[Address, ...]
    observed: Address | None  # where it sees us
    work: bytes = b""  # that it paid for its identity (node/toll.py)


def describe(
    public: bytes,
    *,
    agent: str,
    protocols: list[str],
    addresses: list[Address],
    observed: Address | None,
    work: bytes = b"",
) -> bytes:
    """Our own message, with its length in front."""
    body = b"".join(
        (
            protobuf.field(PUBLIC_KEY, ED25519_KEY + public),
            *(protobuf.field(LISTENS, to_binary(address)) for address in addresses),
            *(protobuf.field(PROTOCOLS, protocol.encode()) for protocol in protocols),
            protobuf.field(OBSERVED, to_binary(observed)) if observed else b"",
            protobuf.field(PROTOCOL_OF, PROTOCOL_VERSION.encode()),
            protobuf.field(AGENT, agent.encode()),
            protobuf.field(WORK, work) if work else b"",
        )
    )
    return protobuf.varint(len(body)) + body


def understand(message: bytes) -> Claims:
    """A peer's message, without its length. Addresses that cannot be dialed are left out."""
    found = protobuf.fields(message)
    observed = [from_binary(value) for value in found.get(OBSERVED, [])[-1:]]
    work = found.get(WORK, [b""])[-1]
    return Claims(
        agent=_text(found.get(AGENT, [b""])[-1]),
        protocols=tuple(_text(value) for value in found.get(PROTOCOLS, ())[:PROTOCOLS_MAX]),
        addresses=tuple(
            address
            for value in found.get(LISTENS, ())[:ADDRESSES_MAX]
            if (address := from_binary(value))
        ),
        observed=observed[-1] if observed else None,
        work=work if isinstance(work, bytes) and len(work) <= WORK_BYTES_MAX else b"",
    )


async def ask(stream: Stream) -> Claims:
    """What the other end of an identify stream says. Raises RemoteError, TransportError."""
    data = bytearray()
    while True:
        piece = await stream.receive(MESSAGE_BYTES_MAX)
        data += piece
        if len(data) > MESSAGE_BYTES_MAX:
            raise RemoteError(f"an identify message of more than {MESSAGE_BYTES_MAX} bytes")
        if (whole := _whole(bytes(data))) is not None:
            return understand(whole)
        if not piece:
            raise TransportError(f"{stream.peer} did not say who it is")


async def echo_pings(stream: Stream) -> None:
    """Send every 32 bytes back, until the peer ends or is silent for a minute."""
    data = bytearray()
    while True:
        piece: bytes | bytearray | memoryview = b""
        with trio.move_on_after(PING_IDLE_S):
            piece = await stream.receive(PING_BYTES - len(data))
        if not piece:
            await stream.close()
            return
        data += piece
        if len(data) == PING_BYTES:
            await stream.send(data)
            data = bytearray()


def to_binary(address: Address) -> bytes:
    """A multiaddr in its binary form, without the peer; with the relay that it leads over."""
    code = _CODES[address.kind]
    if code in _IP_BYTES:
        family = socket.AF_INET if code == IP4 else socket.AF_INET6
        host = socket.inet_pton(family, address.host)
    else:
        host = protobuf.varint(len(address.host)) + address.host.encode()
    place = protobuf.varint(code) + host + protobuf.varint(TCP) + address.port.to_bytes(2)
    place += b"".join(protobuf.varint(code) for code in _OVER[address.over])
    if address.relay is None:
        return place
    return place + peer_to_binary(address.relay) + protobuf.varint(P2P_CIRCUIT)


def peer_to_binary(peer: str) -> bytes:
    """The /p2p/ part of a multiaddr."""
    raw = peer_bytes(peer)
    return protobuf.varint(P2P) + protobuf.varint(len(raw)) + raw


def peer_bytes(peer: str) -> bytes:
    """A peer id as libp2p sends it: the identity multihash of its key."""
    return IDENTITY_MULTIHASH + ED25519_KEY + public_of(peer)


def peer_from_bytes(raw: bytes) -> str:
    """Raises RemoteError when it is not that of an Ed25519 key."""
    head = IDENTITY_MULTIHASH + ED25519_KEY
    if not raw.startswith(head) or len(raw) != len(head) + PUBLIC_BYTES:
        raise RemoteError("a peer id that is not an Ed25519 key's")
    return peer_id_of(raw[len(head) :])


def from_binary(data: bytes | int) -> Address | None:
    """The TCP address in a binary multiaddr, perhaps over a relay; None for any other."""
    if isinstance(data, int):
        return None
    try:
        code, at = protobuf.read_varint(data, 0)
        if code in _IP_BYTES:
            raw, at = data[at : at + _IP_BYTES[code]], at + _IP_BYTES[code]
            host = str(ipaddress.ip_address(raw))
        elif code in _NAMES:
            size, at = protobuf.read_varint(data, at)
            host, at = data[at : at + size].decode("ascii"), at + size
        else:
            return None
        code_of_port, at = protobuf.read_varint(data, at)
        if code_of_port != TCP or len(data) < at + 2:
            return None
        place = f"/{_NAMES[code]}/{host}/tcp/{int.from_bytes(data[at : at + 2])}"
        return parse(place + _tail(data[at + 2 :]))
    except (RemoteError, ValueError):
        return None


def _tail(data: bytes) -> str:
    """What follows the port: what carries, peers, and that one passes on to the other.

    Raises RemoteError.
    """
    text, at = "", 0
    while at < len(data):
        code, at = protobuf.read_varint(data, at)
        if code == P2P:
            size, at = protobuf.read_varint(data, at)
            text += f"/p2p/{peer_from_bytes(data[at : at + size])}"
            at += size
        elif code == P2P_CIRCUIT:
            text += f"/{CIRCUIT}"
        elif code in _CARRIERS:
            text += f"/{_CARRIERS[code]}"
        else:
            raise RemoteError(f"a multiaddr with code {code}")
    return text


def _whole(data: bytes) -> bytes | None:
    """The message in `data` behind its length, once it is all there."""
    try:
        size, at = protobuf.read_varint(data, 0)
    except RemoteError:
        return None
    if size > MESSAGE_BYTES_MAX:
        raise RemoteError(f"an identify message of {size} bytes")
    return data[at : at + size] if len(data) >= at + size else None


def _text(value: bytes | int) -> str:
    return value[:256].decode(errors="replace") if isinstance(value, bytes) else ""
