"""An adapter on a device, for the torch block: what is added to each of a block's products."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .adapter import SITES, Adapter
from .layout import layout_of
from .rope import interleave
from .spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Addend:
    """What is added to one product, in the stage's dtype."""

    down: Tensor  # (inputs, rank)
    up: Tensor  # (rank, outputs)

    def onto(self, y: Tensor, x: Tensor) -> Tensor:
        """y, a product with the rows of x, and what is added to it; y is changed."""
        return y.addmm_(torch.mm(x, self.down), self.up)


@dataclass(frozen=True, slots=True)
class Addends:
    """Of one block; None: nothing is added there."""

    qkv: Addend | None = None
    out: Addend | None = None
    gate_up: Addend | None = None
    down: Addend | None = None


NOTHING = Addends()


def plus(y: Tensor, x: Tensor, addend: Addend | None) -> Tensor:
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
    ) -> None:
        self.name = adapter.name
        self.bytes = 0
        self._start = start
        self._blocks = [
            self._block(spec, adapter, index, dtype, device) for index in range(start, stop)
        ]

    def of(self, block: int) -> Addends:
        """What is added in this block."""
        return self._blocks[block - self._start]

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
        found: dict[str, Addend] = {}
        for site in SITES:
            joined = adapter.joined(index, site, rows)
            if joined is not None:
                ups = _turned(spec, joined.ups) if site == "qkv" else joined.ups
                down = joined.down.t().to(device, dtype, copy=True).contiguous()
                up = torch.cat(list(ups)).t().to(device, dtype).contiguous()
                found[site] = Addend(down, up)
                self.bytes += down.nbytes + up.nbytes
        return Addends(**found)


def _turned(spec: ModelSpec, ups: Sequence[Tensor]) -> list[Tensor]:
    """Rows of queries and keys in the order in which the block has them (block.py)."""
    q, k, v = ups
    return [*(interleave(one, spec.head_dim, spec.rotary_dim) for one in (q, k)), v]
