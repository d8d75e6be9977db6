"""Which kernel multiplies few rows with codes on a GPU: ours or bitsandbytes', tried on the device.

Each entrant must first show that it computes the format (within 1e-3 of the dequantized matrix in
fp32) and that a row's bits do not depend on the rows beside it. Of those that do, the fastest over
batches of 1, 4 and 16 wins; nobody is believed to be fast. One that cannot be compiled here is out.

    stage loads ──▶ settle(format, shapes) ──▶ Chosen ──▶ product.Coded, the numerics class, the log

What was settled holds for the process: a race between equals must not give two stages of one node
two classes.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..rating import median_s
from ..weight import NF4_GROUP, Format, Weight
from .product import bitsandbytes_linear

BATCHES = (1, 4, 16)
ERROR_MAX = 1e-3  # relative, beside the rounding of what comes out
WEIGHT_BYTES = 256 << 20  # read in a turn: several times what a GPU's cache holds
_SHARE = 0.125  # of the free memory at most, for those weights
_ALONE = (1, 2, 3, 8)  # so many of the rows, without the others
_ROWS = 16

Multiply = Callable[[Tensor, Weight, Tensor | None], Tensor]


@dataclass(frozen=True, slots=True)
class Entrant:
    """name: as a numerics class says it; "": of bitsandbytes, which its version names."""

    name: str
    multiply: Multiply

    @property
    def called(self) -> str:
        return self.name or "bitsandbytes"


@dataclass(frozen=True, slots=True)
class Chosen:
    """multiply: of `rows_max` rows at most; None: bitsandbytes', of any. told: for the log."""

    name: str = ""
    multiply: Multiply | None = None
    rows_max: int = 0
    told: str = ""


_settled: dict[tuple[torch.device, torch.dtype, Format], Chosen] = {}


def settle(
    format: Format, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device
) -> Chosen:
    """Race once for this device, dtype and format, on matrices of these shapes (n, k)."""
    if device.type != "cuda" or format == "none":
        return Chosen()
    key = (device, dtype, format)
    if key not in _settled:
        ours, why = entrants(format)
        if not ours:
            return _settled.setdefault(key, Chosen(told=f"{format} by bitsandbytes: {why}"))
        free, _ = torch.cuda.mem_get_info(device)
        weights = random_weights(format, shapes, device, min(WEIGHT_BYTES, int(free * _SHARE)))
        chosen = race(Entrant("", bitsandbytes_linear), ours, weights, dtype)
        _settled.setdefault(key, chosen)
    return _settled[key]


def settled(format: Format, dtype: torch.dtype, device: torch.device) -> Chosen:
    """What a race has given; without one, bitsandbytes."""
    return _settled.get((device, dtype, format), Chosen())


def entrants(format: Format) -> tuple[list[Entrant], str]:
    """Ours; or none, and why."""
    if importlib.util.find_spec("triton") is None:
        return [], "triton is not installed"
    kernels = importlib.import_module(".triton_kernels", __package__)
    return [
        Entrant(tiling.name, partial(kernels.multiply, tiling=tiling))
        for tiling in kernels.TILINGS[format]
    ], ""


def race(
    home: Entrant,
    others: Sequence[Entrant],
    weights: Sequence[Weight],
    dtype: torch.dtype,
    seconds: Callable[[Callable[[], object]], float] = median_s,
) -> Chosen:
    """The fastest of those that compute as they should; `home` where none is faster.

    weights: of one format, on one device. seconds: of one run, the median of some.
    """
    told = []
    best, best_s = home, sum(_times(home, weights, dtype, seconds))
    home_s = best_s
    for one in others:
        try:
            fault = fault_of(one, weights, dtype)
            spent_s = 0.0 if fault else sum(_times(one, weights, dtype, seconds))
        except faults() as error:
            fault = f"cannot run here ({type(error).__name__})"
        if fault:
            told.append(f"{one.called} {fault}")
            continue
        told.append(f"{one.called} {spent_s * 1e3:.2f} ms")
        if spent_s < best_s:
            best, best_s = one, spent_s
    format = weights[0].format
    said = f"{format} by {best.called} ({home.called} {home_s * 1e3:.2f} ms, {', '.join(told)})"
    if best is home:
        return Chosen(told=said)
    return Chosen(best.name, best.multiply, _ROWS, said)


def fault_of(one: Entrant, weights: Sequence[Weight], dtype: torch.dtype) -> str:
    """What is wrong with what it computes; empty when nothing is."""
    for weight in {(each.rows, each.columns): each for each in weights}.values():
        x = _rows(weight, dtype)
        exact = (x.float() @ weight.dequantize().t()).to(dtype).float()
        whole = one.multiply(x, weight, None)
        error = float((whole.float() - exact).norm() / exact.norm())
        if not error <= ERROR_MAX:  # no number either
            return f"is {error:.1e} off"
        for rows in _ALONE:
            if not torch.equal(one.multiply(x[:rows], weight, None), whole[:rows]):
                return "gives a row other bits when others are beside it"
    return ""


def random_weights(
    format: Format, shapes: Sequence[tuple[int, int]], device: torch.device, size: int
) -> list[Weight]:
    """Codes of these shapes (n, k), again and again up to `size` bytes; of each at least one."""
    dice = torch.Generator().manual_seed(1)
    found: list[Weight] = []
    while not found or sum(one.nbytes for one in found) < size:
        for rows, columns in sorted(set(shapes)):
            if format == "int8":
                codes = torch.randint(-127, 128, (rows, columns), generator=dice, dtype=torch.int8)
                scales = torch.rand(rows, generator=dice) + 0.5
            else:
                shape = (rows, columns // 2)
                codes = torch.randint(0, 256, shape, generator=dice, dtype=torch.uint8)
                scales = torch.rand((rows, columns // NF4_GROUP), generator=dice) + 0.5
            found.append(Weight(format, rows, columns, codes.to(device), scales.to(device)))
    return found


def faults() -> tuple[type[BaseException], ...]:
    """What a kernel raises that this device, or its compiler, does not take."""
    known: tuple[type[BaseException], ...] = (
        ImportError,
        OSError,
        RuntimeError,
        ValueError,
        subprocess.SubprocessError,  # of the C compiler that Triton calls
    )
    if importlib.util.find_spec("triton") is not None:
        known += (importlib.import_module("triton").TritonError,)
    return known


def _times(
    one: Entrant,
    weights: Sequence[Weight],
    dtype: torch.dtype,
    seconds: Callable[[Callable[[], object]], float],
) -> list[float]:
    """Seconds through all of the weights, for each batch."""
    device = weights[0].codes.device
    inputs = {each.columns: _rows(each, dtype) for each in weights}

    def run(rows: int) -> None:
        for weight in weights:
            one.multiply(inputs[weight.columns][:rows], weight, None)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    return [seconds(partial(run, rows)) for rows in BATCHES]


def _rows(weight: Weight, dtype: torch.dtype) -> Tensor:
    dice = torch.Generator().manual_seed(weight.columns)
    x = torch.randn((_ROWS, weight.columns), generator=dice)
    return x.to(weight.codes.device, dtype)
