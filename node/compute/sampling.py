"""Which token comes next: logits, filtered and drawn.

The noise is a pure function of (seed, position): it does not matter which peers computed the
logits, how often a hop was replayed, or in how many goes a text was made. The draw is the
Gumbel-max trick: the largest of `logit + noise` is distributed as softmax(logits).

The noise of token i at position p: the i-th raw 64 bits of numpy's `Philox(key=seed,
counter=[0, p, 0, 0])` (Philox-4x64-10, Salmon et al., 2011; numpy keeps its bit stream fixed), of
which the upper 53 give a number u strictly between 0 and 1, and the noise -log(-log u).

Filters follow transformers' logits processors, in its order: repetition penalty, temperature,
top-k, top-p, min-p. OpenAI's three come before the temperature, as in vLLM: the bias, and the
presence and frequency penalties, which count what the answer has said and not its prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...errors import UserError

_SEED_MAX = (1 << 64) - 1
_COLDEST = 1e-12  # colder would overflow; here a logit less by a billionth is nothing any more
Logits = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Settings:
    """How tokens are chosen. temperature 0 is greedy; the other defaults filter nothing."""

    temperature: float = 0.0
    top_k: int = 0  # keep the k likeliest; 0: all
    top_p: float = 1.0  # keep the likeliest that make up this much; 1: all
    min_p: float = 0.0  # keep what has this share of the likeliest's probability; 0: all
    repetition_penalty: float = 1.0  # divide positive logits of tokens seen by this; 1: none
    seed: int | None = None  # needed when temperature is above 0
    presence_penalty: float = 0.0  # taken from the logit of what the answer has said
    frequency_penalty: float = 0.0  # the same, for each time it was said
    bias: tuple[tuple[int, float], ...] = ()  # added to the logits of these tokens

    @property
    def plain(self) -> bool:
        """Nothing changes the order of the logits."""
        return (
            self.repetition_penalty == 1
            and not self.presence_penalty
            and not self.frequency_penalty
            and not self.bias
        )

    def __post_init__(self) -> None:
        checks = (
            (
                "temperature",
                self.temperature,
                self.temperature == 0 or _COLDEST <= self.temperature <= 100,
                f"0 (greedy), or {_COLDEST} to 100",
            ),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                0 < self.repetition_penalty <= 100,
                "above 0, at most 100",
            ),
            (
                "presence_penalty",
                self.presence_penalty,
                -2 <= self.presence_penalty <= 2,
                "-2 to 2",
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                -2 <= self.frequency_penalty <= 2,
                "-2 to 2",
            ),
            (
                "bias",
                self.bias,
                all(token >= 0 and -100 <= value <= 100 for token, value in self.bias),
                "tokens with -100 to 100 each",
            ),
            ("seed", self.seed, self.seed is None or 0 <= self.seed <= _SEED_MAX, "0 to 2**64-1"),
        )
        for name, value, holds, allowed in checks:
            if not holds:
                raise UserError(f"{name} is {value}; it must be {allowed}")
        if self.temperature > 0 and self.seed is None:
            raise UserError("seed is missing; sampling with a temperature needs one")


def pick(
    logits: Tensor,
    settings: Settings,
    position: int,
    history: Sequence[int],
    *,
    begun: int = 0,
    allowed: NDArray[np.bool_] | None = None,
) -> int:
    """The token at `position`, given the logits (vocab,) and all ids before it.

    begun: where in the history the answer begins. allowed: (vocab,), the tokens that may come;
    there is at least one.
    """
    if settings.temperature == 0 and settings.plain and allowed is None:
        return int(logits.argmax())
    scores = logits.double().numpy()
    if not settings.plain:
        scores = _penalize(scores, settings, history, begun)
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    if settings.temperature == 0:
        return int(scores.argmax())
    kept = keep(scores / settings.temperature, settings)
    alive = np.flatnonzero(kept > -np.inf)
    assert settings.seed is not None  # checked at birth
    return int(alive[(kept[alive] + noise(settings.seed, position, alive)).argmax()])


@dataclass(frozen=True, slots=True)
class Likely:
    """How likely a token was: natural logarithms, in the model's own words, before any setting.

    top: the likeliest tokens there, the likeliest first; of equals the lower id.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def likely(logits: Tensor, token: int, top: int) -> Likely:
    """How likely `token` was among the logits (vocab,), beside the `top` likeliest."""
    scores = logits.double().numpy()
    highest = scores.max()
    chances = scores - (highest + np.log(np.exp(scores - highest).sum()))
    first: list[int] = []
    if top:
        least = np.partition(chances, -top)[-top] if top < len(chances) else -np.inf
        candidates = np.flatnonzero(chances >= least)
        first = candidates[np.argsort(-chances[candidates], kind="stable")][:top].tolist()
    told = tuple((one, float(chances[one])) for one in first)
    return Likely(token, float(chances[token]), told)


def keep(scores: Logits, settings: Settings) -> Logits:
    """The scores with everything that top-k, top-p and min-p drop at minus infinity."""
    if 0 < settings.top_k < len(scores):
        least = np.partition(scores, -settings.top_k)[-settings.top_k]
        scores = np.where(scores < least, -np.inf, scores)
    if settings.top_p < 1:
        order = np.argsort(scores, kind="stable")
        below = np.cumsum(_softmax(scores)[order])
        dropped = below <= 1 - settings.top_p
        dropped[-1] = False
        scores = scores.copy()
        scores[order[dropped]] = -np.inf
    if settings.min_p > 0:
        chance = _softmax(scores)
        scores = np.where(chance < settings.min_p * chance.max(), -np.inf, scores)
    return scores


def noise(seed: int, position: int, tokens: NDArray[np.int64]) -> Logits:
    """Gumbel noise of these tokens, in rising order, at `position`."""
    philox = np.random.Philox(key=seed, counter=[0, position, 0, 0])
    bits = philox.random_raw(int(tokens[-1]) + 1)[tokens]
    even = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return np.asarray(-np.log(-np.log(even)))


def _penalize(scores: Logits, settings: Settings, history: Sequence[int], begun: int) -> Logits:
    scores = scores.copy()
    for token, value in settings.bias:
        scores[token] += value
    seen, penalty = np.unique(np.fromiter(history, dtype=np.int64)), settings.repetition_penalty
    old = scores[seen]
    scores[seen] = np.where(old < 0, old * penalty, old / penalty)
    said, times = np.unique(np.fromiter(history[begun:], dtype=np.int64), return_counts=True)
    scores[said] -= settings.presence_penalty + times * settings.frequency_penalty
    return scores


def _softmax(scores: Logits) -> Logits:
    raised = np.exp(scores - scores.max())
    return np.asarray(raised / raised.sum())
