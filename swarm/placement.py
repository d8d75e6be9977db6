"""Which blocks a peer should serve: where a newcomer joins, and who moves in an epoch.

A block is worth what its peers can put through it: a peer that computes `rate` blocks of a token a
second, spread over its span, gives each of them rate / len(span). The slowest block holds up the
swarm. Two rules, both functions of one snapshot of signed records:

- *Join* (Petals, block_selection.py; algorithms.md 2.2): the window whose blocks, sorted by what
  they have, come first; peers that are still loading count.
- *Elected movers* (algorithms.md 2.4): once an epoch all compute who would help most by moving. Of
  the peers on the best served blocks, the one moves whose gain in the smooth minimum

      sm(v) = -(1/8) ln( mean over blocks of exp(-8 v / m) )        m = mean of v

  exceeds its cost (the work lost while it loads, over how long it should stay: the longer a peer
  was there, the longer it stays) by theta times its share, by most. Ties fall by a hash of epoch
  and peer. No block is left with fewer than two others.

Newcomers fetch for minutes; who has the blocks on its disk (ahead.py) is there before them. So it
moves, too, where it helps until they come, if the layout is no worse when they have. A move lifts
sm, of all or else of those who serve by now, by more than a fixed share of what moved, and lowers
that of all never; both are bounded: when nobody comes or goes, moves end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..crypto.digest import digest
from .ahead import READY_S, is_ready
from .blocks import BlockRange
from .view import Floats

EPOCH_S = 30.0  # sim (`stages`): 15 s are no better, 60 s cost .011 of the flow
SHARPNESS = 8.0  # algorithms.md 2.4, as are the numbers below
CANDIDATES = 24
THETA = 0.5
THETA_LARGE = 0.25  # above 100 peers a move is a smaller part of the whole, and noise is smaller
LARGE = 100
PEERS_PER_MOVER = 200
AGE_MIN_S = 600.0  # who just came is likely to go, and was placed on fresh data
STAY_MIN_S, STAY_MAX_S = 300.0, 1800.0
MOVE_S = 120.0  # guess: a few blocks of weights from several neighbours, and loading them
BELIEVED_MAX = 2.0  # times the median; sim: 1.5 costs an honest layout 3 % more, 3 shields less
KEEP = 2  # others that must still serve each block that a mover leaves
EVEN = 1e-9  # what rounding makes of a score that stays
EMERGENCY = 0.25  # of the mean: a block below this waives the age gate, and lets KEEP be 1


@dataclass(frozen=True, slots=True)
class Holding:
    """One peer as a signed record tells it. A peer on the move is where it moves to."""

    peer: str
    blocks: BlockRange
    rate: float  # tokens through one block in a second
    age_s: float = 0.0  # since its boot
    movable: bool = True  # online, and neither draining nor loading
    arriving: bool = False  # a newcomer that still loads

    def share(self) -> float:
        """What each of its blocks gets of it."""
        return self.rate / len(self.blocks)


@dataclass(frozen=True, slots=True)
class Move:
    """What `peer` should serve instead. gain: in the smooth minimum, of the mean."""

    peer: str
    blocks: BlockRange
    gain: float


def usual_rate(claims: Sequence[float]) -> float:
    """The median: a fifth of liars moves it little."""
    return float(np.median(claims)) if len(claims) else math.inf


def believed_rate(claim: float, usual: float) -> float:
    """What a claim counts for in a layout, where nobody has timed anybody.

    Whoever claims ten times its rate makes its blocks look served, and honest peers go elsewhere:
    a fifth of such liars took four tenths off the worst served block.
    """
    return min(claim, BELIEVED_MAX * usual)


def block_rates(holdings: Sequence[Holding], total: int) -> Floats:
    """What each of `total` blocks gets from all its peers."""
    edge = np.zeros(total + 1)
    for holding in holdings:
        edge[holding.blocks.start] += holding.share()
        edge[holding.blocks.stop] -= holding.share()
    rates: Floats = np.maximum(np.cumsum(edge[:-1]), 0.0)
    return rates


def smooth_min(rates: Floats, mean: float) -> Floats:
    """Of the last axis; in units of `mean`, near its least entry when one is far below."""
    worst = rates.min(axis=-1, keepdims=True)
    soft = np.exp(-SHARPNESS * (rates - worst) / mean).mean(axis=-1)
    least: Floats = worst[..., 0] / mean - np.log(soft) / SHARPNESS
    return least


def lot(epoch: int, peer: str) -> int:
    """A number that nobody chooses, and all agree on."""
    return int.from_bytes(digest("placement", f"{epoch}/{peer}".encode())[:8])


def span_length(total: int, memory_bytes: int, block_bytes: int, *, cache_bytes: int = 0) -> int:
    """How many blocks a peer with so much memory serves; at least one.

    cache_bytes: what the sessions of one block are to have beside its weights.
    """
    return max(1, min(total, memory_bytes // max(1, block_bytes + cache_bytes)))


def join_window(rates: Floats, length: int, peer: str = "") -> BlockRange:
    """The `length` blocks that need a newcomer most: lexicographic max-min.

    Windows that are equally needy are told apart by the peer's own hash, so that many who join at
    once do not all choose the first.
    """
    length = min(length, len(rates))
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(rates, length), axis=1)
    first = np.lexsort(windows.T[::-1])[0]
    equal = np.flatnonzero((windows == windows[first]).all(axis=1))
    start = int(equal[lot(0, peer) % len(equal)])
    return BlockRange(start, start + length)


def elect_moves(
    holdings: Sequence[Holding],
    total: int,
    epoch: int,
    *,
    theta: float | None = None,
    move_s: float = MOVE_S,
) -> tuple[Move, ...]:
    """Who moves in this epoch, at most one of 200; the same for all who read the same records.

    A peer that finds itself here loads the new blocks while it serves the old ones.
    """
    if len(holdings) < 2:
        return ()
    if theta is None:
        theta = THETA if len(holdings) <= LARGE else THETA_LARGE
    most = BELIEVED_MAX * usual_rate([holding.rate for holding in holdings])
    standing = [
        holding if holding.rate <= most else replace(holding, rate=most)
        for holding in sorted(holdings, key=lambda holding: holding.peer)
    ]
    start = np.array([holding.blocks.start for holding in standing])
    stop = np.array([holding.blocks.stop for holding in standing])
    may_go = np.array([holding.movable for holding in standing])
    old = np.array([holding.age_s >= AGE_MIN_S for holding in standing])
    rates = block_rates(standing, total)
    served = rates - block_rates([holding for holding in standing if holding.arriving], total)
    counts = np.cumsum(
        np.bincount(start, minlength=total + 1) - np.bincount(stop, minlength=total + 1)
    )
    mean = float(rates.mean())
    moves: list[Move] = []
    for _ in range(math.ceil(len(standing) / PEERS_PER_MOVER)):
        emergency = bool(rates.min() <= EMERGENCY * mean)
        others = _least_within(counts[:-1].astype(np.float64))[start, stop - 1] - 1
        able = may_go & (others >= (1 if emergency else KEEP)) & (old | emergency)
        # Who moves now serves blocks of which the worst is better served than anybody else's.
        spare = np.where(able, _least_within(served)[start, stop - 1], -np.inf)
        order = np.argsort(-spare, kind="stable")[:CANDIDATES].tolist()
        found = [
            (worth, lot(epoch, move.peer), i, move)
            for i in order
            if able[i]
            for worth, move in _best_move(standing[i], rates, served, mean, theta, move_s)
        ]
        if not found:
            break
        _, _, i, move = max(found, key=lambda rank: rank[:3])
        moves.append(move)
        may_go[i] = False
        for blocks, sign in ((standing[i].blocks, -1), (move.blocks, 1)):
            for all_of_them in (rates, served):
                all_of_them[blocks.start : blocks.stop] += sign * standing[i].share()
            counts[blocks.start : blocks.stop] += sign
        rates, served = np.maximum(rates, 0.0), np.maximum(served, 0.0)
    return tuple(moves)


def _least_within(values: Floats) -> Floats:
    """A table: the least of values[start:stop] at [start, stop - 1]."""
    table = np.full((len(values), len(values)), np.inf)
    for start in range(len(values)):
        table[start, start:] = np.minimum.accumulate(values[start:])
    return table


def _best_move(
    holding: Holding, rates: Floats, served: Floats, mean: float, theta: float, move_s: float
) -> list[tuple[float, Move]]:
    """Where this peer helps most, with what that is worth; nowhere if it is not worth its way.

    rates: with those who are on their way; served: without.
    """
    total, length = len(rates), len(holding.blocks)
    ready = is_ready(holding.peer, total, length, holding.age_s)
    gains = _gains(holding, rates, mean)
    now = ready & (gains >= -EVEN)
    if now.any():
        gains = np.where(now, np.maximum(gains, _gains(holding, served, mean)), gains)
    part = holding.share() / mean * length / total
    stay_s = min(max(holding.age_s, STAY_MIN_S), STAY_MAX_S)
    worth = gains - part * np.where(ready, min(READY_S, move_s), move_s) / stay_s
    start = int(worth.argmax())
    if start == holding.blocks.start or worth[start] <= theta * part:
        return []
    blocks = BlockRange(start, start + length)
    return [(float(worth[start]), Move(holding.peer, blocks, float(gains[start])))]


def _gains(holding: Holding, rates: Floats, mean: float) -> Floats:
    """In the smooth minimum: this peer in each window of its length, instead of in its own."""
    total, length, share = len(rates), len(holding.blocks), holding.share()
    without = rates.copy()
    without[holding.blocks.start : holding.blocks.stop] -= share
    np.maximum(without, 0.0, out=without)
    starts = np.arange(total - length + 1)[:, None]
    place = np.arange(total)
    there = without + share * ((place >= starts) & (place < starts + length))
    gains: Floats = smooth_min(there, mean) - smooth_min(rates[None, :], mean)[0]
    return gains


def still_helps(others: Sequence[Holding], mover: Holding, blocks: BlockRange, total: int) -> bool:
    """Whether it is better if this peer serves `blocks` instead: as elections see it, but for the
    cost of the way, which has been paid."""
    there = replace(mover, blocks=blocks)

    def gain(counted: Sequence[Holding]) -> float:
        before, after = (block_rates([*counted, one], total) for one in (mover, there))
        mean = float(before.mean())
        return float(smooth_min(after, mean) - smooth_min(before, mean))

    in_the_end = gain(others)
    now = gain([one for one in others if not one.arriving])
    return in_the_end > EVEN or (in_the_end >= -EVEN and now > EVEN)


@dataclass(frozen=True, slots=True)
class Demand:
    """One model: its peers, and what is asked of it. offered: tokens a second; 0 for nobody."""

    model: str
    total: int
    holdings: tuple[Holding, ...]
    offered: float


def choose_model(demands: Sequence[Demand], served: Sequence[str] = ()) -> str:
    """The model that the next peer should join: the one whose demand is met worst.

    Ratio of what is asked to what the slowest block can do; among models that nobody can use yet,
    the most wanted. served: the models whose weights the newcomer has already; they win ties.
    """
    if not demands:
        raise ValueError("no model to choose from")

    def need(demand: Demand) -> tuple[float, float, bool, str]:
        rates = block_rates(demand.holdings, demand.total)
        least, mean = float(rates.min()), float(rates.mean())
        # A model with holes is as good as unserved; how near it is to whole counts all the same.
        able = least if least > 0 else 1e-9 * (1 + mean)
        return demand.offered / able, -mean, demand.model in served, demand.model

    return max(demands, key=need).model
