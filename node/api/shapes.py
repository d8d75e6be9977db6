"""Answers in OpenAI's shapes: whole, or chunk by chunk.

Source: OpenAI's API reference, the objects chat.completion, chat.completion.chunk and
text_completion. `potluck` beside them is our own: the seed that was drawn with, and what happened
on the way.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

from ..compute.sampling import Likely
from ..drafting import Guessed
from .asked import Wish
from .calls import Call, CallReader
from .grammar import Tokens
from .hearing import Said

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Delta:
    """What one token adds to a choice. finish: set with the last one."""

    index: int
    text: str
    calls: tuple[Call, ...]
    notes: tuple[Likely, ...]
    finish: str | None


@dataclass(slots=True)
class Choice:
    """One answer, as far as it came."""

    index: int
    prompt: str  # that is told again before the answer: of echo
    reader: CallReader | None
    text: str = ""
    calls: list[Call] = field(default_factory=list)
    notes: list[Likely] = field(default_factory=list)
    finish: str | None = None
    exact: bool = True
    recoveries: int = 0
    tokens: int = 0
    guessed: Guessed | None = None
    place: int = 0  # where in the text the next token begins, of those that were told one by one

    def __post_init__(self) -> None:
        self.place = len(self.prompt)

    def hear(self, said: Said) -> Delta:
        piece = said.piece
        self.tokens += 1
        self.exact, self.recoveries = said.exact, said.recoveries
        self.guessed = said.guessed
        text, calls = piece.text, list[Call]()
        if self.reader is not None:
            text, calls = self.reader.push(text)
            if piece.finish is not None:
                rest, more = self.reader.finish()
                text, calls = text + rest, calls + more
        if self.tokens == 1:
            text = self.prompt + text
        # the token that ends the text is no part of it
        notes = (said.note,) if said.note is not None and piece.finish != "eos" else ()
        self.text += text
        self.calls += calls
        self.notes += notes
        if piece.finish is not None:
            ended = "length" if piece.finish == "length" else "stop"
            self.finish = "tool_calls" if self.calls and ended == "stop" else ended
        return Delta(self.index, text, tuple(calls), notes, self.finish)


class Shape(Protocol):
    """One kind of answer."""

    def begin(self, choice: Choice) -> Json | None:
        """The chunk before a choice's first, if there is one."""

    def chunk(self, delta: Delta, choice: Choice) -> Json | None:
        """None when there is nothing to tell."""

    def end(self, choice: Choice) -> Json | None:
        """The chunk after a choice's last, if there is one."""

    def whole(self, choices: Sequence[Choice]) -> Json: ...

    def about(self, **more: Any) -> Json:
        """What every chunk has in common, and `more`."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """What both kinds have in common."""

    model: str
    digest: str
    wish: Wish
    tokens: Tokens
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def frame(self, kind: str, prefix: str, more: Json) -> Json:
        return {
            "id": f"{prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"potluck-{self.digest[:12]}",
            **more,
        }

    def name_of(self, token: int) -> str:
        return self.tokens.bytes_of(token).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class ChatShape(_Frame):
    """chat.completion"""

    def about(self, **more: Any) -> Json:
        return self.frame("chat.completion.chunk", "chatcmpl", more)

    def begin(self, choice: Choice) -> Json | None:
        return self._chunk(choice.index, {"role": "assistant", "content": ""}, (), None)

    def chunk(self, delta: Delta, choice: Choice) -> Json | None:
        if not delta.text and not delta.calls and not delta.notes:
            return None
        told: Json = {"content": delta.text} if delta.text or not delta.calls else {}
        if delta.calls:
            first = len(choice.calls) - len(delta.calls)
            told["tool_calls"] = [
                {"index": first + index, **_call(call)} for index, call in enumerate(delta.calls)
            ]
        return self._chunk(delta.index, told, delta.notes, None)

    def end(self, choice: Choice) -> Json | None:
        return self._chunk(choice.index, {}, (), choice.finish)

    def whole(self, choices: Sequence[Choice]) -> Json:
        return self.frame(
            "chat.completion", "chatcmpl", {"choices": [self._whole(one) for one in choices]}
        )

    def _whole(self, choice: Choice) -> Json:
        message: Json = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.calls:
            message["content"] = choice.text or None
            message["tool_calls"] = [_call(one) for one in choice.calls]
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice.notes) if self.wish.top is not None else None,
            "finish_reason": choice.finish,
        }

    def _chunk(self, index: int, delta: Json, notes: Sequence[Likely], finish: str | None) -> Json:
        choice: Json = {"index": index, "delta": delta, "finish_reason": finish}
        choice["logprobs"] = self._logprobs(notes) if notes else None
        return self.about(choices=[choice])

    def _logprobs(self, notes: Sequence[Likely]) -> Json:
        return {
            "content": [
                {
                    **self._entry(note.token, note.logprob),
                    "top_logprobs": [self._entry(*one) for one in note.top],
                }
                for note in notes
            ],
            "refusal": None,
        }

    def _entry(self, token: int, logprob: float) -> Json:
        raw = self.tokens.bytes_of(token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}


@dataclass(frozen=True, slots=True)
class CompletionShape(_Frame):
    """text_completion"""

    def about(self, **more: Any) -> Json:
        return self.frame("text_completion", "cmpl", more)

    def begin(self, choice: Choice) -> Json | None:
        return None

    def chunk(self, delta: Delta, choice: Choice) -> Json | None:
        if not delta.text and not delta.notes and delta.finish is None:
            return None
        at = choice.place
        choice.place += sum(len(self.name_of(note.token)) for note in delta.notes)
        return self.about(
            choices=[
                {
                    "index": delta.index,
                    "text": delta.text,
                    "logprobs": self._logprobs(delta.notes, at) if delta.notes else None,
                    "finish_reason": delta.finish,
                }
            ]
        )

    def end(self, choice: Choice) -> Json | None:
        return None

    def whole(self, choices: Sequence[Choice]) -> Json:
        return self.about(
            choices=[
                {
                    "index": one.index,
                    "text": one.text,
                    "logprobs": self._logprobs(one.notes, len(one.prompt))
                    if self.wish.top is not None
                    else None,
                    "finish_reason": one.finish,
                }
                for one in choices
            ]
        )

    def _logprobs(self, notes: Sequence[Likely], at: int) -> Json:
        """at: where in the text the first of them begins."""
        names = [self.name_of(note.token) for note in notes]
        return {
            "tokens": names,
            "token_logprobs": [note.logprob for note in notes],
            "top_logprobs": [
                {self.name_of(token): chance for token, chance in reversed(note.top)}
                for note in notes
            ],
            "text_offset": list(accumulate((len(name) for name in names[:-1]), initial=at))
            if names
            else [],
        }


def usage(prompt_tokens: int, choices: Sequence[Choice]) -> Json:
    """Guesses that proved wrong are told, and are no part of the completion."""
    said = sum(one.tokens for one in choices)
    guessed = [one.guessed for one in choices if one.guessed is not None]
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": said,
        "total_tokens": prompt_tokens + said,
        "completion_tokens_details": {
            "accepted_prediction_tokens": sum(one.accepted for one in guessed),
            "rejected_prediction_tokens": sum(one.rejected for one in guessed),
        },
    }


def remarks(wish: Wish, choices: Sequence[Choice], receipts: Sequence[bytes]) -> Json:
    """What OpenAI's shapes have no room for. receipts: of the choices, where they are wished."""
    told: Json = {
        "seed": wish.settings.seed,
        "exact": all(one.exact for one in choices),
        "recoveries": sum(one.recoveries for one in choices),
    }
    if wish.receipt:
        told["receipts"] = [base64.b64encode(one).decode() for one in receipts]
    return told


def _call(call: Call) -> Json:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
