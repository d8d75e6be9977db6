"""The two or three protobuf messages of libp2p that a host needs: fields of bytes and numbers.

Source: protobuf.dev/programming-guides/encoding. Nothing here waits.
"""

from ...errors import RemoteError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIELDS_MAX = 1024  # an identify message of a busy peer has about 100


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends. Raises RemoteError."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise RemoteError("a varint that is cut off or too long")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def field(number: int, value: bytes | int) -> bytes:
    """One field on the wire."""
    if isinstance(value, int):
        return varint(number << 3 | VARINT) + varint(value)
    return varint(number << 3 | BYTES) + varint(len(value)) + value


def fields(data: bytes) -> dict[int, list[bytes | int]]:
    """Every field's values in order, numbers of fixed size left out. Raises RemoteError."""
    found: dict[int, list[bytes | int]] = {}
    at = count = 0
    while at < len(data):
        count += 1
        if count > FIELDS_MAX:
            raise RemoteError(f"a message of more than {FIELDS_MAX} fields")
        tag, at = read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        value: bytes | int
        if kind == VARINT:
            value, at = read_varint(data, at)
        elif kind == BYTES:
            size, at = read_varint(data, at)
            value = data[at : at + size]
            at += size
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
            continue
        else:
            raise RemoteError(f"a field of unknown kind {kind}")
        if at > len(data):
            raise RemoteError("a field that is cut off")
        found.setdefault(number, []).append(value)
    return found


def only_bytes(found: dict[int, list[bytes | int]], number: int) -> bytes:
    """The last value of a field that must be bytes and must be there. Raises RemoteError."""
    values = found.get(number, [])
    if not values or not isinstance(values[-1], bytes):
        raise RemoteError(f"field {number} is missing")
    return values[-1]
