"""Who serves which blocks, and what it costs to use them: one immutable picture of a model.

A span is what a verified record says, corrected by what we measured ourselves. Nothing that a peer
claims of its speed is trusted above what was observed: until `OBSERVATIONS_TO_TRUST` answers were
timed, its rate counts half (algorithms.md, 2.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .blocks import BlockRange, uncovered

OBSERVATIONS_TO_TRUST = 5  # algorithms.md 2.5: below this the claimed rate counts half
RTT_UNKNOWN_S = 0.15  # Petals' stand-in for a round trip that nobody measured


@dataclass(frozen=True, slots=True)
class Span:
    """The blocks that one peer serves, and what it costs to use them."""

    peer: str
    blocks: BlockRange
    block_s: float  # seconds for one token through one block
    rtt_s: float = RTT_UNKNOWN_S  # seconds there and back
    queue_s: float = 0.0  # expected wait for its device
    numerics: str = ""  # peers of one class give equal bits for equal steps
    cache_tokens_free: int = 1 << 40  # token positions in one block that it can still hold

    def __post_init__(self) -> None:
        assert self.block_s >= 0 and self.rtt_s >= 0 and self.queue_s >= 0


@dataclass(frozen=True, slots=True)
class SwarmView:
    """One model, as we see it now. `blocks` is the whole model."""

    model: str  # hex digest
    blocks: BlockRange
    spans: tuple[Span, ...] = ()
    addresses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def missing(self) -> tuple[tuple[int, int], ...]:
        """The blocks that nobody serves, as (start, stop) pairs."""
        return uncovered(self.blocks, (span.blocks for span in self.spans))
