"""A voice that keeps to a grammar, and notes how likely each of its words was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..compute.sampling import Likely, Settings, likely, pick
from ..compute.voice import Logits, Voice
from .grammar import Constraint


@dataclass(frozen=True, slots=True)
class Speaker(Voice):
    """The voice of one answer.

    begun: the prompt's length. constraint: what the answer must keep to. top: how many likeliest
    tokens to note beside each; None: note nothing. notes: of each token so far.
    """

    begun: int = 0
    constraint: Constraint | None = None
    top: int | None = None
    notes: list[Likely] = field(default_factory=list)

    @staticmethod
    def speaking(
        voice: Voice, *, begun: int, constraint: Constraint | None, top: int | None
    ) -> Speaker:
        own = (voice.name, voice.digest, voice.ends, voice.text, voice.wire)
        return Speaker(*own, begun, constraint, top)

    def choose(
        self, logits: Logits, settings: Settings, position: int, history: Sequence[int]
    ) -> int:
        """As `Voice.choose`; with no constraint, the same bits. Raises UserError."""
        allowed = None if self.constraint is None else self.constraint.allowed()
        token = pick(logits, settings, position, history, begun=self.begun, allowed=allowed)
        if self.constraint is not None:
            self.constraint.take(token)
        if self.top is not None:
            self.notes.append(likely(logits, token, self.top))
        return token
