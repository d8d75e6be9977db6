"""Which of many spans are looked at where a route enters: the best, a few by lot, of many networks.

Of many spans only the CANDIDATES_BEST that look best at a boundary and CANDIDATES_RANDOM by lot are
considered (algorithms.md 2.5), and of very many only a pool, POOL_DEPTH deep over each block: so a
route through ten thousand takes milliseconds. Such a list is contested: whoever has many names in
one network, and lets each say that it is fast, would fill it. So of a pool, and of each boundary's
list, a network has at most its part (dht/network.py), the best of it first; the others come last,
so that a swarm within one network works, and at home nothing is counted. Of up to as many spans as
a list has room for all are considered, whoever they are: nobody takes another's place there.

    10,000 rows ── pool ──▶ some hundred ── candidates ──▶ 24 + 8 for each boundary
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..dht.network import PER_NETWORK, wide_max
from .blocks import BlockRange
from .view import Columns, Floats, Ints

CANDIDATES_BEST = 24  # algorithms.md 2.5: per boundary
CANDIDATES_RANDOM = 8  # algorithms.md 2.5
POOL_DEPTH = 32  # of many spans, so many of the best over each block are looked at closely
POOL_STEP = 128
POOL_LEAST = 2 * POOL_STEP  # spans; of fewer all are in the pool
GOLDEN = 0.6180339887498949  # its multiples, modulo 1, are spread evenly: one draw deals all lots
LATER_S = 1e9  # added to what is beyond its network's part

Bools = NDArray[np.bool_]
Draw = Callable[[float], float]  # given a mean, an exponential draw


def pool(
    columns: Columns, rows: Ints, blocks: BlockRange, score: Floats, draw: Draw | None
) -> Ints:
    """Places in `rows`: the best spans until each block has POOL_DEPTH of them, and a few of the
    others. score: of each row, the least is the best."""
    base = blocks.start
    lo = np.maximum(columns.start[rows], base) - base
    hi = np.minimum(columns.stop[rows], blocks.stop) - base
    looked = min(16 * POOL_STEP, len(rows))
    order = np.argpartition(score, looked - 1)
    order = np.concatenate([order[:looked][np.argsort(score[order[:looked]])], order[looked:]])
    filling = _Filling(lo, hi, len(blocks))
    parts = _Parts(columns, rows, lo, hi, len(blocks))
    later = filling.take(order, parts.within)
    filling.take(later, lambda some: some)
    kept = filling.kept
    if draw is not None:  # a stride through the others, begun at a random place
        rest = np.flatnonzero(~kept)
        stride = max(1, len(rest) // POOL_STEP)
        kept[rest[int(draw(stride)) % stride :: stride]] = True
    return np.flatnonzero(kept)


class _Filling:
    """Who is in the pool, and how deep it is over each block."""

    def __init__(self, lo: Ints, hi: Ints, blocks: int) -> None:
        self._lo, self._hi = lo, hi
        self._count = np.zeros(blocks + 1, dtype=np.int64)
        self.kept: Bools = np.zeros(len(lo), dtype=np.bool_)

    def take(self, order: Ints, within: Callable[[Ints], Ints]) -> Ints:
        """Those of `order` that `within` lets pass, while some block lacks any; the others."""
        count, refused = self._count, [order[:0]]
        for first in range(0, len(order), POOL_STEP):
            part = order[first : first + POOL_STEP]
            short = np.concatenate([[0], np.cumsum(count[:-1] < POOL_DEPTH)])
            if short[-1] == 0:
                break
            part = part[short[self._hi[part]] > short[self._lo[part]]]
            passed = within(part)
            if len(passed) < len(part):
                refused.append(part[~np.isin(part, passed)])
            step = np.bincount(self._lo[passed], minlength=len(count))
            step -= np.bincount(self._hi[passed], minlength=len(count))
            count[:-1] += np.cumsum(step)[:-1]
            self.kept[passed] = True
        return np.concatenate(refused)


class _Parts:
    """What each network that could have more than its part has of the pool, over each block."""

    def __init__(self, columns: Columns, rows: Ints, lo: Ints, hi: Ints, blocks: int) -> None:
        self._lo, self._hi = lo, hi
        self._widths: list[tuple[Ints, int, Ints]] = []  # a line each row, the part, the lines
        self._crowded: Bools = np.zeros(len(rows), dtype=np.bool_)
        for names, most in _widths(columns, POOL_DEPTH):
            some = _of_crowds(names[rows], most)
            crowds, their_line = np.unique(names[rows][some], return_inverse=True)
            line = np.full(len(rows), -1, dtype=np.int64)
            line[some] = their_line
            self._crowded[some] = True
            self._widths.append((line, most, np.zeros((len(crowds), blocks), dtype=np.int64)))

    def within(self, part: Ints) -> Ints:
        """Those of these whose networks have their part over none of their blocks; they take it."""
        crowded = part[self._crowded[part]]
        if not len(crowded):
            return part
        refused = {i for i in crowded[self._full(crowded)].tolist()}
        refused |= {i for i in crowded.tolist() if i not in refused and not self._takes(i)}
        return np.array([i for i in part.tolist() if i not in refused], dtype=np.int64)

    def _full(self, some: Ints) -> Bools:
        """Which of these have no place any more: of many at once."""
        found: Bools = np.zeros(len(some), dtype=np.bool_)
        for line, most, taken in self._widths:
            mine = np.flatnonzero(line[some] >= 0)
            full = np.cumsum(taken[line[some[mine]]] >= most, axis=1)
            upto = np.concatenate([np.zeros((len(mine), 1), dtype=np.int64), full], axis=1)
            at = np.arange(len(mine))
            found[mine] |= upto[at, self._hi[some[mine]]] > upto[at, self._lo[some[mine]]]
        return found

    def _takes(self, i: int) -> bool:
        span = slice(int(self._lo[i]), int(self._hi[i]))
        mine = [(taken[line[i], span], most) for line, most, taken in self._widths if line[i] >= 0]
        if any(taken.max() >= most for taken, most in mine):
            return False
        for taken, _ in mine:
            taken += 1
        return True


def candidates(
    columns: Columns, rows: Ints, covers: Bools, score: Floats, draw: Draw | None
) -> Ints:
    """For each boundary, a line of `covers` and `score`, places in `rows`: at most 32 of them.

    covers: who serves the boundary's block; score: infinite where it does not.
    """
    most = CANDIDATES_BEST + CANDIDATES_RANDOM
    widths = [(names[rows], part) for names, part in _widths(columns, most)]
    score = np.where(_beyond(score, widths), score + LATER_S, score)
    if draw is None:
        return np.argpartition(score, most - 1, axis=1)[:, :most]
    best = np.argpartition(score, CANDIDATES_BEST - 1, axis=1)[:, :CANDIDATES_BEST]
    lot = (draw(1.0) + GOLDEN * np.arange(len(rows))) % 1.0
    lots = np.where(covers, lot, np.inf)
    if widths:  # the best have taken theirs before
        first = lots.copy()
        np.put_along_axis(first, best, np.take_along_axis(lots, best, axis=1) - 1, axis=1)
        lots = np.where(_beyond(first, widths), lots + LATER_S, lots)
    lucky = np.argpartition(lots, CANDIDATES_RANDOM - 1, axis=1)[:, :CANDIDATES_RANDOM]
    return np.concatenate([best, lucky], axis=1)


def _widths(columns: Columns, count: int) -> list[tuple[Ints, int]]:
    """The networks of each row, the narrowest first, and the part of each of a list of `count`."""
    if columns.networks is None:
        return []
    return list(zip(columns.networks, (PER_NETWORK, wide_max(count)), strict=True))


def _of_crowds(names: Ints, most: int) -> Ints:
    """Places of those whose network has more than `most` names."""
    counted = np.bincount(names[names >= 0], minlength=1)
    return np.flatnonzero((names >= 0) & (counted[np.maximum(names, 0)] > most))


def _beyond(score: Floats, widths: list[tuple[Ints, int]]) -> Bools:
    """Who comes after its network's part of a boundary's list, the least score first: as
    `dht.network.diverse`, for many lists at once."""
    late: Bools = np.zeros(score.shape, dtype=np.bool_)
    for names, most in widths:
        some = _of_crowds(names, most)
        if len(some):
            left = np.where(late[:, some], np.inf, score[:, some])
            late[:, some] |= np.isfinite(left) & (_place_in_network(left, names[some]) >= most)
    return late


def _place_in_network(score: Floats, names: Ints) -> Ints:
    """In each line, how many of the same network come before."""
    order = np.argsort(score, axis=1, kind="stable")
    named = names[order]
    by_name = np.argsort(named, axis=1, kind="stable")
    sorted_ = np.take_along_axis(named, by_name, axis=1)
    at = np.broadcast_to(np.arange(score.shape[1]), score.shape)
    begins = np.ones(score.shape, dtype=np.bool_)
    begins[:, 1:] = sorted_[:, 1:] != sorted_[:, :-1]
    place = at - np.maximum.accumulate(np.where(begins, at, 0), axis=1)
    found = np.empty_like(place)
    np.put_along_axis(found, np.take_along_axis(order, by_name, axis=1), place, axis=1)
    return found
