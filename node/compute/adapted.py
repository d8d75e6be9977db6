"""An adapter on a device, for the torch block: what is added to each of a block's products."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .adapter import SITES, Adapter
from .layout import layout_of
from .rope import interleave
from .spec import ModelSpec
from .tiles import Tiles, filled


class Adds(Protocol):
    """What is added to a product."""

    def onto(self, y: Tensor, x: Tensor) -> Tensor:
        """y, a product with the rows of x, and what is added to it; y may be changed."""
        ...


@dataclass(frozen=True, slots=True)
class Addend:
    """What is added to one product, in the stage's dtype."""

    down: Tensor  # (inputs, rank)
    up: Tensor  # (rank, outputs)

    def onto(self, y: Tensor, x: Tensor) -> Tensor:
        return y.addmm_(torch.mm(x, self.down), self.up)

    def of(self, x: Tensor) -> Tensor:
        """What is added, by itself."""
        return torch.mm(torch.mm(x, self.down), self.up)


@dataclass(frozen=True, slots=True)
class Worn:
    """Who of a tile's rows wear an adapter, (rows, 1), and in which tiles it is multiplied."""

    adapter: "PlacedAdapter"
    tiles: Tiles
    rows: Tensor


@dataclass(frozen=True, slots=True)
class Several:
    """What is added to the rows of several adapters, each to its own."""

    each: tuple[tuple[Addend, Worn], ...]

    def onto(self, y: Tensor, x: Tensor) -> Tensor:
        for addend, worn in self.each:
            y = torch.where(worn.rows, y + worn.tiles.through(addend.of, x), y)
        return y


@dataclass(frozen=True, slots=True)
class Addends:
    """Of one block; None: nothing is added there."""

    qkv: Adds | None = None
    out: Adds | None = None
    gate_up: Adds | None = None
    down: Adds | None = None


NOTHING = Addends()


def together(worn: Sequence[Worn], block: int) -> Addends:
    """What adapters add in one block to a tile of which each has some rows."""
    found: dict[str, Adds] = {}
    for site in SITES if worn else ():
        of_each = [(getattr(one.adapter.of(block), site), one) for one in worn]
        each = tuple((addend, one) for addend, one in of_each if addend is not None)
        if each:
            found[site] = Several(each)
    return Addends(**found)


def plus(y: Tensor, x: Tensor, addend: Adds | None) -> Tensor:
    """A product with the rows of x, and what an adapter adds; y may be changed."""
    return y if addend is None else addend.onto(y, x)


class PlacedAdapter:
    """An adapter over the blocks start..stop of a stage."""

    def __init__(
        self,
        spec: ModelSpec,
        adapter: Adapter,
        start: int,
        stop: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        rank_step: int = 1,
    ) -> None:
        """rank_step: ranks are filled up with zeros to multiples of it."""
        self.name = adapter.name
        self.bytes = 0
        self.tiles = Tiles(())  # in which it is multiplied beside others, once that was tried
        self._start = start
        self._rank_step = rank_step
        self._blocks = [
            self._block(spec, adapter, index, dtype, device) for index in range(start, stop)
        ]

    def of(self, block: int) -> Addends:
        """What is added in this block."""
        return self._blocks[block - self._start]

    @property
    def shapes(self) -> set[tuple[int, int]]:
        """Of its matrices, (out, in) each."""
        found = set()
        for one in self._blocks:
            for addend in (one.qkv, one.out, one.gate_up, one.down):
                if isinstance(addend, Addend):
                    for matrix in (addend.down, addend.up):
                        found.add((matrix.shape[1], matrix.shape[0]))
        return found

    def _block(
        self,
        spec: ModelSpec,
        adapter: Adapter,
        index: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Addends:
        parts = layout_of(spec, index).matrices
        rows = {name: part.stop - part.start for name, part in parts.items()}
        found: dict[str, Adds] = {}
        for site in SITES:
            joined = adapter.joined(index, site, rows)
            if joined is not None:
                ups = _turned(spec, joined.ups) if site == "qkv" else joined.ups
                rank = -(-len(joined.down) // self._rank_step) * self._rank_step
                down = filled(joined.down, rank).t().to(device, dtype, copy=True).contiguous()
                up = filled(torch.cat(list(ups)).t(), rank).to(device, dtype).contiguous()
                found[site] = Addend(down, up)
                self.bytes += down.nbytes + up.nbytes
        return Addends(**found)


def _turned(spec: ModelSpec, ups: Sequence[Tensor]) -> list[Tensor]:
    """Rows of queries and keys in the order in which the block has them (block.py)."""
    q, k, v = ups
    return [*(interleave(one, spec.head_dim, spec.rotary_dim) for one in (q, k)), v]
