"""Gossip's messages on the wire: the protobuf of libp2p's pubsub, each after its length.

    RPC      1 subscriptions {1 subscribe, 2 topic}   2 messages   3 control
    Message  2 data   4 topic                       1 from, 3 seqno, 5 signature, 6 key: refused
    control  1 ihave {1 topic, 2 ids}   2 iwant {1 ids}   3 graft {1 topic}
             4 prune {1 topic, 3 seconds}   5 idontwant {1 ids}

What we do not know is passed over, as protobuf has it: signed records, the peers in a prune, later
extensions. A message that says who sent it is refused (StrictNoSign; topics.py says why).
Source: github.com/libp2p/specs, pubsub/README.md and gossipsub-v1.2.md. Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from ...errors import RemoteError
from ...swarm.topics import ID_BYTES, MESSAGE_BYTES_MAX, TOPIC_CHARS_MAX, Message, Rpc
from .protobuf import field, fields, only_bytes, read_varint, varint

RPC_BYTES_MAX: Final = 64 * 1024
LENGTH_BYTES: Final = 3  # of a number up to RPC_BYTES_MAX
FOREIGN_ID_BYTES_MAX: Final = 64  # other programs name their messages otherwise

Fields = dict[int, list[bytes | int]]


def pack(rpc: Rpc) -> bytes:
    """With its length before it."""
    body = b"".join(
        [
            *(field(1, field(1, int(yes)) + _topic(2, name)) for name, yes in rpc.subscriptions),
            *(field(2, field(2, one.data) + _topic(4, one.topic)) for one in rpc.messages),
            _control(rpc),
        ]
    )
    return varint(len(body)) + body


def _control(rpc: Rpc) -> bytes:
    parts = [
        *(field(1, _topic(1, topic) + _ids(2, ids)) for topic, ids in rpc.ihave),
        field(2, _ids(1, rpc.iwant)) if rpc.iwant else b"",
        *(field(3, _topic(1, topic)) for topic in rpc.graft),
        *(field(4, _topic(1, topic) + field(3, wait_s)) for topic, wait_s in rpc.prune),
        field(5, _ids(1, rpc.idontwant)) if rpc.idontwant else b"",
    ]
    body = b"".join(parts)
    return field(3, body) if body else b""


def _topic(number: int, name: str) -> bytes:
    return field(number, name.encode())


def _ids(number: int, ids: Iterable[bytes]) -> bytes:
    return b"".join(field(number, id) for id in ids)


class Reader:
    """Takes a stream apart."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, piece: bytes | bytearray | memoryview) -> Iterator[Rpc]:
        """What is whole by now, each read when it is asked for: take all, before more is fed.

        Raises RemoteError for what no honest peer says.
        """
        self._data += piece
        end = 0
        while (size := self._size(end)) is not None:
            start, end = size
            yield unpack(bytes(self._data[start:end]))
        del self._data[:end]

    def _size(self, at: int) -> tuple[int, int] | None:
        """(where the next one starts, and ends); None while it is not whole."""
        head = bytes(self._data[at : at + LENGTH_BYTES])
        if not any(byte < 0x80 for byte in head):
            if len(head) == LENGTH_BYTES:
                raise RemoteError(f"gossip of more than {RPC_BYTES_MAX} bytes")
            return None
        size, start = read_varint(head, 0)
        if size > RPC_BYTES_MAX:
            raise RemoteError(f"gossip of {size} bytes, where {RPC_BYTES_MAX} are allowed")
        end = at + start + size
        return (at + start, end) if len(self._data) >= end else None


def unpack(body: bytes) -> Rpc:
    """Raises RemoteError."""
    told = fields(body)
    control = fields(b"".join(_parts(told, 3)))  # the same as merging them, says protobuf
    return Rpc(
        subscriptions=tuple(_subscription(part) for part in _parts(told, 1)),
        messages=tuple(_message(part) for part in _parts(told, 2)),
        ihave=tuple(_ihave(part) for part in _parts(control, 1)),
        iwant=_named(control, 2),
        graft=tuple(_name(fields(part), 1) for part in _parts(control, 3)),
        prune=tuple(_prune(part) for part in _parts(control, 4)),
        idontwant=_named(control, 5),
    )


def _subscription(part: bytes) -> tuple[str, bool]:
    told = fields(part)
    return _name(told, 2), bool(_number(told, 1))


def _message(part: bytes) -> Message:
    told = fields(part)
    if told.keys() & {1, 3, 5, 6}:
        raise RemoteError("a message that says who sent it")
    data = only_bytes(told, 2)
    if len(told.get(4, ())) != 1:
        raise RemoteError(f"a message of {len(told.get(4, ()))} topics")
    if len(data) > 2 * MESSAGE_BYTES_MAX:
        raise RemoteError(f"a message of {len(data)} bytes")
    return Message(_name(told, 4), data)


def _ihave(part: bytes) -> tuple[str, tuple[bytes, ...]]:
    told = fields(part)
    return _name(told, 1), _checked(_parts(told, 2))


def _prune(part: bytes) -> tuple[str, int]:
    told = fields(part)
    return _name(told, 1), _number(told, 3)


def _named(control: Fields, number: int) -> tuple[bytes, ...]:
    """The ids in all fields of this number."""
    return _checked(id for part in _parts(control, number) for id in _parts(fields(part), 1))


def _checked(ids: Iterable[bytes]) -> tuple[bytes, ...]:
    """Ids of ours; those of other programs' topics are of no use here."""
    found: list[bytes] = []
    for id in ids:
        if len(id) > FOREIGN_ID_BYTES_MAX:
            raise RemoteError(f"the name of a message of {len(id)} bytes")
        if len(id) == ID_BYTES:
            found.append(id)
    return tuple(found)


def _parts(told: Fields, number: int) -> list[bytes]:
    values = told.get(number, [])
    if not all(isinstance(value, bytes) for value in values):
        raise RemoteError(f"field {number} is a number")
    return values  # type: ignore[return-value]  # just checked


def _number(told: Fields, number: int) -> int:
    value = told.get(number, [0])[-1]
    if not isinstance(value, int):
        raise RemoteError(f"field {number} is no number")
    return value


def _name(told: Fields, number: int) -> str:
    raw = only_bytes(told, number)
    if len(raw) > TOPIC_CHARS_MAX:
        raise RemoteError(f"a topic of {len(raw)} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise RemoteError("a topic that is no text") from error
