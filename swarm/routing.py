"""The cheapest chain of hops over block boundaries.

A shortest path over the boundaries at which some span starts or stops, by dynamic programming from
the end: spans may overlap and have any length, and a hop may use a part of its span. Where costs
add up per block, an optimal hop ends where its span ends or where another span starts, so that no
other boundary need be looked at. The cost of a hop is its round trip, its queue, its bytes over the
road, its service time, and a toll; a random surcharge on the queue, exponential with mean 0.5 of it
plus 10 ms, keeps many clients from herding onto one fast peer (algorithms.md 2.5; Petals' shortest
path ignores load and herds, algorithms.md 2.3). Prefix affinity has a place: `Span.cached_tokens`.

The toll is the queue once more, in proportion to the part of the span that is used: work put into a
queue holds up all who come after. With it long queues are left early, for whom has time for the
next blocks, and unevenly served layouts carry more of their LP optimum (sim, one seed: at 0.8 of
it, the worst block at 0.69 of the mean, goodput .97; always to a span's end, toll or not, 0).

    route  = find_route(view, blocks, ...)      for one session, from a view
    plan   = plan_route(view, blocks, ...)      the same, and whom to ask for a fresh queue first
    route  = rebind(view, plan.route, fresh)    late binding: the cheapest among who answered
    finder = Finder(columns, blocks, ...)       the same, kept: the cheapest rest from any boundary
      finder.alternates(at, 5, pick)            whom to ask for a fresh queue beside the planned hop
      finder.bind(at, offers)                   late binding: the cheapest of those that answered

Of many spans only the 24 that look best at a boundary and 8 random ones are considered, of which no
network has more than its part (candidates.py), so that a route through ten thousand spans takes
milliseconds; of up to 32 spans all are, and the route is the cheapest there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import MissingBlocks
from .blocks import BlockRange
from .candidates import (
    CANDIDATES_BEST,
    CANDIDATES_RANDOM,
    POOL_LEAST,
    Draw,
    candidates,
    pool,
)
from .view import Columns, Floats, Ints, Span, SwarmView, columns_of

HOP_OVERHEAD_S = 0.001  # our measured software time of a hop (potluck bench hop), rounded up
NO_ROOM_S = 10.0  # surcharge of a peer without cache room, as Petals has it: last, not never
TOLL_FRESH = 2.0  # of a queue just read; sim (`even`): 1 has a p50 2 to 5 % longer, 3 no shorter
SURCHARGE_SHARE = 0.5  # algorithms.md 2.5
SURCHARGE_FLOOR_S = 0.010  # algorithms.md 2.5
ALTERNATES = 5  # asked for their queue before a hop is bound; 3 gave a p95 7 % longer (sim)
ASKED_MAX = 60  # guess: of more than ten hops fewer are asked for each; but for each one

Pick = Callable[[int], int]  # given n, one of 0 .. n - 1


@dataclass(frozen=True, slots=True)
class Hop:
    """One peer, and the blocks that it runs on a route."""

    peer: str
    blocks: BlockRange


@dataclass(frozen=True, slots=True)
class Route:
    """Hops that follow each other without a gap. `cost_s`: seconds for one step, and tolls."""

    hops: tuple[Hop, ...]
    cost_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A route, and its peers with some others that could stand in for each: whom to ask."""

    route: Route
    asked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """A candidate for the next hop whose queue was just read. `row`: of the finder's columns."""

    row: int
    queue_s: float


class Finder:
    """The cheapest way from each boundary to the end. Rows number the spans of `columns`."""

    def __init__(
        self,
        columns: Columns,
        blocks: BlockRange,
        *,
        tokens: float = 1,
        row_bytes: float = 0,
        cache_tokens: int = 0,
        rows: Ints | None = None,
        draw: Draw | None = None,
    ) -> None:
        """rows: the spans that may be used, all by default. row_bytes: of a token's hidden state,
        which travels there and back. Raises MissingBlocks (without the model) at a gap."""
        self.columns = columns
        self.blocks = blocks
        rows = np.arange(len(columns)) if rows is None else rows
        overlap = (columns.start[rows] < blocks.stop) & (columns.stop[rows] > blocks.start)
        rows = rows[overlap]
        own_s, entry_s, lengths = self._costs(rows, tokens, row_bytes, cache_tokens)
        # Who uses a whole span holds up whoever comes after for as long as it waits itself.
        unit_s = own_s + columns.queue_s[rows] / lengths
        if len(rows) > POOL_LEAST:
            score = entry_s / (columns.stop[rows] - columns.start[rows]) + unit_s
            keep = pool(columns, rows, blocks, score, draw)
            rows, unit_s, entry_s = rows[keep], unit_s[keep], entry_s[keep]
            own_s, lengths = own_s[keep], lengths[keep]
        self._rows, self._unit_s = rows, unit_s
        self._own_s, self._lengths = own_s, lengths
        self._place = dict(zip(rows.tolist(), range(len(rows)), strict=True))
        self._fixed_s = entry_s - columns.queue_s[rows]  # all of an entry but the wait
        lo = np.maximum(columns.start[rows], blocks.start)
        hi = np.minimum(columns.stop[rows], blocks.stop)
        edge = np.zeros(len(blocks) + 1, dtype=np.bool_)
        edge[lo - blocks.start] = edge[hi - blocks.start] = edge[0] = edge[-1] = True
        self._at = np.flatnonzero(edge) + blocks.start
        self._edges: list[int] = (np.cumsum(edge) - 1).tolist()  # at or before each block
        self._lo = np.searchsorted(self._at, lo)
        self._hi = np.searchsorted(self._at, hi)
        self._check_cover()
        self._candidates = self._choose(entry_s, hi, draw)
        if draw is not None:
            queue_s = columns.queue_s[rows]
            for i in np.flatnonzero(np.bincount(self._candidates.ravel())).tolist():
                entry_s[i] += draw(SURCHARGE_SHARE * queue_s[i] + SURCHARGE_FLOOR_S)
        self._solve(entry_s)

    def _costs(
        self, rows: Ints, tokens: float, row_bytes: float, cache_tokens: int
    ) -> tuple[Floats, Floats, Ints]:
        """Seconds a block, seconds to enter, and blocks of the span, for each of these rows."""
        columns = self.columns
        own_s = np.maximum(tokens - columns.cached[rows], 1.0) * columns.block_s[rows]
        entry_s = columns.rtt_s[rows] + HOP_OVERHEAD_S + columns.queue_s[rows]
        entry_s = entry_s + 2 * tokens * row_bytes * columns.byte_s[rows]
        lengths = np.minimum(columns.stop[rows] - columns.start[rows], len(self.blocks))
        entry_s[cache_tokens * lengths > columns.room[rows]] += NO_ROOM_S
        return own_s, entry_s, lengths

    def _check_cover(self) -> None:
        edges = len(self._at)
        step = np.bincount(self._lo, minlength=edges) - np.bincount(self._hi, minlength=edges)
        bare = np.flatnonzero(np.cumsum(step)[:-1] <= 0).tolist()
        if not bare:
            return
        gaps: list[tuple[int, int]] = []
        for b in bare:
            start, stop = int(self._at[b]), int(self._at[b + 1])
            if gaps and gaps[-1][1] == start:
                gaps[-1] = (gaps[-1][0], stop)
            else:
                gaps.append((start, stop))
        raise MissingBlocks("", tuple(gaps))

    def _choose(self, entry_s: Floats, hi: Ints, draw: Draw | None) -> Ints:
        """For each boundary but the last the candidates to enter there: (boundaries, at most 32).

        Some do not serve the boundary's block; `_solve` sees that.
        """
        inside = np.arange(len(self._at) - 1)[:, None]
        most = CANDIDATES_BEST + CANDIDATES_RANDOM
        if len(self._rows) <= most:
            every = np.arange(len(self._rows))
            return np.broadcast_to(every, (len(inside), len(every)))
        covers = (self._lo <= inside) & (self._hi > inside)
        left = np.maximum(hi - self._at[:-1, None], 1)
        score = np.where(covers, entry_s / left + self._unit_s, np.inf)
        return candidates(self.columns, self._rows, covers, score, draw)

    def _solve(self, entry_s: Floats) -> None:
        """For each boundary the cheapest rest: its cost, and where its first hop ends."""
        edges = len(self._at) - 1
        chosen = self._candidates.T
        inside = np.arange(edges)
        reach = np.where(self._lo[chosen] <= inside, self._hi[chosen] - inside, 0)
        steps = np.arange(1, int(reach.max()) + 1)
        distance = self._at[np.minimum(inside[:, None] + steps, edges)] - self._at[:-1, None]
        cost = self._unit_s[chosen][:, :, None] * distance
        cost += entry_s[chosen][:, :, None]
        np.copyto(cost, np.inf, where=reach[:, :, None] < steps)
        hop_s = cost.min(axis=0)  # (boundaries, steps): enter at one, leave so many behind it
        togo = np.zeros(edges + 1)
        leave = [0] * edges
        for b in range(edges - 1, -1, -1):
            far = min(len(steps), edges - b)
            through = hop_s[b, :far] + togo[b + 1 : b + 1 + far]
            k = int(through.argmin())
            togo[b], leave[b] = through[k], b + 1 + k
        self._leave, self._cost = leave, cost
        self._line: list[int] = self._at.tolist()
        self._rest: list[float] = togo.tolist()  # from each boundary

    def _row(self, edge: int) -> int:
        """Which candidate the plan enters at this boundary."""
        best = self._cost[:, edge, self._leave[edge] - edge - 1].argmin()
        return int(self._candidates[edge, best])

    def _edge(self, at: int) -> int:
        """The boundary at block `at`, or the next before it: the same spans serve both."""
        return self._edges[at - self.blocks.start]

    def togo_s(self, at: int) -> float:
        """The cost from block `at` to the end: expected seconds, and tolls."""
        return self._rest[self._edge(at)]

    def route(self, at: int | None = None) -> Route:
        """The cheapest hops from block `at` (by default the first) to the end."""
        edge = 0 if at is None else self._edge(at)
        cost_s = self._rest[edge]
        hops: list[Hop] = []
        while edge < len(self._leave):
            row, leave = self._row(edge), self._leave[edge]
            start = max(int(self._at[edge]), self.blocks.start if at is None else at)
            blocks = BlockRange(start, int(self._at[leave]))
            peer = self.columns.name(int(self._rows[row]))
            if hops and hops[-1].peer == peer:
                hops[-1] = Hop(peer, BlockRange(hops[-1].blocks.start, blocks.stop))
            else:
                hops.append(Hop(peer, blocks))
            edge = leave
        return Route(tuple(hops), cost_s)

    def planned(self, at: int) -> tuple[int, int]:
        """The row that the plan enters at boundary `at`, and the block where it leaves it."""
        edge = self._edge(at)
        return int(self._rows[self._row(edge)]), int(self._at[self._leave[edge]])

    def alternates(self, at: int, count: int, pick: Pick) -> list[int]:
        """Up to `count` different rows, beside the planned one, that serve block `at`."""
        edge = self._edge(at)
        line = self._candidates[edge].tolist()
        taken = {self._row(edge)}
        found: list[int] = []
        for _ in range(3 * ALTERNATES):  # some tries fall on the planned one, or on no candidate
            i = line[pick(len(line))]
            if i not in taken and self._lo[i] <= edge < self._hi[i]:
                taken.add(i)
                found.append(int(self._rows[i]))
                if len(found) == count:
                    break
        return found

    def bind(
        self, at: int, offers: Sequence[Offer], *, size: float = 1.0, short_s: float = 0.0
    ) -> tuple[int, int, float]:
        """Late binding: the cheapest of these offers for block `at`, on queues just read.

        size: of this step, in steps of the size that the finder was made for. short_s: by how much
        plans fall short, a block (foresight.py): what is only planned counts for so much more, or
        spans are left whenever a guess looks better. Returns the offer's row, the block where to
        leave it, and the cost to the end, tolls included, with the rest as it is planned.
        """
        assert offers, "nobody made an offer"
        edge = self._edge(at)
        best_s, best = math.inf, (offers[0].row, self._line[edge + 1], math.inf)
        for offer in offers:  # few and short: numbers are faster than arrays
            row = self._place[offer.row]
            last = int(self._hi[row])
            assert self._lo[row] <= edge < last
            unit_s = size * float(self._own_s[row])
            unit_s += TOLL_FRESH * offer.queue_s / int(self._lengths[row])
            entry_s = float(self._fixed_s[row]) + offer.queue_s
            for leave in range(edge + 1, last + 1):
                distance = self._line[leave] - at
                total_s = unit_s * distance + entry_s + self._rest[leave]
                # All offers end at the same block: what is not used here is planned elsewhere.
                judged_s = total_s - short_s * distance
                if judged_s < best_s:
                    best_s, best = judged_s, (offer.row, self._line[leave], total_s)
        return best


def find_route(
    view: SwarmView,
    blocks: BlockRange,
    *,
    tokens: float = 1,
    row_bytes: float = 0,
    cache_tokens: int = 0,
    avoid: Collection[str] = (),
    draw: Draw | None = None,
) -> Route:
    """The cheapest route through `blocks` for a step of `tokens` tokens.

    row_bytes: of one token's hidden state on the wire. cache_tokens: positions the session will
    hold in each block. avoid: peers not to use. draw: an exponential draw; None for no surcharge.
    Raises MissingBlocks, naming what no peer outside `avoid` serves.
    """
    finder = _finder(
        view, blocks, avoid,
        tokens=tokens, row_bytes=row_bytes, cache_tokens=cache_tokens, draw=draw,
    )  # fmt: skip
    return finder.route()


def plan_route(
    view: SwarmView,
    blocks: BlockRange,
    *,
    cache_tokens: int = 0,
    avoid: Collection[str] = (),
    draw: Draw | None = None,
    pick: Pick,
) -> Plan:
    """As `find_route`, for one token: the route, and up to ALTERNATES others for each hop."""
    finder = _finder(view, blocks, avoid, cache_tokens=cache_tokens, draw=draw)
    route = finder.route()
    asked = dict.fromkeys(hop.peer for hop in route.hops)
    count = min(ALTERNATES, max(1, ASKED_MAX // len(route.hops) - 1))
    for hop in route.hops:
        others = finder.alternates(hop.blocks.start, count, pick)
        asked |= dict.fromkeys(finder.columns.name(row) for row in others)
    return Plan(route, tuple(asked))


def _finder(
    view: SwarmView,
    blocks: BlockRange,
    avoid: Collection[str],
    *,
    cache_tokens: int,
    draw: Draw | None,
    tokens: float = 1,
    row_bytes: float = 0,
) -> Finder:
    spans = [span for span in view.spans if span.peer not in avoid]
    try:
        return Finder(
            columns_of(spans), blocks,
            tokens=tokens, row_bytes=row_bytes, cache_tokens=cache_tokens, draw=draw,
        )  # fmt: skip
    except MissingBlocks as gap:
        raise MissingBlocks(view.model, gap.missing) from None


def rebind(
    view: SwarmView,
    route: Route,
    fresh: Mapping[str, float],
    *,
    cache_tokens: int = 0,
    draw: Draw | None = None,
) -> Route:
    """Late binding of a whole session at its start: the cheapest route among those that answered.

    fresh: the queues, in seconds, that the planned peers and their alternates just told. The plan
    stays when they cannot cover it.
    """
    blocks = BlockRange(route.hops[0].blocks.start, route.hops[-1].blocks.stop)
    answered: list[Span] = [
        replace(span, queue_s=fresh[span.peer]) for span in view.spans if span.peer in fresh
    ]
    try:
        alone = replace(view, spans=tuple(answered))
        return find_route(alone, blocks, cache_tokens=cache_tokens, draw=draw)
    except MissingBlocks:
        return route
