"""Who serves which blocks, and what it costs to use them: one immutable picture of a model.

A span is what a verified record says, corrected by what we measured ourselves. Nothing that a peer
claims of its speed is trusted above what was observed: until `OBSERVATIONS_TO_TRUST` answers were
timed, its rate counts half (algorithms.md, 2.5). `Columns` is the same picture as arrays, one row a
span, for rules that look at ten thousand of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..dht.network import NOWHERE, Prefixes
from .blocks import BlockRange, uncovered

OBSERVATIONS_TO_TRUST = 5  # algorithms.md 2.5: below this the claimed rate counts half
RTT_UNKNOWN_S = 0.15  # Petals' stand-in for a round trip that nobody measured
RELAYED = 0.2  # of its rate is what a peer behind a relay counts for: Petals' own penalty

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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
    bytes_s: float = math.inf  # what the road to it and back carries
    relayed: bool = False  # reached over another peer: it counts for a fifth of its rate
    cached_tokens: int = 0  # of this step's tokens, how many it need not compute again
    weight: float = 1.0  # what its times count: less of a peer that audits found right
    network: Prefixes = NOWHERE  # where the road shows it, else where it says to be

    def __post_init__(self) -> None:
        assert self.block_s >= 0 and self.rtt_s >= 0 and self.queue_s >= 0 and self.bytes_s > 0
        assert 0 < self.weight < math.inf


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


@dataclass(frozen=True, slots=True)
class Columns:
    """Spans as arrays of one length; row i is one span, named `name(i)`."""

    name: Callable[[int], str]
    start: Ints
    stop: Ints
    block_s: Floats
    rtt_s: Floats
    queue_s: Floats
    room: Floats  # token positions in one block
    byte_s: Floats  # seconds a byte takes on the road
    cached: Floats  # tokens that need not be computed
    networks: tuple[Ints, Ints] | None = None  # the /24 and the /16 of each, numbered; -1: at home

    def __len__(self) -> int:
        return len(self.start)


def columns_of(spans: Sequence[Span]) -> Columns:
    """Relayed spans come out with the rate that they count for, and all with their weight."""

    def floats(values: list[float]) -> Floats:
        return np.array(values, dtype=np.float64)

    names = [span.peer for span in spans]
    share = [RELAYED if span.relayed else 1.0 for span in spans]
    return Columns(
        name=names.__getitem__,
        start=np.array([span.blocks.start for span in spans], dtype=np.int64),
        stop=np.array([span.blocks.stop for span in spans], dtype=np.int64),
        block_s=floats(
            [span.weight * span.block_s / part for span, part in zip(spans, share, strict=True)]
        ),
        rtt_s=floats([span.weight * span.rtt_s for span in spans]),
        queue_s=floats([span.weight * span.queue_s for span in spans]),
        room=floats([span.cache_tokens_free for span in spans]),
        byte_s=floats(
            [span.weight / (span.bytes_s * part) for span, part in zip(spans, share, strict=True)]
        ),
        cached=floats([span.cached_tokens for span in spans]),
        networks=_numbered([span.network for span in spans]),
    )


def _numbered(networks: Sequence[Prefixes]) -> tuple[Ints, Ints] | None:
    """None when all are at home."""
    if all(network == NOWHERE for network in networks):
        return None
    numbers: dict[str, int] = {NOWHERE[0]: -1}
    narrow, middle = (
        np.array(
            [numbers.setdefault(network[width], len(numbers)) for network in networks],
            dtype=np.int64,
        )
        for width in (2, 1)
    )
    return narrow, middle
