"""What a peer makes of the weights that it pulled: averages, most of which liars cannot move far.

    mine, theirs ──▶ rule ──▶ a shift ──▶ outer.py: the next weights

A rule sees one neighbourhood: a peer's own weights and those that `s` others told it, of which `b`
are taken to be lies. It returns how far the own weights are to move. Leading dimensions are
neighbourhoods beside each other, so that a laboratory computes all of them at once.

Ours, `remove_then_clip`: of the pulled, the b farthest are dropped and the rest clipped to the
distance of the (s - 2b)-th nearest, and never beyond `OWN_MOTION` times what the peer itself moved
since the last exchange. A threshold by order alone is unsafe once more than 2b of the pulled lie;
the cap bounds the harm then too. Each group of weights (a layer's, say) is judged by its own
distances (`by_groups`), so that a large one does not hide a small one.

A vector with one value that is not finite counts as a reply that did not come: infinitely far for
the rules that measure distances, where it takes one of the b places; for those that go coordinate
by coordinate, as the own weights.

Sources: Karimireddy et al., 2021 (CenteredClip); He et al., 2022 (ClippedGossip); Gaucher et al.,
2025 (remove then clip; CS+); Farhadkhani et al., 2023 (nearest neighbours); Yin et al., 2018
(median, trimmed mean).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

OWN_MOTION: Final = 2.0  # measured: of the values tried, the only one (algorithms 3.3)
CLIP_ROUNDS: Final = 20  # BTARD's
CLIP_STILL: Final = 1e-6  # BTARD's, over the radius


@dataclass(frozen=True, slots=True)
class Pulled:
    """One neighbourhood, or many.

    mine: [..., d]. theirs: [..., s, d]; NaN where no reply came. moved: [...], how far the own
    weights went since the last exchange, in the weights' units. liars: b.
    """

    mine: Tensor
    theirs: Tensor
    moved: Tensor
    liars: int

    def __post_init__(self) -> None:
        *lead, width = self.mine.shape
        if self.theirs.shape[:-2] != (*lead,) or self.theirs.shape[-1] != width:
            raise ValueError(f"weights {(*self.theirs.shape,)} beside {(*self.mine.shape,)}")
        if self.moved.shape != (*lead,):
            raise ValueError(f"{(*self.moved.shape,)} motions of {(*lead,)} peers")
        if not 0 <= 2 * self.liars < max(self.peers, 1):
            raise ValueError(f"{self.liars} liars among {self.peers} who were asked")

    @property
    def peers(self) -> int:
        """How many were asked: s."""
        return self.theirs.shape[-2]

    def shifts(self) -> tuple[Tensor, Tensor]:
        """To each of theirs [..., s, d], zero where it is not finite, and how far [..., s]."""
        shifts = self.theirs - self.mine.unsqueeze(-2)
        far = shifts.norm(dim=-1)
        sound = torch.isfinite(far)
        shifts = torch.where(sound.unsqueeze(-1), shifts, torch.zeros_like(shifts))
        return shifts, torch.where(sound, far, torch.full_like(far, torch.inf))


# What moves the weights of one group: [..., d].
Rule = Callable[[Pulled], Tensor]


class Aggregator(Protocol):
    """What moves all the weights of a run."""

    def __call__(self, mine: Tensor, theirs: Tensor, since: Tensor, liars: int) -> Tensor:
        """How far the own weights are to move: [..., d].

        mine: [..., d]. theirs: [..., s, d]; NaN where no reply came. since: [..., d], the own
        motion since the last exchange. liars: b, how many of the s are taken to lie.
        """


def mean(pulled: Pulled) -> Tensor:
    """The plain average with the own weights: what one liar moves wherever it likes."""
    shifts, far = pulled.shifts()
    return shifts.sum(-2) / (1 + torch.isfinite(far).sum(-1, keepdim=True))


def median(pulled: Pulled) -> Tensor:
    """The median of each coordinate, the own weights among them."""
    return middle(_with_mine(pulled))


def trimmed_mean(pulled: Pulled) -> Tensor:
    """Of each coordinate the b largest and the b least are dropped."""
    values = _with_mine(pulled).sort(dim=-2).values
    return values[..., pulled.liars : values.shape[-2] - pulled.liars, :].mean(-2)


def centered_clip(pulled: Pulled) -> Tensor:
    """From the median on, the average of all, each clipped to a radius: that of the median one."""
    points = _with_mine(pulled)
    at = middle(points)
    radius = middle(_distances(points, at).unsqueeze(-1)).squeeze(-1)
    for _ in range(CLIP_ROUNDS):
        away = points - at.unsqueeze(-2)
        step = _clip(away, away.norm(dim=-1), radius).mean(-2)
        moves = step.norm(dim=-1) > CLIP_STILL * radius  # each neighbourhood ends for itself
        at = at + step * moves.unsqueeze(-1)
        if not bool(moves.any()):
            break
    return at


def nearest(pulled: Pulled) -> Tensor:
    """The b farthest are dropped, the rest averaged: catastrophic when more than b lie."""
    shifts, far = pulled.shifts()
    kept = _nearest(far, pulled.peers - pulled.liars)
    return (shifts * kept.unsqueeze(-1)).sum(-2) / (1 + kept.sum(-1, keepdim=True))


def clipped_sum(pulled: Pulled) -> Tensor:
    """CS+: all are clipped to the distance of the (s - 2b)-th nearest."""
    shifts, far = pulled.shifts()
    count = 1 + torch.isfinite(far).sum(-1, keepdim=True)
    return _clip(shifts, far, _radius(pulled, far)).sum(-2) / count


def remove_then_clip(pulled: Pulled) -> Tensor:
    """Ours: see the module."""
    shifts, far = pulled.shifts()
    kept = _nearest(far, pulled.peers - pulled.liars)
    radius = torch.minimum(_radius(pulled, far), OWN_MOTION * pulled.moved)
    shares = _clip(shifts, far, radius) * kept.unsqueeze(-1)
    return shares.sum(-2) / (1 + kept.sum(-1, keepdim=True))


RULES: Final[dict[str, Rule]] = {
    "mean": mean,
    "median": median,
    "trimmed mean": trimmed_mean,
    "CenteredClip": centered_clip,
    "nearest neighbours": nearest,
    "CS+": clipped_sum,
    "ours": remove_then_clip,
}


def by_groups(rule: Rule, sizes: Sequence[int]) -> Aggregator:
    """The rule for each group of weights by itself. sizes: of the groups, in their order."""

    def shift(mine: Tensor, theirs: Tensor, since: Tensor, liars: int) -> Tensor:
        split = (torch.split(each, list(sizes), dim=-1) for each in (mine, theirs, since))
        groups = zip(*split, strict=True)
        parts = [rule(Pulled(m, t, own.norm(dim=-1), liars)) for m, t, own in groups]
        return torch.cat(parts, -1)

    return shift


def _with_mine(pulled: Pulled) -> Tensor:
    """All as seen from the own weights: [..., s + 1, d]; the own ones also where no reply is."""
    shifts, _ = pulled.shifts()
    return torch.cat((shifts, torch.zeros_like(shifts[..., :1, :])), dim=-2)


def middle(points: Tensor) -> Tensor:
    """The median of each coordinate; between the middle two of an even number.

    By sorting: torch.quantile takes no more than 16 million numbers.
    """
    values = points.sort(dim=-2).values
    count = values.shape[-2]
    middle: Tensor = (values[..., (count - 1) // 2, :] + values[..., count // 2, :]) / 2
    return middle


def _distances(points: Tensor, at: Tensor) -> Tensor:
    apart: Tensor = (points - at.unsqueeze(-2)).norm(dim=-1)
    return apart


def _nearest(far: Tensor, count: int) -> Tensor:
    """1 for the nearest of the finite, at most so many; else 0."""
    rank = far.argsort(dim=-1, stable=True).argsort(dim=-1)
    kept: Tensor = (rank < count) & torch.isfinite(far)
    return kept.to(far.dtype)


def _radius(pulled: Pulled, far: Tensor) -> Tensor:
    """The distance of the (s - 2b)-th nearest: [...]."""
    return far.sort(dim=-1).values[..., pulled.peers - 2 * pulled.liars - 1]


def _clip(shifts: Tensor, far: Tensor, radius: Tensor) -> Tensor:
    """Each shift, no longer than the radius; nothing of what is infinitely far."""
    sound = torch.isfinite(far)
    scale = torch.where(far > radius.unsqueeze(-1), radius.unsqueeze(-1) / far, 1.0)
    return shifts * torch.where(sound, scale, 0.0).unsqueeze(-1)
