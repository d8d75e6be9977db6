"""The timers of one machine (swarm/machine.py): set and stopped by its effects, fired in order.

A timer is known by its key; setting one that is set moves it. One that is stopped, or moved, by
what an earlier one did is not fired any more, though its time had come too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import trio


class Timers:
    """`fire` is called with the key of each timer whose time has come, by trio's clock."""

    def __init__(self, fire: Callable[[Hashable], None]) -> None:
        self._fire = fire
        self._due_s: dict[Hashable, float] = {}
        self._next_s = math.inf
        self._earlier = trio.Event()

    def set(self, key: Hashable, at_s: float) -> None:
        self._due_s[key] = at_s
        if at_s < self._next_s:
            self._earlier.set()

    def stop(self, key: Hashable) -> None:
        self._due_s.pop(key, None)

    async def run(self) -> None:
        while True:
            self._earlier = trio.Event()
            self._next_s = min(self._due_s.values(), default=math.inf)
            with trio.move_on_at(self._next_s):
                await self._earlier.wait()
            now = trio.current_time()
            while self._due_s:
                key = min(self._due_s, key=self._due_s.__getitem__)
                if self._due_s[key] > now:
                    break
                del self._due_s[key]
                self._fire(key)
