"""Which blocks this node serves, decided from the directory: where it joins, and when it moves.

The rules stand in swarm/placement.py; here is what they are told, and what is done about others who
decide at the same moment.

    join    look ─▶ say "joining" ─▶ SETTLE_S ─▶ look again: who joins too, and goes before us?
                       ▲                                        │ the choice has changed
                       └────────────────────────────────────────┘
    move    once an epoch: the movers that all elect; we move when we are one of them

Of those who join at once each has a place in a line that nobody chooses (a hash of its id), and
counts those before it as if they served already. A record does not tell whether its peer would
move: who was elected and stays where it is, is passed over for some epochs.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from ..dht.record import Announcement
from ..swarm.blocks import BlockRange
from ..swarm.placement import (
    EMERGENCY,
    KEEP,
    Holding,
    Move,
    believed_rate,
    block_rates,
    elect_moves,
    join_window,
    lot,
    still_helps,
    usual_rate,
)
from ..swarm.view import Floats

JITTER_S = 1.0  # guess: a power cut ends for many at once
SETTLE_S = 1.0  # guess: a record is at its keepers within that time
ROUNDS_MAX = 8  # of looking again: who is further back in line may have to move later
SLOW_TIMES = 3.0  # guess: a token may take that much longer in us than in the peer in the middle
SPAN_S = 0.1  # guess: a span through which a token takes no longer is never too long
WAIT_EPOCHS = 3  # guess: to load what is on the disk; who has to fetch it may be overtaken
PASSED_EPOCHS = 30  # for so long nobody waits for who did not move


class Finds(Protocol):
    """Where announcements are found (dht/directory.py)."""

    async def find(self, model: str) -> tuple[Announcement, ...]: ...


def holdings_of(
    found: Sequence[Announcement],
    now: float,
    *,
    rooted: Collection[str] = (),
    joining: Callable[[str], bool] = lambda peer: True,
) -> list[Holding]:
    """What the records say, as the rules want it; those that leave serve nothing any more.

    now: unix seconds. rooted: who is known not to move. joining: which of those that are still
    loading count.
    """
    counted = [
        told
        for told in found
        if told.state == "online" or (told.state == "joining" and joining(told.peer))
    ]
    if not counted:
        return []
    usual = usual_rate([told.decode_tokens_s for told in counted])
    return [
        Holding(
            told.peer,
            BlockRange(told.start, told.stop),
            believed_rate(told.decode_tokens_s, usual),
            max(0.0, now - told.boot),
            movable=told.state == "online" and told.peer not in rooted,
            arriving=told.state == "joining",
        )
        for told in counted
    ]


def choose_blocks(holdings: Sequence[Holding], total: int, length: int, me: str) -> BlockRange:
    """Where a newcomer that can serve `length` blocks is needed most.

    The first of all begins at the beginning. In a gap that one peer cannot fill, places are laid
    edge to edge, so that those who fill it leave no crumbs; which one is ours is the hash's word.
    """
    length = min(length, total)
    rates = block_rates(holdings, total)
    rates[rates < 1e-9 * max(1e-300, rates.max())] = 0.0  # what rounding left
    window = join_window(rates, length, me)
    if rates[window.start : window.stop].any():
        return window
    if not rates.any():
        start, stop = 0, length if not holdings else total
    else:
        start, stop = _gap_around(rates, window)
    places = -(-(stop - start) // length)
    begin = min(start + lot(0, me) % places * length, stop - length)
    return BlockRange(begin, begin + length)


def length_by_speed(rate: float, holdings: Sequence[Holding], total: int, fit: int) -> int:
    """How many of the `fit` blocks that we have room for a peer as fast as us should serve.

    While blocks are missing, all: a slow answer is better than none. Then so many that a token is
    not in us for SLOW_TIMES longer than in the peer in the middle.
    """
    if not holdings or not block_rates(holdings, total).all():
        return fit
    usual_s = statistics.median(len(one.blocks) / max(one.rate, 1e-9) for one in holdings)
    longest_s = max(SPAN_S, SLOW_TIMES * usual_s)
    return max(1, min(fit, int(rate * longest_s)))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a newcomer goes. rate: of it, as it will be announced. why: for the log."""

    blocks: BlockRange
    rate: float
    why: str


async def find_place(
    directory: Finds,
    model: str,
    total: int,
    fit: int,
    me: str,
    *,
    say: Callable[[Place], Awaitable[None]],
    measure: Callable[[BlockRange], Awaitable[float]],
    wall: Callable[[], float],
    jitter_s: float,
) -> Place:
    """Choose blocks beside others who may be choosing now. `say` announces that we join there.

    fit: how many blocks we have room for. measure: our rate, on one of these blocks. jitter_s: how
    long to wait at first.
    """

    def mine(told: Announcement) -> bool:
        return told.peer == me

    async def look(ahead: Callable[[str], bool]) -> list[Holding]:
        found = [told for told in await directory.find(model) if not mine(told)]
        return holdings_of(found, wall(), joining=ahead)

    def before_us(peer: str) -> bool:
        return (lot(0, peer), peer) < (lot(0, me), me)

    await trio.sleep(jitter_s)
    holdings = await look(lambda peer: True)
    length, rate = fit, usual_rate([one.rate for one in holdings]) if holdings else 1.0
    place = Place(choose_blocks(holdings, total, length, me), rate, _why(holdings, total, length))
    await say(place)
    if holdings and block_rates(holdings, total).all():
        rate = await measure(place.blocks)
        length = length_by_speed(rate, holdings, total, fit)
    for number in range(1, ROUNDS_MAX + 1):
        await trio.sleep(SETTLE_S)
        holdings = await look(before_us)
        blocks = choose_blocks(holdings, total, length, me)
        if blocks == place.blocks and rate == place.rate:
            if number > sum(not one.movable for one in holdings):
                break  # each round settles one more of those before us
            continue
        place = Place(blocks, rate, _why(holdings, total, length))
        await say(place)
    return place


class Elections:
    """What all elect, epoch after epoch, as one node sees it."""

    def __init__(self, me: str, total: int) -> None:
        self._me = me
        self._total = total
        self._elected: dict[str, tuple[int, Move, BlockRange]] = {}  # epoch, whither, whence
        self._passed: dict[str, int] = {}  # until which epoch nobody waits for it

    def hold(self, found: Sequence[Announcement], epoch: int, now: float) -> tuple[Move, ...]:
        """Who moves in this epoch, by these records."""
        spans = {told.peer: BlockRange(told.start, told.stop) for told in found}
        for peer, (since, _, whence) in list(self._elected.items()):
            if spans.get(peer) != whence:
                del self._elected[peer]  # it moved, or is gone
            elif epoch >= since + WAIT_EPOCHS:
                del self._elected[peer]
                self._passed[peer] = epoch + PASSED_EPOCHS
        self._passed = {
            peer: until for peer, until in self._passed.items() if until > epoch and peer in spans
        }
        holdings = holdings_of(found, now, rooted=self._passed)
        expected = [self._expected(one) for one in holdings]
        moves = elect_moves(expected, self._total, epoch)
        for move in moves:
            self._elected[move.peer] = (epoch, move, spans[move.peer])
        return moves

    def _expected(self, holding: Holding) -> Holding:
        """Who was elected counts where it goes, until it is there or is waited for no longer."""
        if holding.peer not in self._elected:
            return holding
        there = self._elected[holding.peer][1].blocks
        return replace(holding, blocks=there, movable=False, arriving=False)


def may_switch(
    found: Sequence[Announcement], me: str, old: BlockRange, new: BlockRange, total: int, now: float
) -> str:
    """Why the blocks that were loaded shall not be switched to; empty when all is as it was.

    While they were loaded others may have gone from the old ones, or come to the new ones.
    """
    holdings = holdings_of(found, now)
    ours = next((one for one in holdings if one.peer == me), None)
    if ours is None:
        return "our own announcement is not found"
    others = [one for one in holdings if one.peer != me]
    before = block_rates([*others, replace(ours, blocks=old)], total)
    keep = 1 if before.min() <= EMERGENCY * float(before.mean()) else KEEP
    for block in range(old.start, old.stop):
        left = sum(one.blocks.start <= block < one.blocks.stop for one in others)
        if not new.start <= block < new.stop and left < keep:
            return f"block {block} would be left with {left} others, {keep} must be"
    if not still_helps(others, replace(ours, blocks=old), new, total):
        return "it would help no more"
    return ""


def _gap_around(rates: Floats, window: BlockRange) -> tuple[int, int]:
    """The run of blocks that nobody serves in which the window lies."""
    start, stop = window.start, window.stop
    while start > 0 and rates[start - 1] == 0:
        start -= 1
    while stop < len(rates) and rates[stop] == 0:
        stop += 1
    return start, stop


def _why(holdings: Sequence[Holding], total: int, length: int) -> str:
    if not holdings:
        return f"nobody serves this model yet; we have room for {length} of {total} blocks"
    rates = block_rates(holdings, total)
    missing = int((rates <= 0).sum())
    if missing:
        return f"{missing} of {total} blocks are missing; we have room for {length}"
    return f"of {total} blocks, these {length} are served worst by {len(holdings)} peers"
