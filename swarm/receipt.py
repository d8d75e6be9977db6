"""What a server signs of what it took in and gave out, and whether two servers' words fit.

Once a session a server signs an `Opening`: which blocks of which model it computes, and in which
class of numbers. Then, whenever the client asks for it (every 32 tokens), a `Chunk`: the Merkle
root of the rows that it took in, and of those that it gave out, exactly as they lay on the wire.
Each names the one before by its digest, so that an account cannot be shortened or rewritten: two
that follow the same one are a contradiction, which anybody can check (TrustChain's forked `prev`;
algorithms.md 3.5, class A; testimony.py).

    server k    Opening ◀─ Chunk(0..32, took, gave) ◀─ Chunk(32..64, took, gave)
                                               ║ gave of k = took of k + 1, or one of the two lies
    server k+1  Opening ◀─ Chunk(0..32, took, gave) ◀─ ...

A broken link names two signers; the client, who sent the one what the other gave, holds the bytes
and knows which (algorithms.md 4.1). What is computed from rows depends on all rows before them, and
so an account, from its opening on, says of each chunk in which context it was computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from ..crypto.codec import Range, Size, decode, encode
from ..crypto.digest import digest
from ..crypto.envelope import open_, sign
from ..crypto.keys import IdentityKey
from ..crypto.merkle import Bytes, Digest, leaves_of, root_of
from ..errors import RemoteError
from .blocks import BlockRange
from .wire import CHUNK_BYTES_MAX, OPENING_BYTES_MAX, RECEIPTS_MAX, BlockNumber, Position

CHUNK_TOKENS: Final = 32  # TOPLOC's interval too: a person waits a second or two for them
NOTED_BYTES_MAX: Final = 64 * 1024  # guess: 0.1 ms of hashing, which hinders nobody
PENDING_MAX: Final = 4096  # tokens that wait for a signature, half a MiB; and one step more
OPENING, CHUNK = "opening", "chunk"  # the domains of their signatures


@dataclass(frozen=True, slots=True)
class Opening:
    """Whose blocks, of what, in which numbers. `nonce` is the server's: however often it is asked
    to open the same session, from whatever snapshot of its disk, no two openings are equal."""

    session: Annotated[bytes, Size(16, 16)]
    nonce: Annotated[bytes, Size(16, 16)]
    opened_s: Annotated[float, Range(0, 1e11)]  # unix seconds, by the server's clock
    model: Digest
    numerics: Annotated[str, Size(128)]
    start: BlockNumber
    stop: BlockNumber
    width: Annotated[int, Range(1, 1 << 20)]
    dtype: Annotated[str, Size(4)]

    def __post_init__(self) -> None:
        if self.start >= self.stop:
            raise ValueError(f"blocks {self.start}:{self.stop}")

    @property
    def blocks(self) -> BlockRange:
        return BlockRange(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class WearingOpening(Opening):
    """As `Opening`, of a session that wears an adapter: other numbers come of the same rows."""

    adapter: Digest


def read_opening(body: bytes) -> Opening:
    """What was signed: with an adapter or without. Raises RemoteError."""
    try:
        return decode(body, Opening)
    except RemoteError:
        return decode(body, WearingOpening)


def adapter_of(opening: Opening) -> bytes:
    """The digest of what its session wears; empty: nothing."""
    return opening.adapter if isinstance(opening, WearingOpening) else b""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions `at` to `at + tokens` were computed; of them the last `rows` were given out.

    A later chunk of the same account at an earlier position took back what lay there.
    """

    prev: Digest  # of the chunk before, or of the opening
    at: Position
    tokens: Annotated[int, Range(1, 1 << 24)]
    rows: Position
    took: Digest
    gave: Digest

    def __post_init__(self) -> None:
        if self.rows > self.tokens:
            raise ValueError(f"{self.rows} rows of {self.tokens} tokens")

    @property
    def stop(self) -> int:
        return self.at + self.tokens


@dataclass(frozen=True, slots=True)
class Part:
    """What one chunk has to say: the server that signs it knows, and the client that checks it."""

    at: int
    tokens: int
    rows: int
    took: bytes
    gave: bytes

    def __str__(self) -> str:
        return f"{self.rows} rows of positions {self.at}..{self.at + self.tokens}"


class Unsigned:
    """What came in and went out since the last signature, as leaves, and how it is cut in chunks.

    The caller owes: `took` for each step, then `gave` for the rows of it that are sent; `truncate`
    when positions are forgotten.
    """

    def __init__(self) -> None:
        self._at = 0
        self._took: list[bytes] = []  # from `_at` on
        self._gave: list[bytes] = []  # from `_given` on, without a hole
        self._given = 0
        self._parts: list[Part] = []

    @property
    def tokens(self) -> int:
        return len(self._took)

    @property
    def full(self) -> bool:
        """So much is pending that it has to be signed for before more may come."""
        return not self.has_room(0, 0)

    def has_room(self, steps: int, tokens: int) -> bool:
        """Whether it is sure not to be `full` after so many more steps, of so many tokens."""
        parts = len(self._parts) + steps  # a step makes one at most
        return len(self._took) + tokens < PENDING_MAX and parts <= RECEIPTS_MAX - 3

    def took(self, at: int, leaves: Sequence[bytes]) -> None:
        """A step at this position was computed. What was not taken back stays to be signed."""
        self.truncate(at)
        if not self._took:
            self._at = at
        assert at == self._at + len(self._took), "a step leaves a hole"
        self._took += leaves

    def gave(self, leaves: Sequence[bytes]) -> None:
        """The last rows of that step, as they are sent; none when none are wanted."""
        if not leaves:
            return
        start = self._at + len(self._took) - len(leaves)
        if self._gave and self._given + len(self._gave) < start:
            self._cut(self._given + len(self._gave))  # one chunk tells of one run of rows
        if not self._gave:
            self._given = start
        self._gave += leaves

    def truncate(self, at: int) -> None:
        """Positions from `at` on were forgotten. What was signed of them stays true."""
        del self._took[max(0, at - self._at) :]
        del self._gave[max(0, at - self._given) :]

    def take(self) -> list[Part]:
        """All that is pending: one part, or more where rows were left out."""
        if self._gave:
            self._cut(self._given + len(self._gave))
        self._cut(self._at + len(self._took))
        done, self._parts = self._parts, []
        return done

    def _cut(self, stop: int) -> None:
        """All positions before `stop`, of which those given are the last."""
        tokens = stop - self._at
        if not tokens:
            return
        took, gave = root_of(self._took[:tokens]), root_of(self._gave)
        self._parts.append(Part(self._at, tokens, len(self._gave), took, gave))
        self._at = stop
        del self._took[:tokens]
        self._gave.clear()


class Notary:
    """A server's side of one session: told what comes in and goes out, it signs.

    Steps that are small are hashed together, when their signature is asked for: each by itself
    would keep the server from its rest just when others are to run (DECISIONS.md, 2026-11-22).

    The caller owes what `Unsigned` asks for; `sign` when the client asks; and no step while it is
    `full`.
    """

    def __init__(self, key: IdentityKey, opening: Opening, row_bytes: int) -> None:
        self._key = key
        self._row_bytes = row_bytes
        body = encode(opening)
        self.opening = sign(key, OPENING, body)  # to be sent with `Opened`
        self._prev = _name_of(body)
        self._unsigned = Unsigned()
        self._noted: list[tuple[int, Bytes, Bytes]] = []  # (at, took, gave), not hashed
        self._noted_bytes = 0

    @property
    def pending(self) -> int:
        """Tokens that nothing was signed for yet."""
        self._hash()
        return self._unsigned.tokens

    @property
    def full(self) -> bool:
        tokens = self._noted_bytes // self._row_bytes  # at most: what it gave is in it too
        if self._unsigned.has_room(len(self._noted), tokens):
            return False
        self._hash()
        return self._unsigned.full

    def note(self, at: int, took: Bytes, gave: Bytes) -> None:
        """A step was computed, and answered. Neither may change from now on."""
        self._noted.append((at, took, gave))
        self._noted_bytes += len(took) + len(gave)
        if self._noted_bytes > NOTED_BYTES_MAX:
            self._hash()

    def truncate(self, at: int) -> None:
        self._hash()
        self._unsigned.truncate(at)

    def took(self, at: int, rows: Bytes) -> None:
        self._unsigned.took(at, leaves_of(rows, self._row_bytes))

    def gave(self, rows: Bytes) -> None:
        self._unsigned.gave(leaves_of(rows, self._row_bytes))

    def _hash(self) -> None:
        noted, self._noted, self._noted_bytes = self._noted, [], 0
        for at, took, gave in noted:
            self.took(at, took)
            self.gave(gave)

    def sign(self) -> tuple[bytes, ...]:
        """The receipts of all that is pending."""
        self._hash()
        signed = []
        for part in self._unsigned.take():
            body = encode(Chunk(self._prev, part.at, part.tokens, part.rows, part.took, part.gave))
            self._prev = _name_of(body)
            signed.append(sign(self._key, CHUNK, body))
        return tuple(signed)


class Account:
    """What one server signed in one session, checked as it comes."""

    def __init__(self, opening: bytes) -> None:
        """Raises RemoteError unless it is an opening that somebody signed."""
        self.peer, body = open_(opening, OPENING, max_bytes=OPENING_BYTES_MAX)
        self.opening = read_opening(body)
        self.chunks: list[Chunk] = []
        self.raw: list[bytes] = [opening]
        self.names = [_name_of(body)]  # of the opening, then of each chunk

    def add(self, raw: bytes, due: Part | None = None) -> Chunk:
        """The next chunk. Raises RemoteError when it is forged, does not follow the last, or says
        anything but what is due, if that is known; it is not kept then."""
        peer, body = open_(raw, CHUNK, max_bytes=CHUNK_BYTES_MAX)
        if peer != self.peer:
            raise RemoteError(f"a chunk of {self.peer} signed by {peer}")
        chunk = decode(body, Chunk)
        if chunk.prev != self.names[-1]:
            raise RemoteError("a chunk that does not follow the one before")
        if chunk.at > self.length:
            raise RemoteError(f"a chunk at {chunk.at} after {self.length} positions")
        if due not in (None, Part(chunk.at, chunk.tokens, chunk.rows, chunk.took, chunk.gave)):
            raise RemoteError(f"a receipt that is not for what came and went: {due}")
        self.names.append(_name_of(body))
        self.chunks.append(chunk)
        self.raw.append(raw)
        return chunk

    @property
    def blocks(self) -> BlockRange:
        return self.opening.blocks

    @property
    def length(self) -> int:
        return self.chunks[-1].stop if self.chunks else 0

    def standing(self) -> list[tuple[int, Chunk]]:
        """The chunks that no later one took back whole, each with its place in `chunks`."""
        kept: list[tuple[int, Chunk]] = []
        for place, chunk in enumerate(self.chunks):
            while kept and kept[-1][1].at >= chunk.at:
                kept.pop()
            kept.append((place, chunk))
        return kept


@dataclass(frozen=True, slots=True)
class Broken:
    """At this boundary and these positions one of two signers lies."""

    block: int
    at: int
    tokens: int
    giver: str
    taker: str

    def __str__(self) -> str:
        return (
            f"positions {self.at}..{self.at + self.tokens} between block {self.block - 1} and"
            f" {self.block}: {self.taker} took what {self.giver} did not give"
        )


@dataclass(slots=True)
class Links:
    """What came of comparing. linked: pairs of chunks that fit."""

    linked: int
    broken: list[Broken]


def check_links(accounts: Sequence[tuple[Account, range]]) -> Links:
    """Compare all that one gave with what the next took, each with the positions of which what it
    gave was passed on; an account may be there for several runs of them.

    Chunks are compared that were cut alike, and of which all rows were given out; when a hop is
    lost, the others sign what they have, so that all are cut alike from there on.
    """
    found = Links(0, [])
    for giver, passed_on in accounts:
        for taker, counted in accounts:
            if giver.blocks.stop != taker.blocks.start:
                continue
            for gave, took in _pairs(giver, taker):
                whole = gave.at >= passed_on.start and gave.stop <= passed_on.stop
                if not whole or took.stop - 1 not in counted or gave.rows != gave.tokens:
                    continue
                if gave.gave == took.took:
                    found.linked += 1
                else:
                    found.broken.append(
                        Broken(taker.blocks.start, gave.at, gave.tokens, giver.peer, taker.peer)
                    )
    return found


def _pairs(one: Account, other: Account) -> Iterator[tuple[Chunk, Chunk]]:
    """Standing chunks of the same positions."""
    theirs = {(chunk.at, chunk.tokens): chunk for _, chunk in other.standing()}
    for _, chunk in one.standing():
        if (chunk.at, chunk.tokens) in theirs:
            yield chunk, theirs[chunk.at, chunk.tokens]


def _name_of(body: bytes) -> bytes:
    return digest("receipt", body)
