"""Many peers that train one adapter together, some of them liars: what each rule makes of it.

    learn ─▶ weights ─▶ liars look, and choose ─▶ each honest peer pulls from s others ─▶ rule
      ▲                                                                                  │
      └──────────────── next weights ◀── outer step ◀─────────────────────── shift ◀─────┘

Peers draw whom they pull from; what they read is dealt out unevenly (Dirichlet over the packages)
or evenly. The score is the loss on held-out text of the worst honest peer, over the worst one of
the same peers in a run with plain averaging and without liars. The dice of honest peers fall alike
in all runs of one seed, so that two runs differ by what is compared alone. Judges read another
held-out part than the score.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from .aggregator import JUDGED, Judge, aggregator
from .attacks import ATTACKS, DELAY, LABEL_FLIP, Scene
from .band import Band, Diet
from .outer import Outer
from .reading import FOR_JUDGES, FOR_SCORE, Text
from .rules import Aggregator

NONE: Final = "none"
PLAIN: Final = "mean"
WAYS: Final = (*ATTACKS, LABEL_FLIP)
SHARES: Final = (0.1, 0.2, 0.3)
SPREAD: Final = 0.5  # Dirichlet's: most of a peer's text is of two packages
JUDGED_TOKENS: Final = 256  # for each candidate, drawn anew; 128 left one peer alone by bad luck
SCORED_TOKENS: Final = 1024


@dataclass(frozen=True, slots=True)
class Trial:
    """One run. spread: None where all read alike."""

    rule: str = JUDGED
    attack: str = NONE
    share: float = 0.0  # of the peers that lie
    spread: float | None = SPREAD
    peers: int = 32
    asked: int = 6
    believed: int = 2
    rounds: int = 8
    steps: int = 10
    tokens: int = 32  # a step and peer
    rate: float = 0.01
    seed: int = 1

    @property
    def liars(self) -> int:
        return round(self.share * self.peers) if self.attack != NONE else 0

    @property
    def clean(self) -> Trial:
        """What it is measured against."""
        return replace(self, rule=PLAIN, attack=NONE, share=0.0)


@dataclass(frozen=True, slots=True)
class Found:
    """Losses on held-out text of the honest peers. ratio: the worst, over the clean run's worst of
    the same peers."""

    trial: Trial
    worst: float
    mean: float
    ratio: float
    spent_s: float


def study(trials: Iterable[Trial], text: Text) -> Iterator[Found]:
    """Each trial in turn; a clean run is computed once."""
    clean: dict[Trial, Tensor] = {}
    for trial in trials:
        begun = time.monotonic()
        if trial.clean not in clean:
            clean[trial.clean] = run(trial.clean, text)
        losses = clean[trial] if trial in clean else run(trial, text)
        worst, least = (float(one[: len(losses)].max()) for one in (losses, clean[trial.clean]))
        spent_s = time.monotonic() - begun
        yield Found(trial, worst, float(losses.mean()), worst / least, spent_s)


def run(trial: Trial, text: Text) -> Tensor:
    """The honest peers' losses at the end: [h]."""
    lab = Lab(trial, text)
    for _ in range(trial.rounds):
        lab.round()
    return lab.score()


class Lab:
    """One run. Only who flips labels has to be trained among the liars."""

    def __init__(self, trial: Trial, text: Text) -> None:
        self.trial, self.text = trial, text
        diet = Diet(trial.peers, trial.tokens, trial.rate, trial.spread, trial.seed)
        self.band = Band(diet, text)
        self.honest = trial.peers - trial.liars
        self.flipped = trial.liars if trial.attack == LABEL_FLIP else 0
        self.outer = Outer.begin(self.band.weights()[: self.honest + self.flipped])
        self.past = [self.outer.anchor[: self.honest]]
        self.pulls, self.private, self.dice = (
            torch.Generator().manual_seed(1000 * trial.seed + number) for number in range(3)
        )

    def round(self) -> None:
        """Inner steps, one exchange, the outer step."""
        self.band.learn(self.trial.steps, self.honest + self.flipped, self.flipped)
        weights = self.band.weights()[: self.honest + self.flipped]
        honest = weights[: self.honest]
        told = self._told(weights)
        self.past = [*self.past, honest][-DELAY:]
        since = weights - self.outer.anchor
        shift = torch.zeros_like(weights)
        rule = self._rule(self._judge(self._places(self.trial.peers)[: self.honest]))
        shift[: self.honest] = rule(honest, told, since[: self.honest], self.trial.believed)
        self.outer = self.outer.step(weights, shift)
        self.band.put(self.outer.anchor)

    def score(self) -> Tensor:
        """The honest peers' losses: [h]."""
        held = self.text.tokens(FOR_SCORE)
        held = held[:: max(len(held) // SCORED_TOKENS, 1)][:SCORED_TOKENS]
        return self.band.losses(self.outer.anchor[: self.honest], held)

    def _told(self, weights: Tensor) -> Tensor:
        """What each honest peer hears of those whom it drew: [h, s, d]."""
        keys = torch.rand(self.trial.peers, self.trial.peers, generator=self.pulls)
        drawn = keys.fill_diagonal_(2.0).argsort(1)[: self.honest, : self.trial.asked]
        width = weights.shape[1]
        others = weights.expand(self.honest, -1, -1)
        if self.trial.attack in ATTACKS:
            others = torch.cat((others, self._lies(weights)), 1)
        return others.gather(1, drawn.unsqueeze(-1).expand(-1, -1, width))

    def _lies(self, honest: Tensor) -> Tensor:
        """Of each liar to each honest peer: [h, m, d]. Liars guess at the judges' tokens."""
        places = self.text.tokens(FOR_JUDGES)
        drawn = torch.randint(len(places), (JUDGED_TOKENS,), generator=self.dice)
        judge = self._judge(places[drawn])
        scene = Scene(
            honest,
            self.outer.anchor,
            self.past[0],
            self.trial.liars,
            self._rule(judge),
            self.trial.believed,
            self.trial.asked,
            self.dice,
            judge,
        )
        return ATTACKS[self.trial.attack](scene)

    def _places(self, peers: int) -> Tensor:
        """Tokens to judge by, of each peer: [peers, JUDGED_TOKENS]."""
        places = self.text.tokens(FOR_JUDGES)
        return places[torch.randint(len(places), (peers, JUDGED_TOKENS), generator=self.private)]

    def _judge(self, places: Tensor) -> Judge:
        return lambda weights: self.band.losses(weights, places)

    def _rule(self, judge: Judge) -> Aggregator:
        return aggregator(self.trial.rule, self.band.sizes, judge)
