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
from typing import Final, Protocol

import trio

from ..swarm.draft import LookUp, Offer
from ..swarm.draft_pace import GUESSES_MAX, Pace
from .compute.sampling import Settings

MODEL = "model"  # the source of what a small model guesses
# A step ahead that is right saves half a round trip, one that is not may cost a whole one.
SURE: Final = 0.7
TOGETHER: Final = 0.25  # guess: of a step's time; what is sent within it is one step, to the road


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
    """What came of an answer's guesses. steps: all of its steps behind the prompt; two of which the
    second was sent with the first are one. missed: those in which a guess was wrong. widths: how
    many had so many guesses. making_s: what it took a small model to make those that were sent.
    ahead: steps that were sent before the one before them was confirmed, and were right so far."""

    sent: int = 0
    accepted: int = 0
    steps: int = 0
    missed: int = 0
    widths: Counter[int] = field(default_factory=Counter)
    making_s: float = 0.0
    ahead: int = 0

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
        self._width, self._fed_s = 0, 0.0  # of the last step of its own: guesses, when it was sent

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
        self.guessed.sent += guesses
        self.guessed.making_s += self._making_s
        self._counts(guesses)
        self._fed_s = trio.current_time()

    def ahead(self, guesses: tuple[int, ...], most: int) -> tuple[int, ...]:
        """What to send behind a step with these guesses before its answer is here, at most so many;
        often nothing. Only what was said before: it costs no time to guess."""
        said = self._text.offer(len(guesses) + 1 + min(most, GUESSES_MAX))
        if said is None or said.tokens[: len(guesses)] != guesses:
            return ()
        wide = self.pace.choose(said.source, most)
        if not wide or self.pace.chance(said.source) ** (1 + len(guesses)) < SURE:
            return ()
        block = said.tokens[len(guesses) :][: min(most, 1 + wide)]
        self.guessed.sent += len(block)
        return block

    def reached(self, ids: Sequence[int], guesses: int, sent_s: float) -> None:
        """A step that was sent ahead is the next one, with so many guesses behind its first."""
        self._judge(ids)
        self._text.read(ids[len(self._text) :])
        said = self._text.offer(guesses)
        self._offers = [] if said is None else [said]
        self._rows, self._at, self._making_s = 1 + guesses, len(ids), 0.0
        self.guessed.ahead += 1
        line = self.pace.line
        if line.weight and sent_s - self._fed_s < TOGETHER * line.at(1):
            self.guessed.steps -= 1
            self.guessed.widths[self._width] -= 1
            guesses += 1 + self._width
        else:
            self._fed_s = sent_s
        self._counts(guesses)

    def _counts(self, guesses: int) -> None:
        self._width = guesses
        self.guessed.steps += 1
        self.guessed.widths[guesses] += 1

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
