"""All that a client needs of a model: its voice, its chat template, the bytes of its tokens, and
the adapter that is worn with it, if one is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import UserError
from ...swarm.adapter import Bundle
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
    adapter: Bundle | None = None

    def wearing(self, name: str, adapter: Bundle) -> Language:
        """The same with an adapter on, as a model of its own."""
        return replace(self, voice=replace(self.voice, name=name), adapter=adapter)

    @staticmethod
    def load(shelf: Shelf, voice: Voice, *, offline: bool, home: Path) -> Language:
        """What a voice lacks, from the same files. Blocks. Raises UserError."""
        checkpoint = open_checkpoint(shelf.source, offline=offline, home=home)
        path = checkpoint.path("tokenizer.json")
        if path is None:
            raise UserError(f"{shelf.name}: tokenizer.json is missing")
        return Language(voice, ChatTemplate.load(checkpoint), Tokens(path, voice))
