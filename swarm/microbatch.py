"""A part of a batch on its way over the swarm and back, as bytes: what it carries, what it brings.

Nobody on the way remembers it, so whoever sends it keeps the hidden states at every boundary that
it came to: with them any piece of the way may be gone once more, by any peer that serves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .adapter import Bundle
from .blocks import BlockRange

FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Hidden states of `batch` sequences of `tokens` positions, and what they go through with.

    deep: deep prompts of so many positions for each block of the model, fp32, one block after
    another. worn: the adapter, whole. trained: how many numbers of it each block has.
    """

    hidden: memoryview
    batch: int
    tokens: int
    width: int
    dtype: str
    prompts: int = 0
    deep: memoryview = field(default_factory=lambda: memoryview(b""))
    worn: Bundle | None = None
    trained: Mapping[int, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.batch * self.tokens

    def deep_of(self, blocks: BlockRange) -> memoryview:
        """The deep prompts for these blocks."""
        each = self.prompts * self.width * FP32_BYTES
        return self.deep[blocks.start * each : blocks.stop * each]

    def sought(self, blocks: BlockRange) -> int:
        """How many gradients of deep prompts and adapter come back from these blocks."""
        prompts = self.prompts * self.width * len(blocks)
        return prompts + sum(self.trained.get(one, 0) for one in range(blocks.start, blocks.stop))


@dataclass(frozen=True, slots=True)
class Brought:
    """What came back: the gradient of its hidden states, and for each piece of the way, those of
    the deep prompts and of the adapter there, fp32, in the order in which they are sent (wire.py).
    """

    grad: memoryview
    pieces: tuple[tuple[BlockRange, memoryview], ...]
