"""The guesses of one answer: made while the servers wait for nothing, judged by what came.

    token drawn ─▶ offer: look-up, or a small model ─▶ pace: how many? ─▶ one step of 1 + K rows
         ▲                                                                        │
         └── row by row, by the sampler itself: a row behind a wrong guess is void ┘

Whatever is guessed, each token is drawn from its own row by the sampler that draws without guesses,
with the same noise and the same words before it; so the text is the same (tests/test_drafting.py).
The rules are swarm/draft.py's and swarm/draft_pace.py's; this is told of the time, and runs on the
client's worker.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..swarm.draft import LookUp, Offer
from ..swarm.draft_pace import Pace
from .compute.sampling import Settings

MODEL = "model"  # the source of what a small model guesses


class Guesser(Protocol):
    """A small model's memory of one answer (compute/draft_model.py)."""

    def read(self, ids: Sequence[int]) -> None:
        """The prompt."""

    def guess(self, ids: Sequence[int], most: int, settings: Settings) -> tuple[int, ...]:
        """What may follow these, drawn with the noise that the answer's own tokens are."""


class Model(Protocol):
    """A small model that guesses what a large one says."""

    def begin(self) -> Guesser: ...


@dataclass(frozen=True, slots=True)
class Drafts:
    """That an answer is to be guessed ahead. model: by a small one too, where it pays."""

    model: Model | None = None


@dataclass(slots=True)
class Guessed:
    """What came of an answer's guesses. steps: all of its steps behind the prompt. missed: those in
    which a guess was wrong. widths: how many had so many guesses. making_s: what it took a
    small model to make those that were sent."""

    sent: int = 0
    accepted: int = 0
    steps: int = 0
    missed: int = 0
    widths: Counter[int] = field(default_factory=Counter)
    making_s: float = 0.0

    @property
    def rejected(self) -> int:
        return self.sent - self.accepted

    @property
    def share(self) -> float | None:
        """Of those that were sent, right; None: none was sent."""
        return self.accepted / self.sent if self.sent else None

    @property
    def chance(self) -> float:
        """That a guess was right where those before it were."""
        return self.accepted / max(self.accepted + self.missed, 1)


class Drafter:
    """Told what came, it says what to guess. One for an answer."""

    def __init__(self, drafts: Drafts, settings: Settings) -> None:
        self.guessed = Guessed()
        self.pace = Pace()
        self._settings = settings
        self._text = LookUp()
        self._model = None if drafts.model is None else drafts.model.begin()
        self._offers: list[Offer] = []  # of what follows position `_at`
        self._at = 0
        self._rows = 1  # of the last step
        self._making_s = 0.0  # of its guesses

    def read(self, ids: Sequence[int]) -> None:
        """The prompt, so that the first offer need not wait for it."""
        self._text.read(ids[len(self._text) :])
        if self._model is not None:
            self._model.read(ids)
            for _ in range(2):  # the first guess of all takes longer than any other
                spent_s = self._guess(ids, 1)[1]
            self.pace.made(MODEL, 1, spent_s)

    def restart(self) -> None:
        """The text was taken back: it is read anew, and what was offered is void."""
        self._text = LookUp()
        self._offers.clear()
        self._at = 0

    def took(self, rows: int, seconds: float) -> None:
        """The last step's rows, from being sent to their output."""
        self.pace.took(rows, seconds)

    def offer(self, ids: Sequence[int], most: int) -> tuple[int, ...]:
        """What to guess behind these, at most so many; often nothing."""
        self._judge(ids)
        self._text.read(ids[len(self._text) :])
        found, self._making_s = self._choose(ids, most)
        self._rows, self._at = 1 + len(found), len(ids)
        return found

    def fed(self, guesses: int) -> None:
        """A step with so many guesses was sent."""
        self.guessed.steps += 1
        self.guessed.sent += guesses
        self.guessed.widths[guesses] += 1
        self.guessed.making_s += self._making_s

    def _judge(self, ids: Sequence[int]) -> None:
        if not 0 < self._at < len(ids):  # nothing came since, where an offer is asked for again
            return
        came, foreseen = ids[self._at :], 0
        for offer in self._offers:
            pairs = zip(offer.tokens, came, strict=False)
            hits = next(
                (place for place, (one, other) in enumerate(pairs) if one != other),
                min(len(came), len(offer.tokens)),
            )
            self.pace.judged(offer.source, hits, hits < min(len(came), len(offer.tokens)))
            foreseen = max(foreseen, hits)
        self.pace.brought(self._rows, len(came), self._making_s, foreseen=foreseen)

    def _choose(self, ids: Sequence[int], most: int) -> tuple[tuple[int, ...], float]:
        """The guesses, and the seconds that it took to make them."""
        said = self._text.offer(most)
        self._offers = [] if said is None else [said]
        count, rate = (0, 0.0) if said is None else self.pace.plan(said.source, most)
        if self._model is not None:
            wanted, other = self.pace.plan(MODEL, most)
            if wanted and other > rate:
                tokens, spent_s = self._guess(ids, wanted)
                if tokens:
                    self.pace.made(MODEL, len(tokens), spent_s)
                    self._offers.append(Offer(tokens, MODEL))
                    return tokens, spent_s
        return (() if said is None else said.tokens[:count]), 0.0

    def _guess(self, ids: Sequence[int], most: int) -> tuple[tuple[int, ...], float]:
        """What the small model guesses, and the seconds that it took."""
        assert self._model is not None
        began_s = time.perf_counter()
        return self._model.guess(ids, most, self._settings), time.perf_counter() - began_s
