"""What a forward left for its backward, while nobody else needs its room.

    forward ──▶ kept ──▶ taken once, by the backward of the same batch
                  └ over the limit: the oldest goes

It is a hint and no promise. Backward comes with all that it needs, so whoever finds nothing here,
at this peer or at another, computes the inputs anew, to the same bits. A third of a step's work is
saved where something is found.

Source: T. Chen et al., 2016: memory for computing twice; here it is spare memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Kept(Protocol):
    @property
    def bytes(self) -> int: ...


class Recall:
    """One for a stage. limit_bytes: what all of it may take now."""

    def __init__(self, limit_bytes: Callable[[], int]) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[Hashable, Kept] = OrderedDict()  # the oldest first
        self._kept_bytes = 0
        self._promised_bytes = 0

    @property
    def bytes(self) -> int:
        """Taken, or promised to what is computed now."""
        return self._kept_bytes + self._promised_bytes

    @contextmanager
    def promised(self, size: int) -> Iterator[bool]:
        """Whether so much may be kept. It is room for what is made meanwhile."""
        may = size > 0 and self._promised_bytes + size <= self._limit_bytes()
        size = size if may else 0
        self._promised_bytes += size
        self.make_room()
        try:
            yield may
        finally:
            self._promised_bytes -= size

    def keep(self, key: Hashable, kept: Kept) -> None:
        self.take(key)  # the same batch came twice
        self._kept[key] = kept
        self._kept_bytes += kept.bytes
        self.make_room()

    def take(self, key: Hashable) -> Kept | None:
        """What is kept under this key, and is from now on no more."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._kept_bytes -= kept.bytes
        return kept

    def make_room(self) -> None:
        """The oldest go, as far as others need their room."""
        limit_bytes = self._limit_bytes()
        while self._kept and self.bytes > limit_bytes:
            _, kept = self._kept.popitem(last=False)
            self._kept_bytes -= kept.bytes
