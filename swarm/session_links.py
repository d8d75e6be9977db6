"""One hop of a session as its machine (session.py) sees it: what it was sent, how long it may take.

deadline    of the oldest frame that is not answered, or of the opening: first the time of a
            hedge, after which a standby is asked too, then the rest of the patience
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from .blocks import BlockRange
from .journal import Frame, Journal
from .machine import SetTimer
from .routing import Hop
from .session_events import SessionConfig

FRAMES_IN_FLIGHT: Final = 3  # guess: one computed, one on the wire, one waiting at the device
# guesses: of small frames more, or a long road would carry but three in a round trip; of wide rows
# as many as in three chunks of a prompt, since all else on a slow road waits behind them
TOKENS_IN_FLIGHT: Final = (384, 2048)
BYTES_IN_FLIGHT: Final = 4 * 1024 * 1024


def tokens_in_flight(row_bytes: int) -> int:
    """With fewer than these under way a link may be sent a further frame."""
    least, most = TOKENS_IN_FLIGHT
    return max(least, min(most, BYTES_IN_FLIGHT // row_bytes))


def frames_in_flight(row_bytes: int, tokens: int) -> int:
    """How many of so many tokens each are under way at most."""
    return max(FRAMES_IN_FLIGHT, -(-tokens_in_flight(row_bytes) // tokens))


@dataclass(slots=True, eq=False)
class Link:
    """sent, asked: the steps before this number were sent, and were asked a signature for. length:
    the positions that its server holds once it has computed all that."""

    number: int
    hop: Hop
    live: bool = False
    sent: int = 0
    asked: int = 0
    length: int = 0
    in_flight: deque[Frame] = field(default_factory=deque)
    signs: int = 0  # of what is in flight
    late: bool = False  # past its hedge's time, and not yet past its patience
    leaving: bool = False
    parted: bool = False  # it leaves, its standby holds all: it is sent no more, but still signs
    asked_at: int | None = None  # the session's length when a standby was last looked for
    standby: Link | None = None
    of: Link | None = None  # whose standby this is

    @property
    def hurried(self) -> bool:
        """Its standby shall hold all that it holds, at once."""
        return self.late or self.leaving

    @property
    def blocks(self) -> BlockRange:
        return self.hop.blocks

    def has_room(self, config: SessionConfig) -> bool:
        """Whether it may be sent a further frame: of small ones more than else, or a prompt and a
        replay would take a round trip for each three."""
        if len(self.in_flight) - self.signs < FRAMES_IN_FLIGHT:
            return True
        tokens = sum(frame.tokens for frame in self.in_flight if not frame.sign)
        return tokens < tokens_in_flight(config.row_bytes)

    def take_back(self, kept: int) -> None:
        """Only the steps before this number are left."""
        self.sent = min(self.sent, kept)
        self.asked = min(self.asked, kept)
        for frame in self.in_flight:  # a replay may still run behind a session at rest
            frame.take_back(kept)

    def deadline(self, config: SessionConfig, now: float) -> SetTimer:
        """When the oldest frame of this link is late; a standby has but its patience."""
        tokens = self.in_flight[0].tokens
        wait_s = config.patience_s(self.hop, tokens)
        if config.hedge_s is not None and self.of is None and not self.late:
            wait_s = min(wait_s, config.hedge_s(self.hop, tokens))
        return SetTimer(self.number, now + wait_s)

    def open_deadline(self, config: SessionConfig, now: float) -> SetTimer:
        """The same of its opening."""
        wait_s = config.open_patience_s(self.hop)
        if config.open_hedge_s is not None and self.of is None:
            wait_s = min(wait_s, config.open_hedge_s(self.hop))
        return SetTimer(self.number, now + wait_s)

    def rest_s(self, config: SessionConfig) -> float | None:
        """How much longer it is waited for once a standby is asked; None: it has had that."""
        if self.of is not None or self.late:
            return None
        if not self.live and config.open_hedge_s is not None:
            return config.open_patience_s(self.hop) - config.open_hedge_s(self.hop)
        if config.hedge_s is None or not self.in_flight:
            return None
        tokens = self.in_flight[0].tokens
        return config.patience_s(self.hop, tokens) - config.hedge_s(self.hop, tokens)


@dataclass(slots=True, eq=False)
class Gap:
    """Blocks that nobody serves yet."""

    number: int
    blocks: BlockRange


def place_of(segments: Sequence[Link | Gap], gap: int) -> int | None:
    """Where in the row the gap of this number is; None: it grew meanwhile, and asked again."""
    for place, segment in enumerate(segments):
        if isinstance(segment, Gap) and segment.number == gap:
            return place
    return None


def with_gaps(
    segments: Sequence[Link | Gap], blocks: BlockRange, place: int
) -> tuple[BlockRange, slice]:
    """These blocks of segment `place`, and those of the gaps beside it; and all their places."""
    first, last = place, min(place + 1, len(segments))
    if first > 0 and isinstance(before := segments[first - 1], Gap):
        blocks, first = BlockRange(before.blocks.start, blocks.stop), first - 1
    if last < len(segments) and isinstance(after := segments[last], Gap):
        blocks, last = BlockRange(blocks.start, after.blocks.stop), last + 1
    return blocks, slice(first, last)


def check_cover(hops: Sequence[Hop], blocks: BlockRange) -> None:
    """Raises ValueError unless these hops serve just these blocks, one after the other."""
    edges = [blocks.start, *(hop.blocks.stop for hop in hops)]
    if [hop.blocks.start for hop in hops] != edges[:-1] or edges[-1] != blocks.stop:
        raise ValueError(f"{hops} do not cover {blocks}")


def next_place(link: Link, journal: Journal) -> int | None:
    """Where the next step begins that it is to be sent; None: something else is first, or it is
    late."""
    if not link.live or link.parted or link.late or link.of is not None:
        return None
    signs = link.asked != link.sent and journal.cut_at(link.sent)
    return None if signs else journal.place(link.sent)
