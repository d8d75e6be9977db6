"""What a relay and its two ends say: libp2p's circuit relay v2, on the wire.

Source: github.com/libp2p/specs/blob/master/relay/circuit-v2.md. Messages are protobufs behind their
length; after the last one the same stream carries the connection between the two ends.

    HOP    to a relay    RESERVE ──▶ STATUS with reservation and voucher
                         CONNECT(peer) ──▶ STATUS, then bytes
    STOP   from a relay  CONNECT(peer, limit) ──▶ STATUS, then bytes
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from ...crypto.keys import PUBLIC_BYTES, IdentityKey, peer_id_of, verify
from ...errors import RemoteError, TransportError
from . import protobuf
from .address import Address
from .identify import from_binary, peer_bytes, peer_from_bytes, peer_to_binary, to_binary
from .mux_stream import MuxStream
from .noise import ED25519_KEY

HOP: Final = "/libp2p/circuit/relay/0.2.0/hop"
STOP: Final = "/libp2p/circuit/relay/0.2.0/stop"
MESSAGE_BYTES_MAX: Final = 4096  # go-libp2p's limit
ADDRESSES_MAX: Final = 16
VOUCHER_DOMAIN: Final = b"libp2p-relay-rsvp"
VOUCHER_TYPE: Final = bytes((0x03, 0x02))  # its multicodec

# HopMessage types, then StopMessage's
RESERVE, HOP_CONNECT, HOP_STATUS = 0, 1, 2
STOP_CONNECT, STOP_STATUS = 0, 1


class Status(IntEnum):
    """What came of it."""

    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


@dataclass(frozen=True, slots=True)
class Limit:
    """What a relay lets one circuit have; 0 is no limit. data_bytes: each way."""

    duration_s: int = 0
    data_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Reservation:
    """Leave to be reached through a relay, until `expires_s` (unix)."""

    expires_s: int
    addresses: tuple[Address, ...] = ()  # the relay's
    voucher: bytes = b""


@dataclass(frozen=True, slots=True)
class Message:
    """A hop or stop message; which fields are set depends on its kind."""

    kind: int
    peer: str | None = None
    reservation: Reservation | None = None
    limit: Limit | None = None
    status: int | None = None


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Where hop and stop messages keep the same things."""

    limit: int
    status: int


_HOP = _Numbers(limit=4, status=5)
_STOP = _Numbers(limit=3, status=4)
_KIND, _PEER, _RESERVATION = 1, 2, 3


def encode_hop(message: Message) -> bytes:
    return _encode(message, _HOP)


def encode_stop(message: Message) -> bytes:
    return _encode(message, _STOP)


def decode_hop(raw: bytes) -> Message:
    """Raises RemoteError."""
    return _decode(raw, _HOP)


def decode_stop(raw: bytes) -> Message:
    """Raises RemoteError."""
    return _decode(raw, _STOP)


async def send_message(stream: MuxStream, raw: bytes) -> None:
    await stream.send(protobuf.varint(len(raw)) + raw)


async def receive_message(stream: MuxStream) -> bytes:
    """One message; what follows it stays in the stream. Raises RemoteError, TransportError."""
    data = bytearray()
    while True:
        piece = await stream.receive(MESSAGE_BYTES_MAX)
        if not piece:
            raise TransportError(f"{stream.peer} ended the stream in a message")
        data += piece
        try:
            size, at = protobuf.read_varint(bytes(data[:10]), 0)
        except RemoteError:
            if len(data) >= 10:
                raise
            continue  # the length is not whole yet
        if size > MESSAGE_BYTES_MAX:
            raise RemoteError(f"a message of {size} bytes")
        if len(data) >= at + size:
            if len(data) > at + size:
                stream.push_back(bytes(data[at + size :]))
            return bytes(data[at : at + size])


async def call_through(stream: MuxStream, peer: str) -> Limit:
    """Have a relay pass this stream on to `peer`. Raises TransportError, RemoteError."""
    await send_message(stream, encode_hop(Message(HOP_CONNECT, peer=peer)))
    answer = decode_hop(await receive_message(stream))
    if answer.kind != HOP_STATUS or answer.status is None:
        raise RemoteError("a relay that answers CONNECT with something else")
    if answer.status != Status.OK:
        raise TransportError(f"the relay says {name(answer.status)}")
    return answer.limit or Limit()


def name(status: int) -> str:
    """A status in words."""
    try:
        return Status(status).name.lower().replace("_", " ")
    except ValueError:
        return f"status {status}"


def voucher(key: IdentityKey, peer: str, expires_s: int) -> bytes:
    """A relay's signed word that `peer` has a reservation: libp2p's signed envelope."""
    payload = b"".join(
        (
            protobuf.field(1, peer_bytes(key.peer_id)),
            protobuf.field(2, peer_bytes(peer)),
            protobuf.field(3, expires_s),
        )
    )
    return b"".join(
        (
            protobuf.field(1, ED25519_KEY + key.public),
            protobuf.field(2, VOUCHER_TYPE),
            protobuf.field(3, payload),
            protobuf.field(5, key.sign(_vouched(payload))),
        )
    )


def check_voucher(raw: bytes, *, relay: str, peer: str, now: float) -> None:
    """Raises RemoteError when this is not `relay`'s word that `peer` may be reached through it.

    now: unix seconds.
    """
    envelope = protobuf.fields(raw)
    public = protobuf.only_bytes(envelope, 1)
    payload = protobuf.only_bytes(envelope, 3)
    if not public.startswith(ED25519_KEY) or len(public) != len(ED25519_KEY) + PUBLIC_BYTES:
        raise RemoteError("a voucher under no Ed25519 key")
    public = public[len(ED25519_KEY) :]
    if protobuf.only_bytes(envelope, 2) != VOUCHER_TYPE:
        raise RemoteError("a signed envelope that holds no voucher")
    if not verify(public, protobuf.only_bytes(envelope, 5), _vouched(payload)):
        raise RemoteError("a bad signature on a voucher")
    told = protobuf.fields(payload)
    names = {peer_id_of(public), peer_from_bytes(protobuf.only_bytes(told, 1))}
    if names != {relay}:
        raise RemoteError("a voucher of another relay")
    if peer_from_bytes(protobuf.only_bytes(told, 2)) != peer:
        raise RemoteError("a voucher for another peer")
    if (_number(told, 3) or 0) <= now:
        raise RemoteError("a voucher that has expired")


def _vouched(payload: bytes) -> bytes:
    """What a voucher's signature covers."""
    parts = (VOUCHER_DOMAIN, VOUCHER_TYPE, payload)
    return b"".join(protobuf.varint(len(part)) + part for part in parts)


def _encode(message: Message, numbers: _Numbers) -> bytes:
    out = protobuf.field(_KIND, message.kind)
    if message.peer is not None:
        out += protobuf.field(_PEER, protobuf.field(1, peer_bytes(message.peer)))
    if message.reservation is not None:
        out += protobuf.field(_RESERVATION, _encode_reservation(message.reservation))
    if message.limit is not None:
        limit = protobuf.field(1, message.limit.duration_s)
        out += protobuf.field(numbers.limit, limit + protobuf.field(2, message.limit.data_bytes))
    if message.status is not None:
        out += protobuf.field(numbers.status, message.status)
    return out


def _encode_reservation(reservation: Reservation) -> bytes:
    out = protobuf.field(1, reservation.expires_s)
    for address in reservation.addresses:
        tail = peer_to_binary(address.peer) if address.peer else b""
        out += protobuf.field(2, to_binary(address) + tail)
    return out + (protobuf.field(3, reservation.voucher) if reservation.voucher else b"")


def _decode(raw: bytes, numbers: _Numbers) -> Message:
    found = protobuf.fields(raw)
    peer = reservation = limit = None
    if found.get(_PEER):
        peer = peer_from_bytes(protobuf.only_bytes(protobuf.fields(_bytes(found, _PEER)), 1))
    if numbers is _HOP and found.get(_RESERVATION):
        reservation = _decode_reservation(_bytes(found, _RESERVATION))
    if found.get(numbers.limit):
        told = protobuf.fields(_bytes(found, numbers.limit))
        limit = Limit(_number(told, 1) or 0, _number(told, 2) or 0)
    return Message(
        _number(found, _KIND) or 0, peer, reservation, limit, _number(found, numbers.status)
    )


def _decode_reservation(raw: bytes) -> Reservation:
    told = protobuf.fields(raw)
    addresses = [from_binary(value) for value in told.get(2, [])[:ADDRESSES_MAX]]
    signed = told.get(3, [b""])[-1]
    return Reservation(
        _number(told, 1) or 0,
        tuple(address for address in addresses if address is not None),
        signed if isinstance(signed, bytes) else b"",
    )


def _bytes(found: dict[int, list[bytes | int]], number: int) -> bytes:
    return protobuf.only_bytes(found, number)


def _number(found: dict[int, list[bytes | int]], number: int) -> int | None:
    values = found.get(number, [])
    if not values:
        return None
    if not isinstance(values[-1], int):
        raise RemoteError(f"field {number} is no number")
    return values[-1]
