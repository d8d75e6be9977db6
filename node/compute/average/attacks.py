"""What liars send instead of their weights: one suite for tests, the testnet and the laboratory.

An attack is a function of a scene, in which the liars know everything: all honest weights, all
anchors, who pulls, and the rule. It returns what each liar tells each victim, [h, m, d]: h honest
peers that pull, m liars; NaN is no reply. Who flips labels tells the truth about weights that were
trained on lies: `flip_labels`. One peer among real ones, who knows only what it pulled: liar.py.

Sources: Baruch et al., 2019 (A Little Is Enough); Xie et al., 2020 (inner-product manipulation);
He et al., 2022 (dissensus); Karimireddy et al., 2022 (mimicry); Gorbunov et al., 2022 (delayed and
constant gradients).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import torch
from torch import Tensor

from .aggregator import Judge
from .rules import Aggregator

FLIP: Final = 10.0
IPM: Final = 0.5
DISSENSUS: Final = 3.0
NOISE: Final = 1.0  # of the length of what the honest moved, in every coordinate
CONSTANT: Final = 1000.0
DELAY: Final = 5  # exchanges, for what is delayed or copied
VICTIMS: Final = 4  # on whom the adaptive attack is tried
APART: Final = 0.6  # of an honest motion: further than what counts as a copy (aggregator.py)


@dataclass(frozen=True, slots=True)
class Plan:
    """One thing that the adaptive attack tries. own: back from the victim's own weights, `size`
    times the distance of two honest peers; else from the mean, `size` times what was gained."""

    own: bool
    size: float
    noisy: bool


PLANS: Final = tuple(
    Plan(own, size, noisy)
    for own, sizes in ((True, (0.1, 0.3, 1.0, 100.0)), (False, (1.0, 3.0, 8.0)))
    for size in sizes
    for noisy in (False, True)
)


@dataclass(frozen=True, slots=True)
class Scene:
    """One exchange, as liars see it.

    honest, anchors: [h, d], the weights after the inner steps and before them. liars: m.
    past: [h, d], the honest weights DELAY exchanges ago. dice: of the liars.
    aggregate: what the victims do with what they pull; believed: b. asked: s.
    harm: the loss of weights [v, d], as far as the liars can tell it: [v].
    """

    honest: Tensor
    anchors: Tensor
    past: Tensor
    liars: int
    aggregate: Aggregator
    believed: int
    asked: int
    dice: torch.Generator
    harm: Judge | None = None

    @property
    def progress(self) -> Tensor:
        """What the honest moved on average: [d]."""
        return (self.honest - self.anchors).mean(0)

    def to_all(self, told: Tensor) -> Tensor:
        """[d], or [h, d] by victim: the same from every liar."""
        victims, width = self.honest.shape
        each = told.expand(victims, width).unsqueeze(1)
        return each.expand(victims, self.liars, width)


Attack = Callable[[Scene], Tensor]


def sign_flip(scene: Scene) -> Tensor:
    """Ten times back along what everybody gained."""
    return scene.to_all(scene.anchors.mean(0) - FLIP * scene.progress)


def inner_product(scene: Scene) -> Tensor:
    """A little back: close enough to be kept, and all in one direction."""
    return scene.to_all(scene.anchors.mean(0) - IPM * scene.progress)


def a_little_is_enough(scene: Scene) -> Tensor:
    """As far from the mean as the honest who must seem to be the outliers."""
    peers = len(scene.honest) + scene.liars
    needed = math.floor(peers / 2 + 1) - scene.liars
    share = (len(scene.honest) - needed) / max(len(scene.honest), 1)
    deviations = NormalDist().inv_cdf(min(max(share, 0.5), 0.999))
    return scene.to_all(scene.honest.mean(0) - deviations * scene.honest.std(0, correction=0))


def dissensus(scene: Scene) -> Tensor:
    """To each victim what drives it away from the others."""
    away = scene.honest - scene.honest.mean(0)
    return scene.to_all(scene.honest + DISSENSUS * away)


def noise(scene: Scene) -> Tensor:
    """The mean, lost in noise: another for each liar and victim."""
    victims, width = scene.honest.shape
    size = NOISE * (scene.honest - scene.anchors).norm(dim=-1).mean()
    drawn = torch.randn(victims, scene.liars, width, generator=scene.dice)
    told: Tensor = scene.honest.mean(0) + size * drawn
    return told


def delayed(scene: Scene) -> Tensor:
    """What was right some rounds ago."""
    return scene.to_all(scene.past.mean(0))


def constant(scene: Scene) -> Tensor:
    """One direction, the same for ever, a thousand times as long as what was gained."""
    direction = torch.ones_like(scene.progress) / math.sqrt(scene.progress.numel())
    return scene.to_all(scene.honest.mean(0) + CONSTANT * scene.progress.norm() * direction)


def mimic(scene: Scene) -> Tensor:
    """All say what one honest peer says, so that its data count many times."""
    return scene.to_all(scene.honest[0])


def two_faces(scene: Scene) -> Tensor:
    """One thing to half of those who pull, the opposite to the others."""
    sides = torch.ones(len(scene.honest), 1)
    sides[1::2] = -1.0
    return scene.to_all(scene.honest.mean(0) + FLIP * sides * scene.progress)


def withheld(scene: Scene) -> Tensor:
    """No reply."""
    return scene.to_all(torch.full_like(scene.progress, torch.nan))


def copied(scene: Scene) -> Tensor:
    """Some other honest peer's work of some rounds ago: pay without work."""
    victims = len(scene.honest)
    order = torch.randint(victims, (victims, scene.liars), generator=scene.dice)
    told: Tensor = scene.past[order]
    return told


def echo(scene: Scene) -> Tensor:
    """To each victim its own weights: nothing is nearer, and a threshold by the nearest closes."""
    return scene.to_all(scene.honest)


def adaptive(scene: Scene) -> Tensor:
    """Whatever, by search along what was gained, most undoes it in spite of the very rule.

    Tried on a few victims, each taken to have pulled the expected share of liars: back from where
    the victim stands, by shares of the distance to others, and back from where all stand on
    average, by what was gained; each said by all alike, or under noise that makes liars differ.
    """
    honest, gained = scene.honest, scene.progress.norm().clamp_min(1e-12)
    backwards = -scene.progress / gained
    tried = torch.arange(0, len(honest), -(-len(honest) // VICTIMS))
    mine, since = honest[tried], (honest - scene.anchors)[tried]
    share = scene.liars / (len(honest) - 1 + scene.liars)
    lying = min(max(round(share * scene.asked), 1), scene.asked, scene.liars)
    beside = torch.arange(1, scene.asked - lying + 1)
    others = honest[(tried.unsqueeze(1) + beside) % len(honest)]
    apart = (honest - honest.roll(1, 0)).norm(dim=-1).mean()
    noise = torch.randn(scene.liars, honest.shape[1], generator=scene.dice)
    noise *= APART * since.norm(dim=-1).mean() / noise.norm(dim=-1, keepdim=True)

    def lies(plan: Plan, victims: Tensor) -> Tensor:
        begin = victims if plan.own else honest.mean(0).expand_as(victims)
        lie = begin + plan.size * (apart if plan.own else gained) * backwards
        told: Tensor = lie.unsqueeze(1) + (noise if plan.noisy else torch.zeros_like(noise))
        return told

    def harm(plan: Plan) -> float:
        theirs = torch.cat((others, lies(plan, mine)[:, :lying]), 1)
        shift = scene.aggregate(mine, theirs, since, scene.believed)
        return float(scene.harm(mine + shift).mean() if scene.harm else (shift @ backwards).mean())

    return lies(max(PLANS, key=harm), honest)


def flip_labels(labels: Tensor, vocabulary: int) -> Tensor:
    """Each token turned round: what is learnt of them is wrong everywhere."""
    return vocabulary - 1 - labels


ATTACKS: Final[dict[str, Attack]] = {
    "sign flip": sign_flip,
    "inner product": inner_product,
    "a little is enough": a_little_is_enough,
    "dissensus": dissensus,
    "noise": noise,
    "delayed": delayed,
    "constant": constant,
    "mimicry": mimic,
    "two faces": two_faces,
    "withheld": withheld,
    "copied work": copied,
    "echo": echo,
    "adaptive": adaptive,
}
LABEL_FLIP: Final = "label flip"
