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

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...errors import LocalError
from .cache import Cache

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


class Residents:
    """The sessions of one stage, the longest unused first. On the worker's thread alone."""

    def __init__(self, budget: Budget, moved: Callable[[int], None] = lambda size: None) -> None:
        """moved: told the bytes of each move, for the count of them."""
        self._budget = budget
        self._moved = moved
        self._caches: dict[int, Cache] = {}  # by id; the latest used last
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

    def open(self, cache: Cache) -> None:
        """A new session, which was promised no more than one may have."""
        if cache.bytes_for(cache.max_tokens) > self._budget.session_bytes_max:
            raise LocalError(f"a session of {cache.max_tokens} positions was promised too much")
        key = id(cache)
        self._caches[key] = cache
        self._counted[key] = 0
        self._hold(key, cache.bytes_for(cache.capacity))

    def close(self, cache: Cache) -> None:
        """It is of no more use."""
        key = id(cache)
        del self._caches[key]
        size = self._counted.pop(key)
        if key in self._away:
            self._away.remove(key)
        else:
            self._resident_bytes -= size

    def use(self, cache: Cache, stop: int) -> None:
        """Have it on the device, with room to write positions below `stop`."""
        key = id(cache)
        self._caches[key] = self._caches.pop(key)
        self._hold(key, cache.bytes_for(cache.capacity_for(stop)))

    def _hold(self, key: int, size: int) -> None:
        """Room on the device for a session that will have `size` bytes; then it is there."""
        here = 0 if key in self._away else self._counted[key]
        for other, cache in list(self._caches.items()):
            if self._resident_bytes - here + size <= self._budget.device_bytes:
                break
            if other != key and other not in self._away:
                self._send_away(other, cache)
        if self._resident_bytes - here + size > self._budget.device_bytes:
            raise LocalError(f"{size} bytes of a session are more than the device's budget")
        if key in self._away:
            self._away.remove(key)
            self._caches[key].come_back()
            self._moved(self._counted[key])
        self._resident_bytes += size - here
        self._counted[key] = size

    def _send_away(self, key: int, cache: Cache) -> None:
        cache.go(_HOST)
        self._away.add(key)
        self._resident_bytes -= self._counted[key]
        self._moved(self._counted[key])
