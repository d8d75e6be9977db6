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

One that may begin with what its server remembers of a prompt (prefix.py) opens with `Remember`,
under a protocol of its own too:

      Remember, Ask(names) ────────────▶  Opened as above, then how far the prompt is there
      ◀───────── Held(count, gave)
      Recall(at, sizes, rows, known) ──▶  a step of rows that neither travel nor are computed
      ◀───────── Output(at, ...) + hidden, unless the client has it: `gave` named it

So has one whose rows lie in groups of 8 or 4 bits; what it begins with is not remembered.

Training has a protocol of its own, of one request to a stream, and nothing is remembered after it:

      Train(kind, batch, tokens, ...) ─▶  takes room for it, or Busy
      Piece + hidden [+ gradient] ... ─▶  what was told, in order
      ◀──────────── Lacking(within_s)     and Bring, Piece ..., as above, unless it wears none
      ◀───────────────── Trained(size)
      ◀───────────────── Piece + bytes    hidden, or gradients of whatever was sent

A server that speaks `CHAIN_PROTOCOL` understands the words of chains (chain.py) in its sessions,
too; whoever does not is never sent one. Behind the named predecessor's consent the successor opens
a stream to it, and the hidden states go straight on:

    client                       predecessor                      successor
      Lead(ticket) ─────────────▶  expects the one it names
      ◀───────────── Led(consent)
      Follow(ticket, consent) ─────────────────────────────────▶  whom it may dial
                                   ◀────────────── Join(ticket)
                                   Joined ─────────────────────▶
      ◀──────────────────────────────────────────────── Following
      Onward + hidden ──────────▶  Push + hidden ──────────────▶
      ◀─── Output + hidden         (what it pushed)
      ◀─────────────────────────────────────────── Taken + hidden
      Fence(epoch) ────────────────────────────────────────────▶  forgets older pushes
      ◀─────────────────────────────────────────────────── Fenced
      ◀─────────────────────── Apart           at any time: the chain is no more; go on by star

Where both speak `EARLY_CHAIN_PROTOCOL` they are told at once, `Follow` with no consent: if they are
connected the successor comes; the other waits for its ticket, and holds each `Push` until then.

Positions are explicit: a step `at` an earlier position than the cache's length truncates it first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final

from ..crypto.codec import Range, Size
from ..crypto.envelope import OVERHEAD_BYTES
from ..crypto.merkle import Digest
from .rows import is_coded
from .wire_aside import BATCH_MAX as BATCH_MAX
from .wire_aside import TRAIN_BYTES_MAX as TRAIN_BYTES_MAX
from .wire_aside import WORN_BYTES_MAX as WORN_BYTES_MAX
from .wire_aside import Ask as Ask
from .wire_aside import BlockNumber as BlockNumber
from .wire_aside import Held as Held
from .wire_aside import Position as Position
from .wire_aside import Recall as Recall
from .wire_aside import Seconds as Seconds
from .wire_aside import Train as Train
from .wire_aside import Trained as Trained

PROTOCOL = "/potluck/session/2"
WEARING_PROTOCOL = "/potluck/session/3"  # as the one before, and sessions that open with `Wear`
CODED_PROTOCOL = "/potluck/session/coded/1"  # either, with rows in groups (rows.py)
REMEMBERING_PROTOCOL = "/potluck/session/4"  # as the first, and sessions that open with `Remember`

CHAIN_PROTOCOL = "/potluck/chain/1"  # from a successor to its predecessor; opens with `Join`
EARLY_CHAIN_PROTOCOL = "/potluck/chain/2"  # the same, maybe before the predecessor has its ticket

TRAINING_PROTOCOL = "/potluck/train/1"  # opens with `Train`

PIECE_BYTES_MAX: Final = 256 * 1024  # other streams of the connection take turns in between

OPENING_BYTES_MAX: Final = 512 + OVERHEAD_BYTES
CHUNK_BYTES_MAX: Final = 300  # issue E, bar 3: for each 32 tokens and stage
TICKET_BYTES_MAX: Final = 512 + OVERHEAD_BYTES
CONSENT_BYTES_MAX: Final = 3072 + OVERHEAD_BYTES  # eight addresses
SEAL_BYTES_MAX: Final = 160 + OVERHEAD_BYTES
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
    dtype: Annotated[str, Size(4)]  # of the hidden states on this stream (rows.py)
    receipts: bool = False


@dataclass(frozen=True, slots=True)
class Wear(Open):
    """Open a session whose rows go through the adapter of this digest, too.

    size: bytes of its parts for these blocks.
    """

    adapter: Digest = field(kw_only=True)
    size: Annotated[int, Range(0, WORN_BYTES_MAX)] = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Remember(Open):
    """Open a session whose rows may be kept for those to come, and begin with what is kept.

    shared: by anybody for anybody who says the same; else for this client alone.
    """

    shared: bool = field(kw_only=True)


def protocol_of(asked: Open) -> str:
    """Under which a session is opened in this way."""
    if is_coded(asked.dtype):
        return CODED_PROTOCOL
    if isinstance(asked, Remember):
        return REMEMBERING_PROTOCOL
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


TicketBytes = Annotated[bytes, Size(TICKET_BYTES_MAX)]
SealBytes = Annotated[bytes, Size(SEAL_BYTES_MAX)]
Number = Annotated[int, Range(0, 1 << 40)]


@dataclass(frozen=True, slots=True)
class Lead:
    """Push on to the server that this ticket (ticket.py) names, once it has come for it."""

    ticket: TicketBytes


@dataclass(frozen=True, slots=True)
class Led:
    """The answer to `Lead`: a consent that may be shown to that server."""

    consent: Annotated[bytes, Size(CONSENT_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Follow:
    """Take steps from the server that consents, too: open a stream to it. Without a consent, only
    if we are connected to it. epoch: from which on; an older one was ordered to be pushed to
    whoever was here before."""

    ticket: TicketBytes
    consent: Annotated[bytes, Size(CONSENT_BYTES_MAX)]
    epoch: Number


@dataclass(frozen=True, slots=True)
class Following:
    """The answer to `Follow`: the stream is there."""


@dataclass(frozen=True, slots=True)
class Join:
    """The first word on a stream of a chain, of the successor's."""

    ticket: TicketBytes


@dataclass(frozen=True, slots=True)
class Joined:
    """The answer to `Join`; behind it come `Push`es."""


@dataclass(frozen=True, slots=True)
class Onward(Step):
    """A step whose whole output is pushed on, over so many hops, and sent back behind that.

    rows: of the last of these hops. number: of the step in its session; each has another. epoch:
    as of the last `Fence` of any of its servers.
    """

    number: Number = field(kw_only=True)
    epoch: Number = field(kw_only=True)
    hops: Annotated[int, Range(0, 1 << 10)] = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Push(Onward):
    """The same from the hop before. seal: by which that one signs for the rows (ticket.py), where
    receipts were asked for; else empty."""

    seal: SealBytes = b""


@dataclass(frozen=True, slots=True)
class Taken(Output):
    """The answer to a push of that number, as `Output` is to a step. seal: the pusher's."""

    number: Number = field(kw_only=True)
    seal: SealBytes = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Fence:
    """Compute no push of an older epoch from here on. apart: nor any of a newer one."""

    epoch: Number
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Fenced:
    """The answer to `Fence`: nothing comes of older pushes any more."""

    epoch: Number


@dataclass(frozen=True, slots=True)
class Apart:
    """This server has no chain with the hop behind it, or before it, any more."""

    behind: bool
    reason: Annotated[str, Size(256)]


Message = (
    Open | Opened | Step | Output | Truncate | Renew | Busy | Fault | Leaving | Sign | Receipts
    | Wear | Lacking | Bring | Piece | Train | Trained | Remember | Ask | Held | Recall
    | Lead | Led | Follow | Following | Join | Joined | Onward | Push | Taken | Fence | Fenced
    | Apart
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
    16: Train,
    17: Trained,
    18: Remember,
    19: Ask,
    20: Held,
    21: Recall,
    32: Lead,
    33: Led,
    34: Follow,
    35: Following,
    36: Join,
    37: Joined,
    38: Onward,
    39: Push,
    40: Taken,
    41: Fence,
    42: Fenced,
    43: Apart,
}
TAG_OF: dict[type[Message], int] = {message: tag for tag, message in TAGS.items()}
