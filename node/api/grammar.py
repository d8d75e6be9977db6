"""Which tokens may come next, so that the whole is JSON of a given schema.

The automaton is llguidance's (guidance-ai; the one that llama.cpp, vLLM and SGLang can use): it
parses by Earley over the bytes of tokens, knows most of JSON Schema, bounds its own work, and says
which part of a schema it does not know. It runs at the client: no server learns of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ..compute.voice import Voice

# A space may follow a comma or a colon, nothing else: a small model would write blanks for ever.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ",[ ]?", "key_separator": ":[ ]?"}
ANY_OBJECT: dict[str, Any] = {"type": "object"}


class Tokens:
    """The bytes of a model's tokens. A tokenizer that the automaton cannot read answers all but
    schemas."""

    def __init__(self, path: Path, voice: Voice) -> None:
        """path: of tokenizer.json."""
        self._text = voice.text
        self._eos = sorted(voice.text.eos)
        self._vocabulary = voice.ends.spec.vocab
        self._tokens: llguidance.LLTokenizer | None = None
        self._why = ""
        try:
            self._tokens = llguidance.LLTokenizer(
                path.read_text("utf-8"), n_vocab=self._vocabulary, eos_token=self._eos or None
            )
        except Exception as error:  # llguidance raises nothing narrower
            self._why = _one_line(str(error))

    def bytes_of(self, token: int) -> bytes:
        """Of half a character too, where the tokenizer can be read."""
        if self._tokens is None:
            return self._text.decode([token]).encode()
        return bytes(self._tokens.decode_bytes([token]))

    def constraint(self, grammar: str) -> Constraint:
        """A new walk through a grammar. Raises UserError for one that cannot be walked."""
        if self._tokens is None:
            raise UserError(f"no schema can be kept with this model's tokenizer: {self._why}")
        matcher = llguidance.LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise UserError(f"the schema cannot be kept: {_one_line(matcher.get_error())}")
        return Constraint(matcher, self._eos, self._vocabulary)


class Constraint:
    """One answer's walk through a grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, eos: list[int], vocabulary: int) -> None:
        self._matcher = matcher
        self._eos = eos
        self._vocabulary = vocabulary

    def allowed(self) -> NDArray[np.bool_]:
        """(vocab,): what may come now; the end alone when all is said. Raises UserError."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise UserError(f"the schema is too much: {_one_line(self._matcher.get_error())}")
        found = np.unpackbits(bits, count=self._vocabulary, bitorder="little").astype(np.bool_)
        if self._matcher.is_accepting():
            found[self._eos] = True
        if not found.any():
            raise UserError("no token of this model goes on as the schema says")
        return found

    def take(self, token: int) -> None:
        """The token that was chosen."""
        if token not in self._eos:
            self._matcher.consume_token(token)


def schema_grammar(schema: dict[str, Any]) -> str:
    """The grammar of the JSON that a schema describes."""
    return json.dumps(
        {"grammars": [{"json_schema": {**schema, "x-guidance": _LAYOUT}}]}, ensure_ascii=True
    )


def calls_grammar(functions: list[dict[str, Any]], *, tagged: bool, arguments: str) -> str:
    """The grammar of a call of one of these functions ({name, parameters} each)."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": one["name"]},
                arguments: one.get("parameters") or ANY_OBJECT,
            },
            "required": ["name", arguments],
            "additionalProperties": False,
        }
        for one in functions
    ]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if not tagged:
        return schema_grammar(schema)
    told = json.dumps({**schema, "x-guidance": _LAYOUT}, ensure_ascii=True)
    lark = f'start: "<tool_call>\\n" call "\\n</tool_call>"\ncall: %json {told}\n'
    return json.dumps({"grammars": [{"lark_grammar": lark}]})


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
