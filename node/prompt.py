"""A prompt, as text or as token ids, checked and named before anything is asked of the swarm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..errors import UserError
from ..swarm.prefix import Prefix, Prompt, names_of
from ..swarm.rows import is_coded, row_bytes
from .compute.voice import Voice
from .compute.worker import Worker

EMBEDDED: Final = 1024  # guess: tokens at once, so that a long prompt is never there twice


def encode_request(voice: Voice, prompt: str | Sequence[int]) -> tuple[int, ...]:
    """The ids of a prompt given as text or as ids. Raises UserError."""
    if not isinstance(prompt, str):
        return tuple(voice.check(prompt))
    return tuple(voice.prompt(check_text(prompt, "the prompt")))


async def prompt_of(
    voice: Voice, ids: Sequence[int], prefix: Prefix, worker: Worker
) -> Prompt | None:
    """How the rows of a prompt are called, where they are to be found again: not those in groups of
    8 or 4 bits, whose sessions open under another protocol (wire.py)."""
    if prefix == "off" or is_coded(voice.wire):
        return None

    def names() -> tuple[bytes, ...]:
        pieces = (ids[at : at + EMBEDDED] for at in range(0, len(ids), EMBEDDED))
        return names_of(map(voice.embed, pieces), row_bytes(voice.width, voice.wire))

    return Prompt(await worker.run(names), len(ids), prefix == "shared")


def check_text(text: str, what: str) -> str:
    """The text itself. Raises UserError when it holds what Python puts for bytes that are none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} is not text: character {error.start + 1} is no UTF-8; write it as UTF-8"
        ) from error
    return text
