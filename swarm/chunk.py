"""Bytes by their digest, in chunks: what peers say on `/potluck/chunks/1`.

A chunk is named by what it is, so it may come from anybody: whoever sends other bytes is found out
at once, and what was checked once need never be fetched again (Merkle, 1987; BitTorrent's pieces,
Cohen, 2003). One request to a stream; each message is a letter, and the bytes of a chunk follow
their `Have` raw.

    opener                              other
    Want{chunks} ─────────────────────▶           16 at most
             ◀──── Have{size} + bytes             for each of them, in their order;
             ◀──── Lack{}                         or that it is not here
             ◀──── Later{retry_after_s}           in place of everything: too many ask

Whoever knows a digest is given its bytes; nothing tells which there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from ..crypto.codec import Range, Size
from ..crypto.digest import digest
from ..crypto.merkle import Bytes, Digest
from ..errors import RemoteError
from .wire import Seconds

PROTOCOL: Final = "/potluck/chunks/1"
CHUNK_BYTES: Final = 1 << 20  # guess: two seconds of the slowest link that is waited for
CHUNK_BYTES_MAX: Final = 4 << 20  # dht/chunks.py: a large model has 35,000 of these
WANT_MAX: Final = 16
LETTER_BYTES_MAX: Final = 1024  # 16 digests and their frame have 600
DOMAIN: Final = "chunk"

ChunkBytes = Annotated[int, Range(1, CHUNK_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Chunk:
    """What is wanted: so many bytes with this digest."""

    digest: Digest
    size: ChunkBytes


@dataclass(frozen=True, slots=True)
class Want:
    TAG: ClassVar[str] = "want"

    chunks: Annotated[tuple[Digest, ...], Size(WANT_MAX, 1)]


@dataclass(frozen=True, slots=True)
class Have:
    """So many bytes follow."""

    TAG: ClassVar[str] = "have"

    size: ChunkBytes


@dataclass(frozen=True, slots=True)
class Lack:
    TAG: ClassVar[str] = "lack"


@dataclass(frozen=True, slots=True)
class Later:
    TAG: ClassVar[str] = "later"

    retry_after_s: Seconds


ANSWERS: Final = (Have, Lack, Later)


class Forged(RemoteError):
    """Other bytes than were asked for, over a road on which only this peer can have sent them."""

    def __init__(self, chunk: Chunk, size: int, came: bytes) -> None:
        super().__init__(f"{size} bytes that are not chunk {chunk.digest.hex()[:12]}")
        self.chunk = chunk
        self.came = came


def digest_of(raw: Bytes) -> bytes:
    """The name of these bytes."""
    return digest(DOMAIN, raw)


def check(chunk: Chunk, raw: Bytes) -> None:
    """Raises Forged unless these are its bytes. Blocks: it hashes them."""
    came = digest_of(raw)
    if len(raw) != chunk.size or came != chunk.digest:
        raise Forged(chunk, len(raw), came)


def cut(raw: Bytes, chunk_bytes: int) -> Iterator[memoryview]:
    """Chunks of so many bytes, the last of what is left; of nothing, none."""
    view = memoryview(raw).cast("B")
    for at in range(0, len(view), chunk_bytes):
        yield view[at : at + chunk_bytes]
