"""Vectors on the wire: fp32, or groups of 128 numbers in 8 or 4 bits beside one scale.

    8 bits   128 x int8, scale fp16                 1.016 bytes a number
    4 bits    64 x two of -7..7, scale fp16          .516 bytes a number

All scales come first, then all codes; the last group is filled up with zeros. A scale is rounded
up, so that a number comes back within half a scale, which is a thousandth more at most than the
group's largest over 127 (or 7). No scale is over 65,504: what is larger than it can say is cut off.

What rounding takes away is not lost: a sender keeps it, and adds it to what it sends next
(`Feedback`), so that over many exchanges the others get the sum of what it had to tell.

Source: Seide et al., 2014, and Karimireddy et al., 2019 (error feedback); algorithms.md, 5.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor

from ....errors import RemoteError

GROUP: Final = 128
Bits = Literal[4, 8, 32]
_SCALE_BYTES: Final = 2
_LEVELS: Final[dict[int, int]] = {4: 7, 8: 127}
_SCALE_LEAST: Final = 2.0**-24  # fp16's smallest
_SCALE_MOST: Final = 65504.0  # fp16's largest


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
    levels = _LEVELS[bits]
    groups = torch.nn.functional.pad(values, (0, -len(values) % GROUP)).view(-1, GROUP)
    scales = _rounded_up(groups.abs().amax(1, keepdim=True) / levels)
    codes = (groups / scales.float()).round().clamp(-levels, levels).to(torch.int8)
    if bits == 4:
        low, high = codes.view(-1, GROUP // 2, 2).unbind(2)
        codes = (low & 15) | (high << 4)
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
    scales = torch.frombuffer(writable[:cut], dtype=torch.float16).float().view(-1, 1)
    if not bool((torch.isfinite(scales) & (scales > 0)).all()):
        raise RemoteError("a scale that is not a positive number")
    codes = torch.frombuffer(writable[cut:], dtype=torch.int8).view(groups, -1)
    if bits == 4:
        codes = torch.stack(((codes << 4) >> 4, codes >> 4), 2).view(groups, GROUP)
    if bool((codes < -_LEVELS[bits]).any()) or bool(codes.view(-1)[count:].any()):
        raise RemoteError("codes that nobody writes")
    return (codes * scales).view(-1)[:count]


def _rounded_up(scales: Tensor) -> Tensor:
    """To fp16, and never to less: codes need no cutting then."""
    near = scales.clamp(_SCALE_LEAST, _SCALE_MOST).half()
    above = (near.view(torch.int16) + 1).view(torch.float16)
    return torch.where((near.float() < scales) & torch.isfinite(above), above, near)


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
