"""How far two peers' answers to the same rows are apart, token by token.

What is compared is what the blocks *added*: the residual stream itself, which goes through them,
would hide a difference (kernels.md 3). But whoever sends the rows chooses how large that stream is,
and of one a million times what is added to it the rounding alone is more than that: so no less is
taken for added than a quarter of what went in.

    error of a token  =  |gave - again| / max(|again - took|, |took| / 4)         0: equal bits
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from .tensor import Payload, unpack

ADDED_LEAST: Final = 0.25  # of what went in: single blocks of the demo model add .2 to 5 times it


def errors_of(
    took: Payload, gave: Payload, again: Payload, rows: int, width: int, dtype: str
) -> list[float]:
    """Of each of these rows, as they lay on the wire. Blocks for as long as reading them takes.

    took: what went in; gave: what is doubted; again: what it is measured against. Raises
    RemoteError for bytes that are no such rows.
    """
    if bytes(gave) == bytes(again):
        return [0.0] * rows
    given, repeated = (unpack(one, rows, width, dtype).double() for one in (gave, again))
    return apart(unpack(took, rows, width, dtype).double(), given, repeated).tolist()


def apart(took: Tensor, gave: Tensor, again: Tensor) -> Tensor:
    """The same of tensors (rows, width), as (rows,)."""
    difference = (gave - again).norm(dim=1)
    added = torch.maximum((again - took).norm(dim=1), ADDED_LEAST * took.norm(dim=1))
    errors: Tensor = difference / added
    return torch.where(difference == 0, torch.zeros_like(errors), errors)
