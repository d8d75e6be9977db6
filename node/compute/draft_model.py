"""A small model in this process that guesses what a large one says.

It has the large one's words, token for token, and draws them with the noise that the answer's own
tokens are drawn with (sampling.py): where the two models agree on what is likely they draw the same
token, sampled too, and not only where a greedy guess would be right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...errors import UserError
from .cache import Cache
from .checkpoint import open_checkpoint
from .head import Ends
from .sampling import Settings, pick
from .stage import Stage
from .text import Text

_CHUNK_TOKENS = 256  # of a prompt in one pass: bounds its memory


@dataclass(frozen=True, slots=True)
class DraftModel:
    """All blocks of a model, and its ends. Answers share it, from one thread."""

    name: str
    stage: Stage
    ends: Ends

    @staticmethod
    def load(ref: str | Path, words: Text, *, offline: bool = False) -> DraftModel:
        """words: of the model whose answers it guesses. Raises UserError, when it has others."""
        checkpoint = open_checkpoint(ref, offline=offline)
        if not Text.load(checkpoint).same_words(words):
            raise UserError(
                f"{checkpoint.name} cannot guess for this model: it has other tokens; give a "
                "smaller model of the same family"
            )
        stage = Stage.load(checkpoint, 0, checkpoint.spec.blocks)
        return DraftModel(checkpoint.name, stage, Ends.load(checkpoint))

    def begin(self) -> Guessing:
        return Guessing(self)


class Guessing:
    """One answer, as the small model has read it."""

    def __init__(self, model: DraftModel) -> None:
        self._model = model
        self._cache: Cache | None = None
        self._read: list[int] = []  # what the cache holds

    def read(self, ids: Sequence[int]) -> None:
        """A text that will be gone on with, as far as it fits in the small model's context."""
        stop = min(len(ids), self._model.stage.spec.context)
        for at in range(0, stop, _CHUNK_TOKENS):
            self._forward(ids[: min(stop, at + _CHUNK_TOKENS)])

    def guess(self, ids: Sequence[int], most: int, settings: Settings) -> tuple[int, ...]:
        """At most so many; none beyond the small model's context."""
        most = min(most, self._model.stage.spec.context - len(ids))
        text, found = list(ids), list[int]()
        while len(found) < most:
            logits = self._model.ends.logits(self._forward(text)[-1])
            found.append(pick(logits, settings, len(text), text))
            text.append(found[-1])
        return tuple(found)

    def _forward(self, text: Sequence[int]) -> Tensor:
        """The last block's rows, for what of the text it has not read yet."""
        stage = self._model.stage
        if self._cache is None:
            self._cache = stage.open_cache(0, stage.spec.blocks, stage.spec.context)
        at = self._common(text)
        out = stage.forward(self._model.ends.embed(text[at:]), self._cache, at)
        self._read[at:] = text[at:]
        return out

    def _common(self, text: Sequence[int]) -> int:
        """Up to where it has read this very text; the last token is read again at least."""
        both = min(len(self._read), len(text) - 1)
        pairs = zip(self._read[:both], text, strict=False)
        return next((place for place, (one, other) in enumerate(pairs) if one != other), both)
