"""Which waiting steps go to the device next, and how many rows of each.

Steps of few rows, tokens that somebody is waiting to read, come before slices of prompts; but of
`PROMPT_EVERY` passes one carries a slice if any waits, and no slice of a prompt is longer than what
the caller's budget of rows allows, so that neither kind waits for ever. Among prompts the device is
shared by peer, not by session: deficit round robin (Shreedhar and Varghese, 1996) over the peers,
where a peer that overdraws waits until its turns have paid for it. What a peer's tokens cost is
charged to the same account, at twice the price of a prompt's row (Sheng et al., 2024). So one peer
with eight long prompts gets no more than another with one.

    urgent     p: s1 s4    q: s2          each peer's first, then each peer's second ...
    prompts  ▶ p: S3 S7    q: S5    r: S6    the ring: a quantum at each turn, rows are paid from it

A peer that stays away keeps its debt as long as others wait, but gathers nothing. Where peers have
credit for what they gave, a pass may be for some who wait, in the same order among them, and the
others ride along as far as they make it hardly longer (favour.py). Nothing here reads a clock:
`now` is seconds on the caller's.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .favour import Favour, Lead

Key = TypeVar("Key", bound=Hashable)

URGENT_ROWS = 8  # guess: a token, or a draft of a few, that a person waits for
URGENT_ROWS_MAX = 256  # in one pass: beyond, a row more costs as much as it saves
QUANTUM = 32  # guess: rows of a prompt for each turn; small, so that a short prompt is soon through
URGENT_COST = 2  # a token costs a pass of its own; rows of a prompt share one
DEBT_MAX = 1024  # rows; bounds how long a peer's tokens can hold up its own prompts
PROMPT_EVERY = 4  # passes; guess: a quarter of the device is enough to get a prompt through
ABSENT_MAX = 1024  # peers that stay away and whose debts are remembered


@dataclass(frozen=True, slots=True)
class Slice(Generic[Key]):
    """So many rows of this step, next. `last`: nothing of it is left then."""

    key: Key
    rows: int
    last: bool


@dataclass(slots=True, eq=False)
class _Step(Generic[Key]):
    key: Key
    peer: str
    pieces: deque[int]  # what is left; a piece may be cut when `cut`
    cut: bool
    until_s: float
    urgent: bool


@dataclass(slots=True, eq=False)
class _Peer(Generic[Key]):
    urgent: deque[_Step[Key]] = field(default_factory=deque)
    prompts: deque[_Step[Key]] = field(default_factory=deque)
    credit: float = 0.0


class Schedule(Generic[Key]):
    """The steps that wait. `add` them, then ask for the `next` pass again and again."""

    def __init__(self, favour: Favour | None = None) -> None:
        self._favour = favour
        self._costs: Counter[str] = Counter()  # of the last pass, by peer
        self._steps: dict[Key, _Step[Key]] = {}
        self._peers: dict[str, _Peer[Key]] = {}
        self._urgent_ring: deque[str] = deque()  # peers with urgent steps
        self._prompt_ring: deque[str] = deque()  # peers with prompts
        self._passed_over = 0  # passes in which prompts waited and none was taken
        self._expired: list[Key] = []

    def __len__(self) -> int:
        return len(self._steps)

    def lead(self, now: float) -> Lead | None:
        """Whom the next pass is for; None: for all."""
        if self._favour is None or not self._favour.rules:
            return None
        return self._favour.lead({*self._urgent_ring, *self._prompt_ring}, now)

    def took(self, seconds: float, now: float) -> None:
        """The pass that was asked for last took so long."""
        if self._favour is not None:
            self._favour.took(self._costs, seconds, now)

    @property
    def prompts_wait(self) -> bool:
        return bool(self._prompt_ring)

    def urgent_rows(self, lead: Lead | None = None) -> int:
        """Rows of urgent steps that the next pass would take."""
        rows = 0
        for name in self._urgent_ring:
            if lead is None or name in lead.peers:
                rows += sum(sum(step.pieces) for step in self._peers[name].urgent)
        return min(rows, URGENT_ROWS_MAX)

    def add(self, key: Key, peer: str, sizes: Sequence[int], *, cut: bool, until_s: float) -> None:
        """One step waits. sizes: of its pieces, which stay whole unless it may be `cut`.

        until_s: when nobody wants it any more, if it was not begun by then.
        """
        assert key not in self._steps and sizes and min(sizes) > 0
        rows = sum(sizes)
        pieces = deque([rows] if cut else sizes)
        step = _Step(key, peer, pieces, cut, until_s, rows <= URGENT_ROWS)
        self._steps[key] = step
        theirs = self._peers.setdefault(peer, _Peer())
        ring, line = self._places(step, theirs)
        if not line:
            ring.append(peer)
        line.append(step)

    def drop(self, key: Key) -> None:
        """Nobody waits for this step any more. Unknown ones are ignored."""
        if (step := self._steps.get(key)) is not None:
            self._leave(step)

    def next(
        self,
        rows: int,
        now: float,
        *,
        steps_max: int | None = None,
        lead: Lead | None = None,
        spare: Callable[[int], int] = lambda rows: 0,
    ) -> list[Slice[Key]]:
        """The next pass: urgent steps whole, then slices of prompts, up to `rows` in all.

        rows: bounds the prompts alone; an only urgent step, or a prompt's first piece when it may
        not be cut, goes whatever its size. steps_max: so many slices at most. lead: whom it is for.
        spare: how many rows more make a pass of so many hardly longer; who is not in the lead gets
        these.
        """
        self._expired = []
        self._costs.clear()
        most = steps_max if steps_max is not None else len(self._steps)
        waited = _first(self._prompt_ring, lead) is not None
        owed = waited and self._passed_over >= PROMPT_EVERY - 1
        taken: list[Slice[Key]] = []
        if not (owed and most == 1):
            taken = self._take_urgent(most - (1 if owed and most > 1 else 0), now, lead)
        room = rows - _rows(taken)
        if owed:
            room = max(room, 1)
        before = len(taken)
        if room > 0 and len(taken) < most:
            taken += self._take_prompts(room, most - len(taken), now, lead)
        if len(taken) > before or not waited:
            self._passed_over = 0
        elif taken:
            self._passed_over += 1
        if lead is not None and len(taken) < most:
            taken += self._take_along(most - len(taken), now, lead, spare(_rows(taken)))
        if not self._steps:
            self._peers.clear()  # nobody waits, so nobody was harmed
        return taken

    def expired(self) -> list[Key]:
        """Steps that the last call of `next` dropped because their time was over."""
        return self._expired

    def _take_along(self, most: int, now: float, lead: Lead, room: int) -> list[Slice[Key]]:
        """Steps of others, as many as have room in a pass that is not for them."""
        waiting = {*self._urgent_ring, *self._prompt_ring}.difference(lead.peers)
        others = Lead(waiting, not lead.by_credit)
        taken = self._take_urgent(most, now, others, rows_max=room)
        room -= _rows(taken)
        if room > 0 and len(taken) < most:
            taken += self._take_prompts(room, most - len(taken), now, others, whole=False)
        return taken

    def _take_urgent(
        self, most: int, now: float, lead: Lead | None, rows_max: int | None = None
    ) -> list[Slice[Key]]:
        """rows_max: never more; by default one step goes whatever its size."""
        taken: list[Slice[Key]] = []
        rows = 0
        while len(taken) < most and (name := _first(self._urgent_ring, lead)) is not None:
            step = self._peers[name].urgent[0]
            if step.until_s <= now:
                self._expire(step)
                continue
            size = sum(step.pieces)
            if rows + size > URGENT_ROWS_MAX and taken:
                break
            if rows_max is not None and rows + size > rows_max:
                break
            rows += size
            self._pay(name, size * URGENT_COST, lead)
            self._leave(step)
            taken.append(Slice(step.key, size, True))
            if name in self._peers and self._peers[name].urgent:
                _to_the_end(self._urgent_ring, name)
        return taken

    def _take_prompts(
        self, room: int, most: int, now: float, lead: Lead | None, *, whole: bool = True
    ) -> list[Slice[Key]]:
        """whole: a first piece that may not be cut goes whatever its size."""
        taken: dict[Key, Slice[Key]] = {}
        while room > 0 and (name := _next_prompts(self._prompt_ring, lead)) is not None:
            peer = self._peers[name]
            step = peer.prompts[0]
            if step.until_s <= now:
                self._expire(step)
                continue
            if step.key not in taken and len(taken) >= most:
                break
            most_rows = QUANTUM
            if lead is None or not lead.shares:
                if peer.credit <= 0:
                    peer.credit += QUANTUM
                    _to_the_end(self._prompt_ring, name)
                    continue
                most_rows = int(peer.credit + 1)
            rows = _cut_off(step, min(room, most_rows))
            if rows > room and (taken or not whole):
                _put_back(step, rows)
                break  # a whole piece, too long for what is left: it goes first next time
            room -= rows
            step.until_s = math.inf  # what is begun is finished
            self._pay(name, rows, lead)
            before = taken.get(step.key)
            taken[step.key] = Slice(
                step.key, rows + (before.rows if before else 0), not step.pieces
            )
            if not step.pieces:
                self._leave(step)
        return list(taken.values())

    def _pay(self, name: str, cost: int, lead: Lead | None) -> None:
        if lead is not None and lead.shares:
            lead.pay(name, cost)
        else:
            peer = self._peers[name]
            peer.credit = max(peer.credit - cost, -DEBT_MAX)
        if self._favour is not None:
            self._costs[name] += cost

    def _expire(self, step: _Step[Key]) -> None:
        self._leave(step)
        self._expired.append(step.key)

    def _leave(self, step: _Step[Key]) -> None:
        del self._steps[step.key]
        peer = self._peers[step.peer]
        ring, line = self._places(step, peer)
        line.remove(step)
        if not line:
            ring.remove(step.peer)
            if not peer.urgent and not peer.prompts:
                peer.credit = min(peer.credit, 0.0)
                if peer.credit == 0 or len(self._peers) > ABSENT_MAX + len(self._steps):
                    del self._peers[step.peer]

    def _places(self, step: _Step[Key], peer: _Peer[Key]) -> tuple[deque[str], deque[_Step[Key]]]:
        if step.urgent:
            return self._urgent_ring, peer.urgent
        return self._prompt_ring, peer.prompts


def _cut_off(step: _Step[Key], wanted: int) -> int:
    """Take up to `wanted` rows off the front, or one whole piece if it may not be cut."""
    if step.cut:
        rows = min(step.pieces[0], wanted)
        step.pieces[0] -= rows
        if not step.pieces[0]:
            step.pieces.popleft()
        return rows
    rows = step.pieces.popleft()
    while step.pieces and rows + step.pieces[0] <= wanted:
        rows += step.pieces.popleft()
    return rows


def _put_back(step: _Step[Key], rows: int) -> None:
    """Undo `_cut_off` of one whole piece."""
    step.pieces.appendleft(rows)


def _rows(taken: Sequence[Slice[Key]]) -> int:
    return sum(one.rows for one in taken)


def _first(ring: deque[str], lead: Lead | None) -> str | None:
    """Whose turn it is, of those in the lead."""
    if lead is None:
        return ring[0] if ring else None
    return next((name for name in ring if name in lead.peers), None)


def _next_prompts(ring: deque[str], lead: Lead | None) -> str | None:
    """The same for prompts: on credit, whoever had least for its share."""
    if lead is None or not lead.shares:
        return _first(ring, lead)
    having = (name for name in ring if name in lead.peers)
    return min(having, key=lambda name: (lead.had.get(name, 0.0), name), default=None)


def _to_the_end(ring: deque[str], name: str) -> None:
    if ring[0] == name:
        ring.rotate(-1)
    else:
        ring.remove(name)
        ring.append(name)
