"""The outer step: H inner steps at home, then one exchange by weights alone, with momentum.

    theta ── H steps of AdamW ──▶ theta' ── pull, rule ──▶ shift ──▶ m, phi, theta

NoLoCo sends the motion and the anchor, 8 bytes a weight in its released code. Since both terms bear
the same factor, the mean motion and the mean anchor only appear as their sum, the mean of theta:
one vector is enough. Half the bytes, and one thing that a peer signs and can be held to.

Sources: NoLoCo (2025), with its released momentum for groups of two; Douillard et al., 2023
(DiLoCo).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

KEEP: Final = 0.5  # NoLoCo's alpha
PULL: Final = 0.7  # NoLoCo's beta, where some are thought to lie
PULL_TRUSTED: Final = 1.0  # where nobody is: DECISIONS.md has what less costs, and more


def pull_of(liars: int) -> float:
    """How much of what the rule made is gone. liars: of those who are pulled from, thought so."""
    return PULL if liars else PULL_TRUSTED


@dataclass(frozen=True, slots=True)
class Outer:
    """Where a peer stands between two exchanges. anchor, momentum: [..., d]."""

    anchor: Tensor
    momentum: Tensor

    @classmethod
    def begin(cls, weights: Tensor) -> Outer:
        return cls(weights, torch.zeros_like(weights))

    def step(self, weights: Tensor, shift: Tensor, pull: float = PULL) -> Outer:
        """After an exchange: the next anchor, which is where the inner steps go on.

        weights: [..., d], after the inner steps. shift: what the rule made of the pulled.
        """
        momentum = KEEP * self.momentum + pull * (weights + shift - self.anchor)
        return Outer(self.anchor + momentum, momentum)
