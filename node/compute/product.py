"""A product with a matrix of weights, whatever its format: what the torch block is made of.

Rows are joined here (q, k and v in one product, gate and up in another) and moved to the device.
Plain numbers are laid out for torch's own product; codes stay as they are stored, for whatever
reads them on the device (quant/product.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .quant.product import linear
from .quant.race import settled
from .weight import Format, Weight, join

_TILE = 64  # rows turned at once: a tile of it and its source fit the first cache


@dataclass(frozen=True, slots=True)
class Form:
    """Of a product's matrix: (rows, columns) are (out, in)."""

    format: Format
    rows: int
    columns: int
    biased: bool


class Product(Protocol):
    """x · wᵀ + bias, of rows (tokens, in) to rows (tokens, out)."""

    @property
    def form(self) -> "Form":
        """What its kernel is chosen by."""
        ...

    def __call__(self, x: Tensor) -> Tensor: ...

    def add(self, to: Tensor, x: Tensor) -> Tensor:
        """`to` plus the product, as a new tensor."""
        ...


class Plain:
    """Weights as numbers of the stage's dtype."""

    def __init__(
        self, parts: Sequence[Tensor], bias: Tensor | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._weight = _transposed(parts, dtype).to(device)
        self._bias = bias

    @property
    def form(self) -> Form:
        columns, rows = self._weight.shape
        return Form("none", rows, columns, self._bias is not None)

    def __call__(self, x: Tensor) -> Tensor:
        if self._bias is None:
            return torch.mm(x, self._weight)
        return torch.addmm(self._bias, x, self._weight)

    def add(self, to: Tensor, x: Tensor) -> Tensor:
        whole = torch.addmm(to, x, self._weight)
        if self._bias is not None:
            whole += self._bias
        return whole


class Coded:
    """Weights in codes. Few rows go through what won on this device (quant/race.py)."""

    def __init__(self, weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._weight = weight
        self._bias = bias
        self._few = settled(weight.format, dtype, weight.codes.device)

    @property
    def form(self) -> Form:
        weight = self._weight
        return Form(weight.format, weight.rows, weight.columns, self._bias is not None)

    def __call__(self, x: Tensor) -> Tensor:
        if self._few.multiply is not None and 1 <= len(x) <= self._few.rows_max:
            return self._few.multiply(x, self._weight, self._bias)
        return linear(x, self._weight, self._bias)

    def add(self, to: Tensor, x: Tensor) -> Tensor:
        return to + self(x)


def product(
    parts: Sequence[Weight], bias: Tensor | None, *, dtype: torch.dtype, device: torch.device
) -> Product:
    """The product with these matrices, one below the other; they are copied, never kept."""
    if any(one.format != parts[0].format for one in parts):  # one of them could not be coded
        parts = [Weight.plain(one.dequantize()) for one in parts]
    if parts[0].format == "none":
        return Plain([one.codes for one in parts], bias, dtype, device)
    whole = join(parts)
    scales = None if whole.scales is None else whole.scales.to(device)
    coded = Weight(whole.format, whole.rows, whole.columns, whole.codes.to(device), scales)
    return Coded(coded, bias, dtype)


def _transposed(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Weights (out, in) one below the other, as (in, out): what `mm` reads fastest at batch 1.

    Tile by tile: 1.7 times as fast as joining and turning the whole, and without its memory.
    """
    whole = torch.empty((parts[0].shape[1], sum(map(len, parts))), dtype=dtype)
    at = 0
    for part in parts:
        for rows in torch.split(part, _TILE):
            whole[:, at : at + len(rows)] = rows.to(dtype).t().contiguous()
            at += len(rows)
    return whole
