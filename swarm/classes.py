"""The classes of numbers that one session's blocks were computed in.

A session that stays in the class that each block began in has, bit for bit, the words of an
undisturbed one (algorithms.md 6.5, G2).
"""

from __future__ import annotations

from .blocks import BlockRange
from .draft import rows_alike


class Classes:
    """Of a model of so many blocks."""

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._began: dict[int, str] = {}
        self._seen: set[str] = set()
        self.exact = True

    def note(self, blocks: BlockRange, numerics: str) -> None:
        """These blocks are computed in this class from now on."""
        self._seen.add(numerics)
        for block in range(blocks.start, blocks.stop):
            if self._began.setdefault(block, numerics) != numerics:
                self.exact = False

    def of(self, block: int) -> str:
        """In which it began; empty while nobody has computed it."""
        return self._began.get(block, "")

    @property
    def known(self) -> bool:
        """Whether it is of every block."""
        return len(self._began) == self._blocks

    @property
    def rows_alike(self) -> int:
        """Up to how many rows a step may have for each row to have the bits of a step of its own,
        wherever it was or will be computed; 1 while that is not known of all blocks."""
        if not self.known:
            return 1
        return min(rows_alike(one) for one in self._seen)
