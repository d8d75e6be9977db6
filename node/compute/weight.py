"""A matrix as it is stored: its numbers as they came, or bitsandbytes' int8 or nf4 bytes.

    none   codes (n, k) bf16, fp16 or fp32                 w = codes
    int8   codes (n, k) int8, scales (n,) fp32             w = codes · scales · (1 / 127)
    nf4    codes (n, k / 2) uint8, scales (n, k / 64)      w = NF4[code] · scales, by 64 columns

n is the width of the output, k that of the input. A byte of nf4 holds two neighbouring columns,
the first in its high half. Every kernel computes from these same bytes, so that one digest and one
announced format stand for them all.

Source: bitsandbytes 0.50, `functional.int8_vectorwise_quant` (its SCB) and `quantize_4bit` (its
absmax); T. Dettmers et al., QLoRA, 2023, for the codebook.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Format = Literal["none", "int8", "nf4"]
FORMATS: tuple[Format, ...] = ("none", "int8", "nf4")

NF4_GROUP = 64  # columns that share one scale
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
# What each byte stands for: two numbers, the high half's first. A complex number is such a pair.
_PAIRS = np.array([[NF4[b >> 4], NF4[b & 15]] for b in range(256)], np.float32).view(np.complex64)[
    :, 0
]

INT8_STEP = 0.007874015718698502  # 1 / 127 as bitsandbytes writes it


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix of `rows` (outputs) by `columns` (inputs) in one format."""

    format: Format
    rows: int
    columns: int
    codes: Tensor
    scales: Tensor | None = None

    @staticmethod
    def plain(matrix: Tensor) -> "Weight":
        """A matrix of numbers, as it is."""
        return Weight("none", matrix.shape[0], matrix.shape[1], matrix)

    @property
    def nbytes(self) -> int:
        """Bytes that the codes and their scales take."""
        return self.codes.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def dequantize(self) -> Tensor:
        """The numbers that the codes stand for: (rows, columns), fp32."""
        if self.format == "none" or self.scales is None:
            return self.codes.float()
        if self.format == "int8":
            return self.codes.float().mul_(self.scales[:, None]).mul_(INT8_STEP)
        if self.codes.device.type == "cpu":  # numpy's is ten times as fast as torch's
            pairs = torch.from_numpy(_PAIRS.take(self.codes.numpy()).view(np.float32))
        else:
            table = torch.from_numpy(_PAIRS.view(np.float32)).to(self.codes.device).view(-1, 2)
            pairs = table[self.codes.int()]
        groups = pairs.view(self.rows, -1, NF4_GROUP)
        return groups.mul_(self.scales[..., None]).view(self.rows, self.columns)

    def pick(self, start: int, stop: int) -> "Weight":
        """Rows start..stop, as views."""
        scales = None if self.scales is None else self.scales[start:stop]
        codes = self.codes[start:stop]
        return Weight(self.format, len(codes), self.columns, codes, scales)


def join(parts: Sequence[Weight]) -> Weight:
    """Matrices of one format and width, one below the other. A single one is not copied."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if any((one.format, one.columns) != (first.format, first.columns) for one in parts):
        raise ValueError("matrices of several formats or widths have no common rows")
    scales = [one.scales for one in parts if one.scales is not None]
    return Weight(
        first.format,
        sum(one.rows for one in parts),
        first.columns,
        torch.cat([one.codes for one in parts]),
        torch.cat(scales) if scales else None,
    )
