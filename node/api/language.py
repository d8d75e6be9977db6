"""All that a client needs of a model: its voice, its chat template, the bytes of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError
from ..compute.checkpoint import open_checkpoint
from ..compute.template import ChatTemplate
from ..compute.voice import Voice
from ..library import Shelf
from .grammar import Tokens


@dataclass(frozen=True, slots=True)
class Language:
    """One model, loaded."""

    voice: Voice
    template: ChatTemplate | None
    tokens: Tokens

    @staticmethod
    def load(shelf: Shelf, voice: Voice, *, offline: bool, home: Path) -> Language:
        """What a voice lacks, from the same files. Blocks. Raises UserError."""
        checkpoint = open_checkpoint(shelf.source, offline=offline, home=home)
        path = checkpoint.path("tokenizer.json")
        if path is None:
            raise UserError(f"{shelf.name}: tokenizer.json is missing")
        return Language(voice, ChatTemplate.load(checkpoint), Tokens(path, voice))
