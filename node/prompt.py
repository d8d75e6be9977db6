"""A prompt, as text or as token ids, checked before anything is asked of the swarm."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UserError
from .compute.voice import Voice


def encode_request(voice: Voice, prompt: str | Sequence[int]) -> tuple[int, ...]:
    """The ids of a prompt given as text or as ids. Raises UserError."""
    if not isinstance(prompt, str):
        return tuple(voice.check(prompt))
    return tuple(voice.prompt(check_text(prompt, "the prompt")))


def check_text(text: str, what: str) -> str:
    """The text itself. Raises UserError when it holds what Python puts for bytes that are none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} is not text: character {error.start + 1} is no UTF-8; write it as UTF-8"
        ) from error
    return text
