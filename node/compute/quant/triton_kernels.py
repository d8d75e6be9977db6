"""Products of few rows with int8 and nf4 weights on a GPU, in Triton: codes are read as stored.

A program computes some outputs for all rows. The rows stand as the columns of one tile that is as
wide whatever their number, and an output is summed up over the inputs in one order that depends on
the weight alone: what comes out for a row does not depend on who else is there.

    int8   acc += codes · x           y = acc · (scale / 127)        codes are exact in 16 bits
    nf4    acc += (NF4[codes] · x) · scale, group by group of 64 columns

In bf16 an entry of NF4 is the sum of two numbers (one alone is 1.4e-3 off), in fp16 one (2e-4).

Source: P. Tillet et al., Triton, 2019; the formats are weight.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

from ..weight import INT8_STEP, NF4, NF4_GROUP, Format, Weight

ROWS_MAX = 16  # of x: more are a prefill
VERSION = "t1"  # counts up whenever some kernel's bits change


@dataclass(frozen=True, slots=True)
class Tiling:
    """outputs: of one program; inputs: of one turn of its loop; the rest is Triton's."""

    outputs: int
    inputs: int
    warps: int
    stages: int

    @property
    def name(self) -> str:
        return f"{VERSION}-{self.outputs}x{self.inputs}w{self.warps}s{self.stages}"


TILINGS: dict[Format, tuple[Tiling, ...]] = {  # guesses: which is best shows on the device
    "int8": (Tiling(16, 256, 4, 4), Tiling(32, 128, 4, 5), Tiling(64, 128, 4, 4)),
    "nf4": (Tiling(16, 64, 1, 6), Tiling(32, 64, 2, 6), Tiling(64, 64, 4, 5)),
}


def multiply(x: Tensor, weight: Weight, bias: Tensor | None, tiling: Tiling) -> Tensor:
    """x (rows, k) times the weight's rows, plus the bias: (rows, n) in x's dtype.

    rows: 1 to ROWS_MAX. x: bf16, fp16 or fp32. The weight is int8 or nf4, on the same device.
    """
    x = x.contiguous()
    rows, outputs = len(x), weight.rows
    assert 1 <= rows <= ROWS_MAX and weight.scales is not None
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    grid = (-(-outputs // tiling.outputs),)
    wide: dict[str, Any] = {
        "WIDTH": ROWS_MAX,
        "OUTPUTS": tiling.outputs,
        "BIASED": bias is not None,
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",  # of fp32 alone
        "num_warps": tiling.warps,
        "num_stages": tiling.stages,
        "enable_fp_fusion": True,  # said, since what is left out differs by version
    }
    facts = (out, x, weight.codes, weight.scales, bias if bias is not None else x)
    if weight.format == "int8":
        _int8[grid](*facts, rows, outputs, weight.columns, INPUTS=tiling.inputs, STEP=INT8_STEP,
                    **wide)  # fmt: skip
    else:
        _nf4[grid](*facts, _table(x), rows, outputs, weight.columns, GROUP=NF4_GROUP,
                   TERMS=2 if x.dtype == torch.bfloat16 else 1, **wide)  # fmt: skip
    return out


_tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def _table(x: Tensor) -> Tensor:
    """NF4 in x's dtype, and then what each entry lacks."""
    key = (x.device, x.dtype)
    if key not in _tables:
        exact = torch.tensor(NF4)
        near = exact.to(x.dtype)
        _tables[key] = torch.cat([near, (exact - near.float()).to(x.dtype)]).to(x.device)
    return _tables[key]


def _int8_source(
    out: tl.tensor, x: tl.tensor, codes: tl.tensor, scales: tl.tensor, bias: tl.tensor,
    rows: tl.tensor, outputs: tl.tensor, inputs: tl.tensor,
    WIDTH: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, STEP: tl.constexpr,
    BIASED: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    mine = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, WIDTH)
    column = tl.arange(0, INPUTS)
    here, there = mine < outputs, row < rows
    first_code = codes + mine.to(tl.int64)[:, None] * inputs + column[None, :]
    first_x = x + row[None, :] * inputs + column[:, None]
    acc = tl.zeros((OUTPUTS, WIDTH), tl.float32)
    for at in range(0, inputs, INPUTS):
        inside = at + column < inputs
        w = tl.load(first_code + at, mask=here[:, None] & inside[None, :], other=0)
        v = tl.load(first_x + at, mask=there[None, :] & inside[:, None], other=0.0)
        acc = tl.dot(w.to(v.dtype), v, acc, input_precision=PRECISION)
    acc *= (tl.load(scales + mine, mask=here, other=0.0) * STEP)[:, None]
    if BIASED:
        acc += tl.load(bias + mine, mask=here, other=0.0).to(tl.float32)[:, None]
    to = out + row[None, :] * outputs + mine[:, None]
    tl.store(to, acc.to(out.dtype.element_ty), mask=here[:, None] & there[None, :])


def _nf4_source(
    out: tl.tensor, x: tl.tensor, codes: tl.tensor, scales: tl.tensor, bias: tl.tensor,
    table: tl.tensor, rows: tl.tensor, outputs: tl.tensor, inputs: tl.tensor,
    WIDTH: tl.constexpr, OUTPUTS: tl.constexpr, GROUP: tl.constexpr, TERMS: tl.constexpr,
    BIASED: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    mine = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, WIDTH)
    column = tl.arange(0, GROUP)
    pair = tl.arange(0, GROUP // 2)  # a byte of two neighbouring columns
    here, there = mine < outputs, row < rows
    first_code = codes + mine.to(tl.int64)[:, None] * (inputs // 2) + pair[None, :]
    first_scale = scales + mine.to(tl.int64) * (inputs // GROUP)
    first_x = x + row[:, None] * inputs + column[None, :]
    acc = tl.zeros((OUTPUTS, WIDTH), tl.float32)
    for group in range(0, inputs // GROUP):
        both = tl.load(first_code + group * (GROUP // 2), mask=here[:, None], other=0)
        v = tl.load(first_x + group * GROUP, mask=there[:, None], other=0.0)
        scale = tl.load(first_scale + group, mask=here, other=0.0)
        even, odd = tl.split(tl.reshape(v, (WIDTH, GROUP // 2, 2)))
        even, odd = tl.trans(even), tl.trans(odd)
        high, low = (both >> 4).to(tl.int32), (both & 15).to(tl.int32)
        sums = tl.dot(tl.load(table + high), even, input_precision=PRECISION)
        sums = tl.dot(tl.load(table + low), odd, sums, input_precision=PRECISION)
        if TERMS == 2:
            sums = tl.dot(tl.load(table + 16 + high), even, sums, input_precision=PRECISION)
            sums = tl.dot(tl.load(table + 16 + low), odd, sums, input_precision=PRECISION)
        acc += sums * scale[:, None]
    if BIASED:
        acc += tl.load(bias + mine, mask=here, other=0.0).to(tl.float32)[:, None]
    to = out + row[None, :] * outputs + mine[:, None]
    tl.store(to, acc.to(out.dtype.element_ty), mask=here[:, None] & there[None, :])


_int8 = triton.jit(_int8_source)
_nf4 = triton.jit(_nf4_source)
