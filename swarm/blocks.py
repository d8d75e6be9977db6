"""Half-open block ranges and their algebra.

A block is one transformer layer; a range `start:stop` holds blocks start, start + 1, ..., stop - 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import UserError


@dataclass(frozen=True, slots=True, order=True)
class BlockRange:
    """Blocks `start` (included) to `stop` (excluded); never empty."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"{self.start}:{self.stop} is not a range of blocks")

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"

    def covers(self, other: BlockRange) -> bool:
        return self.start <= other.start and other.stop <= self.stop

    def overlaps(self, other: BlockRange) -> bool:
        return self.start < other.stop and other.start < self.stop

    def common(self, other: BlockRange) -> int:
        """How many blocks are in both."""
        return max(0, min(self.stop, other.stop) - max(self.start, other.start))


def parse_blocks(text: str, total: int) -> BlockRange:
    """`0:8`, `:8`, `4:` or `:` as a range inside a model of `total` blocks.

    Raises UserError with the model's own range when it is not one.
    """
    start_text, colon, stop_text = text.partition(":")
    try:
        if not colon:
            raise ValueError
        start = int(start_text) if start_text.strip() else 0
        stop = int(stop_text) if stop_text.strip() else total
        blocks = BlockRange(start, stop)
        if stop > total:
            raise ValueError
    except ValueError:
        raise UserError(
            f"--blocks {text} is not a range inside this model: "
            f"give START:STOP within 0:{total}, for example 0:{max(1, total // 2)}"
        ) from None
    return blocks


def uncovered(of: BlockRange, by: Iterable[BlockRange]) -> tuple[tuple[int, int], ...]:
    """The parts of `of` that no range in `by` holds, in order, as (start, stop) pairs."""
    gaps: list[tuple[int, int]] = []
    reached = of.start
    for blocks in sorted(by):
        if blocks.stop <= reached:
            continue
        if blocks.start >= of.stop:
            break
        if blocks.start > reached:
            gaps.append((reached, blocks.start))
        reached = blocks.stop
        if reached >= of.stop:
            break
    if reached < of.stop:
        gaps.append((reached, of.stop))
    return tuple(gaps)


def replicas(of: BlockRange, by: Iterable[BlockRange]) -> tuple[int, ...]:
    """How many ranges in `by` hold each block of `of`."""
    counts = [0] * len(of)
    for blocks in by:
        for block in range(max(blocks.start, of.start), min(blocks.stop, of.stop)):
            counts[block - of.start] += 1
    return tuple(counts)
