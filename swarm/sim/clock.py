"""What happens when, on virtual time: a heap."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Clock:
    """Events of one moment come in the order in which they were set."""

    def __init__(self, now: float) -> None:
        self.now = now
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when: float, what: Callable[..., None], *about: Any) -> None:
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, what, about))

    def run(self, until: float) -> None:
        while self._heap and self._heap[0][0] <= until:
            self.now, _, what, about = heapq.heappop(self._heap)
            what(*about)
        self.now = until
