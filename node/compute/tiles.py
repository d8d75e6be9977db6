"""Products in tiles of a few fixed numbers of rows, so that a row's bits are its own.

How a library sums up a product depends on its shape: a row alone and a row among others differ in
their last bits. In tiles of one number of rows, the last one filled up with zeros, every row is
summed up in the same way whoever is beside it. Tiles of several sizes do for one, where a row has
the same bits in each of them; whether it has was tried on the device (tile_check.py).

    sizes 16, 64, 256     300 rows ──▶ 256 | 16 | 16 | 12 + 4 of zeros     50 rows ──▶ 50 + 14

Source: H. He and Thinking Machines Lab, Defeating Nondeterminism in LLM Inference, 2025.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNMENT_BYTES = 64  # torch's own allocations; a kernel may take another path on others
_FILLED_AT_ONCE = 16  # tiles of no more rows are read as fast half empty as full
_EMPTY_MAX = 4  # a larger one is taken when no more than so many parts of it stay empty


@dataclass(frozen=True, slots=True)
class Tiles:
    """sizes: rows of a tile, the smallest first."""

    sizes: tuple[int, ...]

    def cuts(self, rows: int) -> list[int]:
        """The tiles that hold so many rows, in their order; only the last has room left."""
        found = []
        while rows > 0:
            size = next((one for one in self.sizes if one >= rows), self.sizes[-1])
            if size > _FILLED_AT_ONCE and (size - rows) * _EMPTY_MAX > size:
                size = max((one for one in self.sizes if one <= rows), default=size)
            found.append(size)
            rows -= size
        return found

    def through(self, multiply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`multiply` of the rows of x, tile by tile."""
        cuts = self.cuts(len(x))
        parts = [multiply(part) for part in split(filled(x, sum(cuts)), cuts)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[: len(x)]


def filled(x: Tensor, rows: int) -> Tensor:
    """x with rows of zeros behind it."""
    if len(x) == rows:
        return x
    whole = x.new_zeros((rows, *x.shape[1:]))
    whole[: len(x)] = x
    return whole


def split(x: Tensor, cuts: list[int]) -> list[Tensor]:
    """The tiles of x, each as aligned as memory of its own."""
    return [aligned(part) for part in torch.split(x, cuts)]


def aligned(x: Tensor) -> Tensor:
    """x, or a copy, as a kernel finds it at its best: in one piece that begins where it should."""
    if x.is_contiguous() and not x.data_ptr() % ALIGNMENT_BYTES:
        return x
    return x.clone(memory_format=torch.contiguous_format)
