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

A peer that stays away keeps its debt as long as others wait, but gathers no credit. Nothing here
reads a clock: `now` is seconds on the caller's.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

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

    def __init__(self) -> None:
        self._steps: dict[Key, _Step[Key]] = {}
        self._peers: dict[str, _Peer[Key]] = {}
        self._urgent_ring: deque[str] = deque()  # peers with urgent steps
        self._prompt_ring: deque[str] = deque()  # peers with prompts
        self._passed_over = 0
        self._expired: list[Key] = []

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def prompts_wait(self) -> bool:
        return bool(self._prompt_ring)

    def urgent_rows(self) -> int:
        """Rows of urgent steps that the next pass would take."""
        rows = 0
        for name in self._urgent_ring:
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

    def next(self, rows: int, now: float, *, steps_max: int | None = None) -> list[Slice[Key]]:
        """The next pass: urgent steps whole, then slices of prompts, up to `rows` in all.

        rows: bounds the prompts alone; an only urgent step, or a prompt's first piece when it may
        not be cut, goes whatever its size. steps_max: so many slices at most.
        """
        self._expired = []
        most = steps_max if steps_max is not None else len(self._steps)
        owed = self.prompts_wait and self._passed_over >= PROMPT_EVERY - 1
        taken: list[Slice[Key]] = []
        if not (owed and most == 1):
            taken = self._take_urgent(most - (1 if owed and most > 1 else 0), now)
        room = rows - sum(one.rows for one in taken)
        if owed:
            room = max(room, 1)
        before = len(taken)
        if room > 0 and len(taken) < most:
            taken += self._take_prompts(room, most - len(taken), now)
        if len(taken) > before or not self.prompts_wait:
            self._passed_over = 0
        elif taken:
            self._passed_over += 1
        if not self._steps:
            self._peers.clear()  # nobody waits, so nobody was harmed
        return taken

    def expired(self) -> list[Key]:
        """Steps that the last call of `next` dropped because their time was over."""
        return self._expired

    def _take_urgent(self, most: int, now: float) -> list[Slice[Key]]:
        taken: list[Slice[Key]] = []
        rows = 0
        while self._urgent_ring and len(taken) < most:
            name = self._urgent_ring[0]
            step = self._peers[name].urgent[0]
            if step.until_s <= now:
                self._expire(step)
                continue
            size = sum(step.pieces)
            if taken and rows + size > URGENT_ROWS_MAX:
                break
            rows += size
            self._pay(name, size * URGENT_COST)
            self._leave(step)
            taken.append(Slice(step.key, size, True))
            if self._urgent_ring and self._urgent_ring[0] == name:
                self._urgent_ring.rotate(-1)
        return taken

    def _take_prompts(self, room: int, most: int, now: float) -> list[Slice[Key]]:
        taken: dict[Key, Slice[Key]] = {}
        while self._prompt_ring and room > 0:
            name = self._prompt_ring[0]
            peer = self._peers[name]
            step = peer.prompts[0]
            if step.until_s <= now:
                self._expire(step)
                continue
            if step.key not in taken and len(taken) >= most:
                break
            if peer.credit <= 0:
                peer.credit += QUANTUM
                self._prompt_ring.rotate(-1)
                continue
            rows = _cut_off(step, min(room, int(peer.credit + 1)))
            if rows > room and taken:
                _put_back(step, rows)
                break  # a whole piece, too long for what is left: it goes first next time
            room -= rows
            step.until_s = math.inf  # what is begun is finished
            self._pay(name, rows)
            before = taken.get(step.key)
            taken[step.key] = Slice(
                step.key, rows + (before.rows if before else 0), not step.pieces
            )
            if not step.pieces:
                self._leave(step)
        return list(taken.values())

    def _pay(self, name: str, cost: float) -> None:
        peer = self._peers[name]
        peer.credit = max(peer.credit - cost, -DEBT_MAX)

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
