"""The client's arithmetic in one place: prompt to payloads, a hidden state to the next token.

Everything here may block; the client runs it on its worker's thread, one call a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...errors import UserError
from .checkpoint import Checkpoint, open_checkpoint
from .head import Ends
from .sampling import Settings, pick
from .tensor import pack, unpack
from .text import Text

Logits = Tensor  # one for each token of the vocabulary
DTYPE = "f32"  # lossless on the wire: what the servers compute in


@dataclass(frozen=True, slots=True)
class Voice:
    """A model's tokenizer, embedding and head: all of it that a client needs."""

    name: str
    digest: str
    ends: Ends
    text: Text
    wire: str = DTYPE  # how its rows lie on the wire (swarm/rows.py)

    @staticmethod
    def load(ref: str | Path, *, offline: bool = False, home: Path | None = None) -> Voice:
        """Open a checkpoint and load its two ends. Raises UserError."""
        return Voice.of(open_checkpoint(ref, offline=offline, home=home))

    @staticmethod
    def of(checkpoint: Checkpoint) -> Voice:
        text = Text.load(checkpoint)
        return Voice(checkpoint.name, checkpoint.digest(), Ends.load(checkpoint), text)

    @property
    def width(self) -> int:
        return self.ends.spec.hidden

    @property
    def blocks(self) -> int:
        return self.ends.spec.blocks

    @property
    def context(self) -> int:
        return self.ends.spec.context

    def prompt(self, prompt: str) -> list[int]:
        """Token ids of a prompt. Raises UserError when it is empty."""
        if not prompt:
            raise UserError("the prompt is empty; give some text to continue")
        return self.check(self.text.encode(prompt))

    def check(self, ids: Sequence[int]) -> list[int]:
        """The ids, if a model can be fed with them. Raises UserError."""
        vocabulary = self.ends.spec.vocab
        if not ids:
            raise UserError("the prompt is empty; give some text to continue")
        if not all(0 <= token < vocabulary for token in ids):
            raise UserError(f"a token id is outside the vocabulary 0..{vocabulary - 1}")
        if len(ids) >= self.context:
            raise UserError(
                f"the prompt has {len(ids)} tokens, but {self.name} has a context of "
                f"{self.context}; shorten it"
            )
        return list(ids)

    def embed(self, ids: Sequence[int]) -> memoryview:
        """The hidden states that go into block 0, as a payload."""
        return pack(self.ends.embed(ids), self.wire)

    def next_token(
        self,
        payload: bytes | bytearray | memoryview,
        settings: Settings,
        position: int,
        history: Sequence[int],
    ) -> tuple[int, memoryview]:
        """From the last block's output for one row: the token at `position`, and its embedding."""
        logits = self.ends.logits(unpack(payload, 1, self.width, self.wire))
        token = self.choose(logits, settings, position, history)
        return token, self.embed([token])

    def choose(
        self, logits: Logits, settings: Settings, position: int, history: Sequence[int]
    ) -> int:
        """The token at `position`. Raises UserError."""
        return pick(logits, settings, position, history)
