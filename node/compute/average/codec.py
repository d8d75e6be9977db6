"""Vectors on the wire: fp32, or groups of 128 numbers in 8 or 4 bits beside one scale.

    8 bits   128 x int8, scale fp16                 1.016 bytes a number
    4 bits    64 x two of -7..7, scale fp16          .516 bytes a number

All scales come first, then all codes; the last group is filled up with zeros. The groups are those
of compute/groups.py.

What rounding takes away is not lost: a sender keeps it, and adds it to what it sends next
(`Feedback`), so that over many exchanges the others get the sum of what it had to tell.

Source: Seide et al., 2014, and Karimireddy et al., 2019 (error feedback); algorithms.md, 5.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor

from ....errors import RemoteError
from ..groups import fold, quantize, restore, unfold

GROUP: Final = 128
Bits = Literal[4, 8, 32]
_SCALE_BYTES: Final = 2


def size_of(count: int, bits: Bits) -> int:
    """Bytes of so many numbers on the wire."""
    if bits == 32:
        return 4 * count
    groups = -(-count // GROUP)
    return groups * (GROUP * bits // 8 + _SCALE_BYTES)


def encode(values: Tensor, bits: Bits) -> bytes:
    """values: [n], fp32. Raises ValueError for another shape, and for what is not finite."""
    if values.dim() != 1 or values.dtype != torch.float32:
        raise ValueError(f"a vector of fp32 is wanted, not {tuple(values.shape)} {values.dtype}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("numbers that are not finite are not sent")
    values = values.detach()
    if bits == 32:
        return values.contiguous().numpy().tobytes()
    groups = torch.nn.functional.pad(values, (0, -len(values) % GROUP)).view(-1, GROUP)
    scales, codes = quantize(groups, bits)
    if bits == 4:
        codes = fold(codes)
    return scales.numpy().tobytes() + codes.contiguous().numpy().tobytes()


def decode(data: memoryview | bytes | bytearray, count: int, bits: Bits) -> Tensor:
    """[count], fp32. Raises RemoteError for what `encode` does not write."""
    if len(data) != size_of(count, bits):
        raise RemoteError(f"{count} numbers of {bits} bits in {len(data)} bytes")
    if count == 0:
        return torch.zeros(0)
    writable = bytearray(data)
    if bits == 32:
        found = torch.frombuffer(writable, dtype=torch.float32)
        if not bool(torch.isfinite(found).all()):
            raise RemoteError("numbers that are not finite")
        return found
    groups = -(-count // GROUP)
    cut = groups * _SCALE_BYTES
    scales = torch.frombuffer(writable[:cut], dtype=torch.float16).view(-1, 1)
    codes = torch.frombuffer(writable[cut:], dtype=torch.int8).view(groups, -1)
    if bits == 4:
        codes = unfold(codes)
    if bool(codes.view(-1)[count:].any()):
        raise RemoteError("codes that nobody writes")
    return restore(scales, codes, bits).view(-1)[:count]


class Feedback:
    """Keeps what rounding took away, and adds it to what is sent next."""

    def __init__(self, bits: Bits) -> None:
        self._bits = bits
        self._owed: Tensor | None = None

    def encode(self, values: Tensor) -> bytes:
        """As `encode`. What it refuses leaves nothing behind."""
        if self._owed is not None and self._owed.shape != values.shape:
            raise ValueError(f"{len(values)} numbers after {len(self._owed)}")
        wished = values.detach() if self._owed is None else values.detach() + self._owed
        data = encode(wished, self._bits)
        self._owed = wished - decode(data, len(wished), self._bits)
        return data
