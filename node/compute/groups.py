"""Numbers in groups of 128: 8 or 4 bits each beside one scale, elementwise and so alike everywhere.

    8 bits   int8, -127..127                  4 bits   two of -7..7 in a byte, the first one low

A scale is fp16, rounded up, so that a number comes back within half a scale, which is a thousandth
more at most than the group's largest over 127 (or 7). None is over 65,504: what is larger than it
can say is cut off.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from ...errors import RemoteError

LEVELS: Final[dict[int, int]] = {4: 7, 8: 127}
_SCALE_LEAST: Final = 2.0**-24  # fp16's smallest
_SCALE_MOST: Final = 65504.0  # fp16's largest


def quantize(groups: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """[..., n] fp32 to scales [..., 1] fp16 and codes [..., n] int8. A group with a number that is
    not finite has no finite scale."""
    levels = LEVELS[bits]
    largest = groups.abs().amax(-1, keepdim=True)
    scales = _rounded_up(largest / levels)
    scales = torch.where(torch.isfinite(largest), scales, torch.nan)
    codes = (groups / scales.float()).round().clamp(-levels, levels).nan_to_num(0.0)
    return scales, codes.to(torch.int8)


def restore(scales: Tensor, codes: Tensor, bits: int) -> Tensor:
    """[..., n] fp32. Raises RemoteError for what `quantize` does not give."""
    if not bool((torch.isfinite(scales) & (scales > 0)).all()):
        raise RemoteError("a scale that is not a positive number")
    if bool((codes < -LEVELS[bits]).any()):
        raise RemoteError("codes that nobody writes")
    return codes * scales.float()


def fold(codes: Tensor) -> Tensor:
    """Codes [..., n], n even, of 4 bits to bytes [..., n / 2]."""
    low, high = codes[..., 0::2], codes[..., 1::2]
    return (low & 15) | (high << 4)


def unfold(folded: Tensor) -> Tensor:
    """The same back."""
    return torch.stack(((folded << 4) >> 4, folded >> 4), -1).flatten(-2)


def _rounded_up(scales: Tensor) -> Tensor:
    """To fp16, and never to less: codes need no cutting then."""
    near = scales.clamp(_SCALE_LEAST, _SCALE_MOST).half()
    above = (near.view(torch.int16) + 1).view(torch.float16)
    return torch.where((near.float() < scales) & torch.isfinite(above), above, near)
