"""What weights are worth on a peer's own held-out text, on sequences that nobody can foresee.

    held out ── drawn anew for each exchange ──▶ sequences ── with weights ──▶ a loss

That is what pulled weights are judged by (average/aggregator.py). Whoever knew the sequences could
lie about all others; so they are drawn by dice of the peer's own, and from another half of what is
held out than the losses that it tells (swarm/run/shards.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

import torch
from torch import Tensor

TOKENS: Final = 256  # average/lab.py: 128 once left an honest peer alone by bad luck

LossOf = Callable[[Tensor, Sequence[int]], float]  # of [d], on these sequences


class Panel:
    """For one run, on one peer. It is an aggregator's Judge."""

    def __init__(self, loss_of: LossOf, rows: Sequence[int], tokens: int, dice: Random) -> None:
        """rows: the sequences that it may draw, at least one. tokens: of each."""
        self._loss_of = loss_of
        self._rows = rows
        self._count = min(-(-TOKENS // tokens), len(rows))
        self._dice = dice
        self._drawn: Sequence[int] = rows[: self._count]

    def convene(self) -> None:
        """Draw sequences, for one exchange."""
        self._drawn = self._dice.sample(self._rows, self._count)

    def __call__(self, weights: Tensor) -> Tensor:
        """weights: [..., d]. -> [...]. Raises what computing a loss does."""
        flat = weights.reshape(-1, weights.shape[-1])
        losses = [self._loss_of(one, self._drawn) for one in flat]
        return torch.tensor(losses).reshape(weights.shape[:-1])
