"""Every message of a session's stream.

A client opens one stream per hop and keeps it for the life of the session. It sends `Open`, then
`Step`s whose hidden states follow the header raw (frame.py); the server answers each in order.

    client                              server
      Open ────────────────────────────▶  reserves cache, or Busy(retry_after_s)
      ◀──────────────────────── Opened
      Step(at, sizes, rows) + hidden ───▶ runs its blocks, remembers keys and values
      ◀───────── Output(at, ...) + hidden
      Sign ────────────────────────────▶  signs for all that is pending
      ◀───────── Receipts(chunks)         where `Open` asked for them (receipt.py)
      Renew ───────────────────────────▶  the lease starts anew
      ◀───────────────────── Leaving      at any time: look for another, I serve until then
      (close)                             frees the cache at once

A session that wears an adapter (adapter.py) opens with `Wear` in place of `Open`, under a protocol
of its own, so that whoever knows of none is not asked:

      Wear(adapter, size) ─────────────▶  reserves room, or Busy
      ◀──────────── Lacking(within_s)     unless the adapter is there
      Bring + manifest, Piece + bytes ... the parts of the blocks that were asked for, in order
      ◀──────────────────────── Opened

Positions are explicit: a step `at` an earlier position than the cache's length truncates it first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final

from ..crypto.codec import Range, Size
from ..crypto.envelope import OVERHEAD_BYTES
from ..crypto.merkle import Digest

Position = Annotated[int, Range(0, 1 << 24)]  # of a token in a session; or a number of tokens
BlockNumber = Annotated[int, Range(0, 1 << 16)]
Seconds = Annotated[float, Range(0.0, 1e6)]

PROTOCOL = "/potluck/session/2"
WEARING_PROTOCOL = "/potluck/session/3"  # as the one before, and sessions that open with `Wear`

WORN_BYTES_MAX: Final = 512 * 1024 * 1024  # of an adapter: rank 16 of all that 70B has, in bf16
PIECE_BYTES_MAX: Final = 256 * 1024  # other streams of the connection take turns in between

OPENING_BYTES_MAX: Final = 512 + OVERHEAD_BYTES
CHUNK_BYTES_MAX: Final = 300  # issue E, bar 3: for each 32 tokens and stage
RECEIPTS_MAX: Final = 48  # chunks in one answer: the header of a frame holds them


@dataclass(frozen=True, slots=True)
class Open:
    """Reserve cache for `tokens` positions in blocks start:stop of the model with this digest.

    receipts: the server shall sign for what it takes in and gives out.
    """

    session: Annotated[bytes, Size(16, 16)]  # random, for logs: it authorises nothing
    model: Annotated[str, Size(64)]  # hex digest
    start: BlockNumber
    stop: BlockNumber
    tokens: Position
    dtype: Annotated[str, Size(4)]  # of the hidden states on this stream: "f32", "f16", "bf16"
    receipts: bool = False


@dataclass(frozen=True, slots=True)
class Wear(Open):
    """Open a session whose rows go through the adapter of this digest, too.

    size: bytes of its parts for these blocks.
    """

    adapter: Digest = field(kw_only=True)
    size: Annotated[int, Range(0, WORN_BYTES_MAX)] = field(kw_only=True)


def protocol_of(asked: Open) -> str:
    """Under which a session is opened in this way."""
    return WEARING_PROTOCOL if isinstance(asked, Wear) else PROTOCOL


@dataclass(frozen=True, slots=True)
class Lacking:
    """The adapter is not here: send the parts of it, all within this time."""

    within_s: Seconds


@dataclass(frozen=True, slots=True)
class Bring:
    """The adapter's manifest follows; then come as many `Piece`s as its parts have."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The next bytes of the parts follow, which lie one after another."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The server holds the cache, until the stream closes or nothing comes for `lease_s`.

    opening: its signed `Opening`, where receipts were asked for; else empty.
    """

    lease_s: Seconds
    width: Annotated[int, Range(1, 1 << 20)]
    numerics: Annotated[str, Size(128)]  # equal strings give equal bits for equal steps
    opening: Annotated[bytes, Size(OPENING_BYTES_MAX)] = b""


@dataclass(frozen=True, slots=True)
class Step:
    """Run sum(sizes) tokens, the first at position `at`, in pieces of exactly these sizes.

    A live step has one size. A replay names the sizes of the steps that it repeats, so that every
    product has the shape that it had the first time, and so the same bits.
    rows: how many of the last rows of hidden states to send back, 0..sum(sizes).
    """

    at: Position
    sizes: Annotated[tuple[Position, ...], Size(1024, 1)]
    rows: Position


@dataclass(frozen=True, slots=True)
class Output:
    """The answer to one step: its last `rows` rows follow."""

    at: Position
    tokens: Position
    rows: Position
    compute_s: Seconds  # inside the blocks
    queue_s: Seconds  # waiting for the device
    waiting: Position  # other steps that wait for this device now


@dataclass(frozen=True, slots=True)
class Truncate:
    """Forget every position from `at` on. Nothing is answered."""

    at: Position


@dataclass(frozen=True, slots=True)
class Renew:
    """Keep the cache: the person is thinking. Nothing is answered."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Not now: no cache, or the server is leaving."""

    reason: Annotated[str, Size(256)]
    retry_after_s: Seconds


@dataclass(frozen=True, slots=True)
class Fault:
    """What the client sent cannot be served; the stream closes after this."""

    reason: Annotated[str, Size(256)]


@dataclass(frozen=True, slots=True)
class Leaving:
    """The server will go in `within_s`; until then it serves this session on."""

    within_s: Seconds


@dataclass(frozen=True, slots=True)
class Sign:
    """Sign for all steps before this that nothing was signed for yet."""


@dataclass(frozen=True, slots=True)
class Receipts:
    """The answer to `Sign`: signed `Chunk`s in order; none where nothing was pending."""

    chunks: Annotated[tuple[Annotated[bytes, Size(CHUNK_BYTES_MAX)], ...], Size(RECEIPTS_MAX)]


Message = (
    Open | Opened | Step | Output | Truncate | Renew | Busy | Fault | Leaving | Sign | Receipts
    | Wear | Lacking | Bring | Piece
)  # fmt: skip

# Tags are for ever: a message that is dropped leaves its number unused.
TAGS: dict[int, type[Message]] = {
    1: Open,
    2: Opened,
    3: Step,
    4: Output,
    5: Truncate,
    6: Renew,
    7: Busy,
    8: Fault,
    9: Leaving,
    10: Sign,
    11: Receipts,
    12: Wear,
    13: Lacking,
    14: Bring,
    15: Piece,
}
TAG_OF: dict[type[Message], int] = {message: tag for tag, message in TAGS.items()}
