"""Text to token ids, and token ids to text that is never taken back.

A token may hold half a character, and a stop string may arrive in pieces: what could still
change is held back until it cannot.

Source: the windowed decoding follows transformers' and vLLM's `detokenize_incrementally`.
"""

from collections.abc import Sequence

import tokenizers

from ...errors import UserError
from .checkpoint import Checkpoint
from .template import ChatTemplate

_CONTEXT = 6  # tokens of the prompt that are the left context of the first: as in transformers
_WINDOW_MAX = 64  # tokens; guess: far more than any character, a small decode
_BROKEN = "\ufffd"


class Text:
    """A model's tokenizer, its end-of-text ids and its chat template."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        *,
        template: ChatTemplate | None,
        eos: frozenset[int],
    ) -> None:
        self.eos = eos
        self._tokenizer = tokenizer
        self._template = template

    @staticmethod
    def load(checkpoint: Checkpoint) -> "Text":
        """The tokenizer of a model. Raises UserError when it is missing or of another model."""
        path = checkpoint.path("tokenizer.json")
        if path is None:
            raise UserError(
                f"{checkpoint.name}: tokenizer.json is missing; save the tokenizer in this format"
            )
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing narrower
            raise UserError(f"{path}: is not a tokenizer ({error}); download it again") from error
        spec = checkpoint.spec
        top = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if top >= spec.vocab:
            raise UserError(
                f"{path}: has token id {top}, but the model knows {spec.vocab} tokens;"
                " the tokenizer is of another model, put back the model's own"
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        eos = set(spec.eos) | _ids(checkpoint.generation.get("eos_token_id"))
        return Text(
            tokenizer,
            template=ChatTemplate.load(checkpoint),
            eos=frozenset(eos),
        )

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a prompt. special: add what the model expects around a text (its bos)."""
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids of a conversation ({role, content} each), up to where the model is to answer."""
        if self._template is None:
            raise UserError("this model has no chat template; use generate")
        return self.encode(self._template.render(messages), special=False)

    def same_words(self, other: "Text") -> bool:
        """Whether each id means the same in both."""
        mine, theirs = (one._tokenizer.get_vocab(with_added_tokens=True) for one in (self, other))
        return mine == theirs

    def decode(self, ids: Sequence[int]) -> str:
        """The whole text of these ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def stream(self, prompt: Sequence[int], stops: Sequence[str] = ()) -> "Stream":
        """A stream of text that continues `prompt`, and ends before any of `stops`."""
        return Stream(self, prompt, stops)


class Stream:
    """Token ids in, certain text out.

    Only a window of ids is decoded: those since the one before last point where nothing was held,
    so that it starts at a whole character and has left context (some decoders strip the first
    space they see).
    """

    def __init__(self, text: Text, prompt: Sequence[int], stops: Sequence[str]) -> None:
        if any(not stop for stop in stops):
            raise UserError("a stop string is empty; give one with at least a character")
        self.stopped = False  # a stop string has appeared: nothing more comes
        self._text = text
        self._ids = _context(text, prompt)
        self._settled = len(self._ids)  # how many of the window's ids are out as text
        self._shown = text.decode(self._ids)  # what of the window's text is already out
        self._stops = tuple(stops)
        self._held = ""  # may still become a stop string

    def push(self, token: int) -> str:
        """The text that is certain now that `token` has come; often it is empty."""
        self._ids.append(token)
        now = self._text.decode(self._ids)
        # an endless run of broken bytes is shown as it is: no character needs so many tokens
        patient = len(self._ids) < _WINDOW_MAX
        sure = now.rstrip(_BROKEN) if patient else now
        new = sure[len(self._shown) :]
        self._shown += new
        if sure == now:
            self._ids = self._ids[self._settled :]
            self._settled = len(self._ids)
            self._shown = self._text.decode(self._ids)
        return self._release(new)

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        if self.stopped:
            return ""
        new = self._text.decode(self._ids)[len(self._shown) :]
        text = self._release(new)
        rest = "" if self.stopped else self._held
        self._held = ""
        return text + rest

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        # the stop that is complete first; of several that end together the longest
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _context(text: Text, prompt: Sequence[int]) -> list[int]:
    """The last ids of a prompt, from where a character begins."""
    for size in range(_CONTEXT, _CONTEXT + 4):  # a character is at most four bytes
        if not text.decode(prompt[-size:]).startswith(_BROKEN):
            return list(prompt[-size:])
    return list(prompt[-_CONTEXT:])


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are a beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def _ids(value: object) -> set[int]:
    found = value if isinstance(value, list) else [value]
    return {one for one in found if isinstance(one, int)}
