"""Which tiles give a row the same bits on this device, tried before any session is served.

A product of a crafted matrix is the sharpest trial: its second half takes away what its first half
adds, so that nothing but the roundings is left, and any other order of sums leaves something else.
Rounded to bf16, ordinary numbers would hide most of it.

    x  ( u,  -u shifted )  ·  w ( a,  a shifted )  =  0, but for the order of the sums
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .product import Form, Product, product
from .quant.race import faults, random_weights
from .tiles import Tiles, aligned
from .weight import NF4_GROUP, Weight

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FEW = 16  # rows: the tile of tokens
MANY = 256  # of prompts
_ROWS = 256
_SCALE = 8.0  # of what cancels: what is left of it is a number in fp16 too


@dataclass(frozen=True, slots=True)
class Agreed:
    """Tiles for tokens and for prompts.

    Where they are the same, a row has the same bits in either; else a row's bits depend on whether
    it came in a step of few rows or of many, and on nothing else.
    """

    few: Tiles
    many: Tiles

    @property
    def whole(self) -> bool:
        return self.few == self.many


def agreed(forms: Iterable[Form], dtype: torch.dtype, device: torch.device) -> Agreed | str:
    """Tiles in which each row of these products has its bits; else why there are none."""
    few, many = set(SIZES), set(SIZES)
    for form in sorted(set(forms), key=str):
        try:
            alike = _alike(form, dtype, device)
        except faults() as error:
            return f"products of {form.rows} x {form.columns} fail ({type(error).__name__})"
        few &= alike(FEW)
        many &= alike(MANY)
    if FEW not in few or MANY not in many:
        return "a row has other bits when others are beside it"
    if MANY in few:
        many = few
    return Agreed(Tiles(tuple(sorted(few))), Tiles(tuple(sorted(many))))


def plain_forms(shapes: Iterable[tuple[int, int]]) -> list[Form]:
    """Of matrices of numbers, (out, in) each."""
    return [Form("none", rows, columns, False) for rows, columns in shapes]


def _alike(form: Form, dtype: torch.dtype, device: torch.device) -> Callable[[int], set[int]]:
    """Gives, for one size of tiles, all that give the same bits; and its own only where a row's
    place and neighbours do not matter."""
    multiply, x = _crafted(form, dtype, device)
    to = torch.randn(
        (_ROWS, form.rows), generator=torch.Generator().manual_seed(3), dtype=torch.float32
    ).to(device, dtype)
    order = torch.randperm(_ROWS, generator=torch.Generator().manual_seed(4)).to(device)
    found = {size: _tiled(multiply, to, x, size) for size in SIZES}
    moved = {
        size: torch.equal(_tiled(multiply, to[order], x[order], size), found[size][:, order])
        for size in (FEW, MANY)
    }

    def alike(size: int) -> set[int]:
        if not moved[size]:
            return set()
        return {other for other in SIZES if torch.equal(found[other], found[size])}

    return alike


def _tiled(multiply: Product, to: Tensor, x: Tensor, size: int) -> Tensor:
    """The product, and the product added to something: (2, rows, out)."""
    parts = [
        torch.stack([multiply(rows), multiply.add(onto, rows)])
        for rows, onto in zip(_split(x, size), _split(to, size), strict=True)
    ]
    return torch.cat(parts, 1)


def _split(x: Tensor, size: int) -> list[Tensor]:
    return [aligned(part) for part in torch.split(x, size)]


def _crafted(form: Form, dtype: torch.dtype, device: torch.device) -> tuple[Product, Tensor]:
    dice = torch.Generator().manual_seed(form.rows * 31 + form.columns)
    x = torch.randn((_ROWS, form.columns), generator=dice)
    step = NF4_GROUP if form.format == "nf4" else 1  # columns that move together
    half = form.columns // (2 * step) * step
    if form.format == "none":
        numbers = torch.empty((form.rows, form.columns), dtype=dtype).normal_(generator=dice)
        weight = Weight.plain(_mirrored(numbers, half, step))
    else:
        drawn = random_weights(form.format, [(form.rows, form.columns)], torch.device("cpu"), 1)
        weight = _mirrored_codes(drawn[0], half)
    few = _ROWS // 2  # the others stay ordinary
    u = x[:few, :half] * _SCALE
    x[:few] = 0
    x[:few, :half], x[:few, half : 2 * half] = u, -torch.roll(u, step, 1)
    bias = torch.randn(form.rows, generator=dice).to(device, dtype) if form.biased else None
    return product([weight], bias, dtype=dtype, device=device), x.to(device, dtype)


def _mirrored(numbers: Tensor, half: int, step: int) -> Tensor:
    """In place."""
    numbers[:, half : 2 * half] = torch.roll(numbers[:, :half], step, 1)
    return numbers


def _mirrored_codes(weight: Weight, half: int) -> Weight:
    assert weight.scales is not None
    if weight.format == "int8":
        codes, scales = _mirrored(weight.codes, half, 1), weight.scales
    else:
        codes = _mirrored(weight.codes, half // 2, NF4_GROUP // 2)
        scales = _mirrored(weight.scales, half // NF4_GROUP, 1)
    return Weight(weight.format, weight.rows, weight.columns, codes, scales)


def disagreement(run: Callable[[Tensor, Sequence[int], bool], Tensor], hidden: Tensor) -> str:
    """What is wrong with what a whole block gives; empty when nothing is.

    run: the rows of one session through it, in steps of these sizes over and over; True: among
    others.
    """
    whole = run(hidden, (len(hidden),), False)
    if not bool(whole.isfinite().all()):
        return "its numbers are not finite"
    for sizes, among in (((1, 7, 110), False), ((1, 2, 90), True)):
        if not torch.equal(run(hidden, sizes, among), whole):
            return "a block gives a row other bits when it is cut or shared otherwise"
    return ""
