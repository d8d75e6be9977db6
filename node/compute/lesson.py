"""A request of who trains: the shape of its batch, the adapter it wears, and what comes of it.

What a forward keeps for its backward are its blocks' inputs, and outputs with autograd's graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from ...swarm.blocks import BlockRange
from ...swarm.microbatch import FP32_BYTES
from ...swarm.wire import Train
from .frozen import Leaf
from .tensor import payload_bytes


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a batch. prompts: positions of deep prompts, 0 for none. dtype: on the wire."""

    batch: int
    tokens: int
    prompts: int
    dtype: str

    @property
    def rows(self) -> int:
        return self.batch * self.tokens


@dataclass(frozen=True, slots=True)
class Dressed:
    """An adapter that gradients are wanted of: for each block its modules, in order."""

    blocks: Mapping[int, Mapping[str, Leaf]]
    bytes: int

    def of(self, blocks: BlockRange) -> list[tuple[int, str, Leaf]]:
        """In the order in which gradients are told: by block, then by module."""
        return [
            (index, module, self.blocks[index][module])
            for index in sorted(self.blocks)
            if blocks.start <= index < blocks.stop
            for module in sorted(self.blocks[index])
        ]

    def wanted(self, blocks: BlockRange) -> Dressed:
        """The same for these blocks, as autograd's own leaves."""
        found: dict[int, dict[str, Leaf]] = {}
        for index, module, one in self.of(blocks):
            leaf = Leaf(wanted(one.down), wanted(one.up), one.scale)
            found.setdefault(index, {})[module] = leaf
        return Dressed(found, self.bytes)


Passed = list[tuple[Tensor, Tensor | None]]  # of blocks: their input, and output with its graph


@dataclass(frozen=True, slots=True)
class Kept:
    """What a forward left. slices: in order. trained: the adapter's leaves, in its graphs."""

    slices: list[Passed]
    trained: Dressed | None
    bytes: int


class Lesson:
    """One request on its way. `run` goes slice by slice; then `answer` is there.

    name: the same for a forward and its backward. kept: of a forward, once it is through, where it
    was to keep something; of a backward, what it need not compute anew.
    """

    def __init__(self, run: Callable[[Lesson], Iterator[None]], name: bytes = b"") -> None:
        self.answer: list[memoryview] = []
        self.spent_s = 0.0
        self.name = name
        self.kept: Kept | None = None
        self._run = run

    def slices(self) -> Iterator[None]:
        """Each `next` is one slice. Raises UserError for numbers that grow beyond their format."""
        began_s = time.perf_counter()
        for _ in self._run(self):
            self.spent_s += time.perf_counter() - began_s
            yield
            began_s = time.perf_counter()
        self.spent_s += time.perf_counter() - began_s


def shape_of(asked: Train) -> Shape:
    return Shape(asked.batch, asked.tokens, asked.prompts, asked.dtype)


def request_bytes(shape: Shape, blocks: BlockRange, width: int, *, backward: bool) -> int:
    """What a request's payload has. Raises RemoteError for an unknown dtype."""
    rows = payload_bytes(shape.rows, width, shape.dtype)
    return rows * (2 if backward else 1) + FP32_BYTES * shape.prompts * len(blocks) * width


def wanted(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()
