"""When a device that others wait for may do something for training, and for whom.

Training is work that nobody reads while it is made: it goes in slices, when no step waits and
nobody is about to send one. But it shall not starve: of the time in which others are served it
gets a small share, in the moments in which their tokens are with other stages. A slice that nobody
waited behind costs nothing but that time. Behind one that a step had to wait for, as many passes
of others go first as leave one token in a hundred held up at worst: a token passes every stage of
its way, and over five stages fewer than one in twenty comes late (issue F, bar 7, is about the
95th of a hundred). Between slices the peers who train take turns: who was given least goes first.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

SHARE: Final = 0.04  # of the time, while others are served
PASSES: Final = 5  # guess: of others between two slices
PASSES_HELD: Final = 100  # after one that a step waited for, or before one: 1 in a hundred is late
BACKWARD_COST: Final = 3  # forward again, and backward's products: where one is forward's
GIVEN_MAX: Final = 1024  # peers of whom is remembered what they were given


class Spare:
    """One for a device. `now` is seconds on the caller's clock."""

    def __init__(self) -> None:
        self._passes = PASSES_HELD  # of others since the last slice
        self._due = PASSES  # so many of them go before the next
        self._from_s = -math.inf

    def may(self, now: float, *, served: bool, waits: bool) -> bool:
        """Whether a slice may go. served: somebody reads. waits: a step of his is here."""
        due = PASSES_HELD if waits else self._due
        return not (served or waits) or (self._passes >= due and now >= self._from_s)

    def passed(self) -> None:
        """A pass went for others."""
        self._passes += 1

    def took(self, seconds: float, now: float, *, held: bool) -> None:
        """A slice has ended, now. held: a step waits that came before that."""
        self._passes = 0
        self._due = PASSES_HELD if held else PASSES
        self._from_s = now + seconds * (1 - SHARE) / SHARE


class Turns(Generic[Key]):
    """Requests that wait, of several peers."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[tuple[Key, float]]] = {}
        self._given: dict[str, float] = {}
        self.cost = 0.0  # of all that wait

    def add(self, key: Key, peer: str, cost: float) -> None:
        """Who comes anew is owed nothing for the time before."""
        if peer not in self._lines:
            least = min((self._given[one] for one in self._lines), default=0.0)
            self._lines[peer] = deque()
            self._given[peer] = max(self._given.get(peer, 0.0), least)
        self._lines[peer].append((key, cost))
        self.cost += cost

    def drop(self, key: Key, peer: str) -> None:
        """It is not wanted any more. Unknown ones are ignored."""
        for entry in self._lines.get(peer, ()):
            if entry[0] == key:
                self._take(peer, entry)
                return

    def next(self) -> Key | None:
        """Whose turn it is; what it costs is charged to its peer. None: nobody waits."""
        if not self._lines:
            return None
        peer = min(self._lines, key=lambda one: (self._given[one], one))
        entry = self._lines[peer][0]
        self._given[peer] += entry[1]
        self._take(peer, entry)
        return entry[0]

    def _take(self, peer: str, entry: tuple[Key, float]) -> None:
        self._lines[peer].remove(entry)
        self.cost -= entry[1]
        if not self._lines[peer]:
            del self._lines[peer]
        if len(self._given) > GIVEN_MAX:
            self._given = {one: self._given[one] for one in self._lines}
