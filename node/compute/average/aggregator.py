"""One interface for every average: own weights and others' in, how far the own ones move out.

    run file ─ name ─▶ aggregator(name, sizes, judge) ─▶ shift(mine, theirs, since, liars)

The rules of rules.py see distances alone, each group of weights by itself. That has a limit which
no threshold lifts: peers that read different text stand far from each other, and a lie that stays
within that distance may undo what all gained. `judged` also looks at what weights are worth:

    clip       each of the pulled to OWN_MOTION times the own motion, group by group
    judge      half a step towards it must make the own loss on held-out tokens smaller; it counts
               in full if by half as much as the best of them, else by as much less
    once       those that stand closer to each other than two honest peers ever do count as one
    average    what is left, with the own weights

It needs no guess of how many lie, keeps what is far but good, and where all lie it stays alone. Of
a convex loss half of its step never makes more, whoever lies: each part of it makes less.

Sources: Verbraeken et al., 2021 (Bristle: distance first, then performance); Xie et al., 2020
(Zeno++: a step is judged by held-out loss); Wortsman et al., 2022 (a greedy soup takes what helps);
Fung et al., 2020 (FoolsGold: the many who say the same count once). Figures: DECISIONS.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ....errors import UserError
from .rules import OWN_MOTION, RULES, Aggregator, Pulled, by_groups

JUDGED: Final = "judged"
NAMES: Final = (*RULES, JUDGED)
TRIED: Final = 0.5  # of the way: the mean of two honest peers is better than either
ENOUGH: Final = 0.5  # of the best's gain: a lie that is just better than nothing counts for nothing
ONCE: Final = 0.5  # of the own motion; honest peers stand about sqrt(2) of it apart

# Losses of weights [..., d]: [...]. In one exchange always on the same tokens, which nobody else
# can foresee: some hundreds at least (256 in lab.py, where 128 once left an honest peer alone).
Judge = Callable[[Tensor], Tensor]


def aggregator(name: str, sizes: Sequence[int], judge: Judge | None = None) -> Aggregator:
    """By the name in a run file. sizes: of the groups of weights, in order.

    Raises UserError for a name that is not there, and for `judged` without anything to judge by.
    """
    if name == JUDGED:
        if judge is None:
            raise UserError(f"{JUDGED} needs a held-out part: give one, or choose another average")
        return Judged(tuple(sizes), judge)
    if name not in RULES:
        raise UserError(f"no average is called {name!r}: there are {', '.join(NAMES)}")
    return by_groups(RULES[name], sizes)


@dataclass(frozen=True, slots=True)
class Judged:
    """See the module. `liars` is not looked at."""

    sizes: tuple[int, ...]
    judge: Judge

    def __call__(self, mine: Tensor, theirs: Tensor, since: Tensor, liars: int) -> Tensor:
        shifts, far = Pulled(mine, theirs, since.norm(dim=-1), 0).shifts()
        clipped = self._clipped(shifts, since)
        losses = torch.stack(
            [self.judge(mine + TRIED * each) for each in clipped.unbind(-2)], dim=-1
        )
        gains = self.judge(mine).unsqueeze(-1) - losses
        better = (gains > 0) & torch.isfinite(gains) & torch.isfinite(far)
        gains = torch.where(better, gains, 0.0)
        enough = ENOUGH * gains.amax(-1, keepdim=True)
        weighed = torch.where(better, (gains / enough).clamp(max=1.0), 0.0).to(shifts.dtype)
        shares = weighed / _crowds(shifts, since, better)
        return (clipped * shares.unsqueeze(-1)).sum(-2) / (1 + shares.sum(-1, keepdim=True))

    def _clipped(self, shifts: Tensor, since: Tensor) -> Tensor:
        """No longer, in any group, than OWN_MOTION times the own motion there."""
        parts = []
        groups = (torch.split(each, list(self.sizes), -1) for each in (shifts, since))
        for each, own in zip(*groups, strict=True):
            far = each.norm(dim=-1, keepdim=True)
            most = OWN_MOTION * own.norm(dim=-1, keepdim=True).unsqueeze(-2)
            parts.append(each * torch.where(far > most, most / far, 1.0))
        return torch.cat(parts, -1)


def _crowds(shifts: Tensor, since: Tensor, counted: Tensor) -> Tensor:
    """How many of those that count say the same as each, [..., s]: 1 and more."""
    near = ONCE * since.norm(dim=-1, keepdim=True)
    crowds = [
        (((shifts - one.unsqueeze(-2)).norm(dim=-1) <= near) & counted).sum(-1)
        for one in shifts.unbind(-2)
    ]
    return torch.stack(crowds, -1).clamp_min(1)
