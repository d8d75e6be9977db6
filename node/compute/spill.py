"""Which sessions' keys and values lie on the device, and which rest in the host's memory.

A GPU has less memory than its host. A session that waits for its user need not lie on the device:
before a step its rows are there, and the longest unused others make room by moving to the host,
bit for bit, and back before their own next step.

    device   ██ a ██ ██ c ██ · · ·        D bytes
    host     ██ b ██ ██ d ██ ██ e ██ ·    H bytes

Sessions may promise themselves H + D / 2 bytes together, each D / 2 at most. That is never too
much: whole sessions move, and none is moved but to make room, so that after a move more than
D - D / 2 is still on the device, and less than H beside it. Where H is not above D / 2 nothing
moves, and the promise is D.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ...errors import LocalError

_HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Budget:
    """device_bytes, host_bytes: D and H above."""

    device_bytes: int
    host_bytes: int = 0

    @property
    def spills(self) -> bool:
        return self.host_bytes > self.device_bytes // 2

    @property
    def promised_bytes(self) -> int:
        """What sessions may reserve together."""
        if not self.spills:
            return self.device_bytes
        return self.host_bytes + self.device_bytes // 2

    @property
    def session_bytes_max(self) -> int:
        return self.device_bytes // 2 if self.spills else self.device_bytes


class Movable(Protocol):
    """What a session remembers, as far as moving it goes: rows in one place, or pages."""

    max_tokens: int

    @property
    def capacity(self) -> int:
        """Positions that fit without growing."""

    def bytes_for(self, tokens: int) -> int:
        """Bytes that it needs to remember so many positions."""

    def capacity_for(self, stop: int) -> int:
        """Positions that there will be room for once those below `stop` are written."""

    def go(self, device: torch.device) -> None:
        """Lie there until `come_back`."""

    def come_back(self) -> None:
        """Lie on the stage's device again."""


class Residents:
    """The sessions of one stage, the longest unused first. On the worker's thread alone."""

    def __init__(self, budget: Budget, moved: Callable[[int], None] = lambda size: None) -> None:
        """moved: told the bytes of each move, for the count of them."""
        self._budget = budget
        self._moved = moved
        self._caches: dict[int, Movable] = {}  # by id; the latest used last
        self._away: set[int] = set()
        self._resident_bytes = 0  # of those on the device, each as it was last counted
        self._counted: dict[int, int] = {}

    @property
    def device_bytes(self) -> int:
        """Of sessions, on the device."""
        return self._resident_bytes

    @property
    def host_bytes(self) -> int:
        """Of sessions at rest, in the host's memory."""
        return sum(self._counted[key] for key in self._away)

    def open(self, cache: Movable) -> None:
        """A new session, which was promised no more than one may have."""
        if cache.bytes_for(cache.max_tokens) > self._budget.session_bytes_max:
            raise LocalError(f"a session of {cache.max_tokens} positions was promised too much")
        key = id(cache)
        size = cache.bytes_for(cache.capacity)
        self._make_room(key, size)
        self._caches[key] = cache
        self._counted[key] = size
        self._resident_bytes += size

    def close(self, cache: Movable) -> None:
        """It is of no more use."""
        key = id(cache)
        del self._caches[key]
        size = self._counted.pop(key)
        if key in self._away:
            self._away.remove(key)
        else:
            self._resident_bytes -= size

    def knows(self, cache: Movable) -> bool:
        """Whether it is open."""
        return id(cache) in self._caches

    def part(self, wanted: Sequence[tuple[Movable, int]]) -> list[int]:
        """How many of these, one after another, have room on the device at once, until all had.

        wanted: each with the end of the positions that it is to have room for.
        """
        sizes: list[int] = []
        room = 0
        for cache, stop in wanted:
            size = cache.bytes_for(cache.capacity_for(stop))
            if not sizes or size > room:
                sizes.append(0)
                room = self._budget.device_bytes
            sizes[-1] += 1
            room -= size
        return sizes

    def use_all(self, wanted: Sequence[tuple[Movable, int]]) -> None:
        """Have all of these on the device at once, for which there is room."""
        for cache, _ in wanted:  # first, or one of them might make room for another
            self._caches[id(cache)] = self._caches.pop(id(cache))
        for cache, stop in wanted:
            self.use(cache, stop)

    def use(self, cache: Movable, stop: int) -> None:
        """Have it on the device, with room to write positions below `stop`."""
        key = id(cache)
        self._caches[key] = self._caches.pop(key)
        size = cache.bytes_for(cache.capacity_for(stop))
        here = 0 if key in self._away else self._counted[key]
        self._make_room(key, size - here)
        if key in self._away:
            cache.come_back()
            self._away.remove(key)
            self._moved(self._counted[key])
        self._resident_bytes += size - here
        self._counted[key] = size

    def _make_room(self, key: int, more: int) -> None:
        """Send others than this one away, until the device has room for so many bytes more."""
        while self._resident_bytes + more > self._budget.device_bytes:
            other = next(
                (one for one in self._caches if one != key and one not in self._away), None
            )
            if other is None:
                raise LocalError(f"{more} bytes of a session are more than the device's budget")
            self._send_away(other)

    def _send_away(self, key: int) -> None:
        """From the first byte on it counts as away: should the host have no room for the rest, its
        next step still brings all of it together."""
        self._away.add(key)
        self._resident_bytes -= self._counted[key]
        self._caches[key].go(_HOST)
        self._moved(self._counted[key])
