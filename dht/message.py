"""What directories say to each other, on `/potluck/kad/2`.

A stream is opened by the one who asks and lives as long as there is something to ask; each message
is its length (4 bytes, big-endian) and its canonical bytes. Answers carry the number of their
question and may come in any order.

    opener                                      other
    Hello{addresses, serving}  ──────────────▶          first, and again when they change
                               ◀──────────────  Hello
    Find{id, place, want, have} ─────────────▶
                               ◀──────────────  Found{id, closer, records}
    Put{id, records}           ──────────────▶
                               ◀──────────────  Kept{id, kept}
    Fetch{id, places}          ──────────────▶          who has these chunks, many in one go
                               ◀──────────────  Fetched{id, records}

`have` names records that the reader has got in this look-up (8 bytes of each one's digest), so that
twenty holders of one place do not all send the same.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from ..crypto.codec import Range, Size, decode_any, encode
from ..crypto.keys import PEER_ID_CHARS
from ..errors import RemoteError
from .keyspace import PLACE_BYTES
from .record import RECORD_BYTES_MAX

PROTOCOL: Final = "/potluck/kad/2"
LENGTH_BYTES: Final = 4
CONTACTS_MAX: Final = 20  # Kademlia's k
HAVE_BYTES: Final = 8  # enough that nobody makes a second record of the same eight
PUT_RECORDS_MAX: Final = 64  # small ones
REQUEST_BYTES_MAX: Final = 48 * 1024  # eight records of the greatest size
FETCH_PLACES_MAX: Final = 32  # 16 providers of each fill an answer
ANSWER_BYTES_MAX: Final = 256 * 1024
ANSWER_RECORD_BYTES_MAX: Final = 192 * 1024  # the rest is left for contacts and names

Addresses = Annotated[tuple[Annotated[str, Size(256)], ...], Size(8)]
Number = Annotated[int, Range(0, 2**32 - 1)]
Place = Annotated[bytes, Size(PLACE_BYTES, least=PLACE_BYTES)]
Raw = Annotated[bytes, Size(RECORD_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Contact:
    """A peer, and where it may be dialled; hearsay until it answers."""

    peer: Annotated[str, Size(PEER_ID_CHARS, least=PEER_ID_CHARS)]
    addresses: Addresses


@dataclass(frozen=True, slots=True)
class Hello:
    """Who speaks. serving: whether it keeps records for others and may be told to others."""

    TAG: ClassVar[str] = "hello"

    addresses: Addresses
    serving: bool


@dataclass(frozen=True, slots=True)
class Find:
    """Which peers are closest to `place`; and, if `want`, which records are there."""

    TAG: ClassVar[str] = "find"

    id: Number
    place: Place
    want: bool
    have: Annotated[bytes, Size(HAVE_BYTES * 2048)]


@dataclass(frozen=True, slots=True)
class Found:
    TAG: ClassVar[str] = "found"

    id: Number
    closer: Annotated[tuple[Contact, ...], Size(CONTACTS_MAX)]
    records: Annotated[tuple[Raw, ...], Size(1024)]


@dataclass(frozen=True, slots=True)
class Put:
    """Records of the sender's own; nobody puts another's."""

    TAG: ClassVar[str] = "put"

    id: Number
    records: Annotated[tuple[Raw, ...], Size(PUT_RECORDS_MAX)]


@dataclass(frozen=True, slots=True)
class Kept:
    """Which of the records are kept now, in their order."""

    TAG: ClassVar[str] = "kept"

    id: Number
    kept: Annotated[tuple[bool, ...], Size(PUT_RECORDS_MAX)]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Which records of chunks are at these places; where peers are is not answered."""

    TAG: ClassVar[str] = "fetch"

    id: Number
    places: Annotated[tuple[Place, ...], Size(FETCH_PLACES_MAX)]


@dataclass(frozen=True, slots=True)
class Fetched:
    TAG: ClassVar[str] = "fetched"

    id: Number
    records: Annotated[tuple[Raw, ...], Size(1024)]


Question = Find | Put | Fetch
Request = Hello | Question
Answer = Found | Kept | Fetched
Reply = Hello | Answer


def to_frame(message: Request | Reply) -> bytes:
    raw = encode(message)
    return len(raw).to_bytes(LENGTH_BYTES) + raw


def read_request(raw: bytes) -> Request:
    """Raises RemoteError."""
    request: Request = decode_any(raw, (Hello, Find, Put, Fetch), max_bytes=REQUEST_BYTES_MAX)
    return request


def read_reply(raw: bytes) -> Reply:
    """Raises RemoteError."""
    reply: Reply = decode_any(raw, (Hello, Found, Kept, Fetched), max_bytes=ANSWER_BYTES_MAX)
    return reply


class FrameReader:
    """Bytes in, whole messages out. Holds at most one message and what came with it."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._buffer = bytearray()

    @property
    def holds_part(self) -> bool:
        """Whether a message has begun and not ended."""
        return len(self._buffer) > 0

    def feed(self, piece: bytes | bytearray | memoryview) -> None:
        self._buffer += piece

    def next(self) -> bytes | None:
        """The next whole message, or None. Raises RemoteError when one is longer than allowed."""
        if len(self._buffer) < LENGTH_BYTES:
            return None
        size = int.from_bytes(self._buffer[:LENGTH_BYTES])
        if size > self._bytes_max:
            raise RemoteError(f"a message of {size} bytes, where {self._bytes_max} are allowed")
        end = LENGTH_BYTES + size
        if len(self._buffer) < end:
            return None
        raw = bytes(self._buffer[LENGTH_BYTES:end])
        del self._buffer[:end]
        return raw
