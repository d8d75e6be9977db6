"""The cheapest chain of hops over block boundaries.

A shortest path over the boundaries at which some span starts or stops, by dynamic programming: the
spans may overlap and have any length, and a hop may use a part of its span. Where costs add up per
block, an optimal hop ends where its span ends or where another span starts, so that no other
boundary need be looked at. The cost of a hop is its round trip, its queue, and its service time;
a random surcharge on the queue, exponential with mean 0.5 of it plus 10 ms, keeps many clients
from herding onto one fast peer (algorithms.md 2.5; Petals' shortest path ignores load and herds,
algorithms.md 2.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from ..errors import MissingBlocks
from .blocks import BlockRange, uncovered
from .view import Span, SwarmView

HOP_OVERHEAD_S = 0.001  # our measured software time of a hop (potluck bench hop), rounded up
NO_ROOM_S = 10.0  # surcharge of a peer without cache room, as Petals has it: last, not never
SURCHARGE_FLOOR_S = 0.010  # algorithms.md 2.5


@dataclass(frozen=True, slots=True)
class Hop:
    """One peer, and the blocks that it runs on a route."""

    peer: str
    blocks: BlockRange


@dataclass(frozen=True, slots=True)
class Route:
    """Hops that follow each other without a gap. `cost_s`: expected seconds for one step."""

    hops: tuple[Hop, ...]
    cost_s: float


def find_route(
    view: SwarmView,
    blocks: BlockRange,
    *,
    tokens: int = 1,
    cache_tokens: int = 0,
    avoid: Collection[str] = (),
    draw: Callable[[float], float] | None = None,
) -> Route:
    """The cheapest route through `blocks` for a step of `tokens` tokens.

    cache_tokens: positions the session will hold in each block. avoid: peers not to use.
    draw: given a mean, an exponential draw; None for the plain shortest path.
    Raises MissingBlocks, naming what no peer outside `avoid` serves.
    """
    spans = [span for span in view.spans if span.peer not in avoid and span.blocks.overlaps(blocks)]
    gaps = uncovered(blocks, (span.blocks for span in spans))
    if gaps:
        raise MissingBlocks(view.model, gaps)
    entry_s = {id(span): _entry_cost_s(span, len(blocks), cache_tokens, draw) for span in spans}
    stops = sorted(
        {blocks.stop}
        | {span.blocks.start for span in spans if blocks.start < span.blocks.start < blocks.stop}
        | {span.blocks.stop for span in spans if blocks.start < span.blocks.stop < blocks.stop}
    )
    best: dict[int, tuple[float, int, Span | None]] = {blocks.start: (0.0, blocks.start, None)}
    for boundary in [blocks.start, *stops]:
        if boundary not in best:
            continue
        cost_s = best[boundary][0]
        for span in spans:
            if not span.blocks.start <= boundary < span.blocks.stop:
                continue
            entered_s = cost_s + entry_s[id(span)]
            for stop in stops:
                if boundary < stop <= span.blocks.stop:
                    through_s = entered_s + (stop - boundary) * tokens * span.block_s
                    if through_s < best.get(stop, (math.inf, 0, None))[0]:
                        best[stop] = (through_s, boundary, span)
    return Route(_walk_back(best, blocks), best[blocks.stop][0])


def _entry_cost_s(
    span: Span, blocks: int, cache_tokens: int, draw: Callable[[float], float] | None
) -> float:
    cost_s = span.rtt_s + HOP_OVERHEAD_S + span.queue_s
    if draw is not None:
        cost_s += draw(0.5 * span.queue_s + SURCHARGE_FLOOR_S)
    if cache_tokens * min(blocks, len(span.blocks)) > span.cache_tokens_free:
        cost_s += NO_ROOM_S
    return cost_s


def _walk_back(
    best: dict[int, tuple[float, int, Span | None]], blocks: BlockRange
) -> tuple[Hop, ...]:
    hops: list[Hop] = []
    boundary = blocks.stop
    while boundary > blocks.start:
        _, start, span = best[boundary]
        assert span is not None
        if hops and hops[-1].peer == span.peer and hops[-1].blocks.start == boundary:
            hops[-1] = Hop(span.peer, BlockRange(start, hops[-1].blocks.stop))
        else:
            hops.append(Hop(span.peer, BlockRange(start, boundary)))
        boundary = start
    return tuple(reversed(hops))
