"""Tool calls in a text that comes piece by piece.

    Let me look.<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>     Hermes, Qwen
    {"name": "f", "parameters": {}}                                           Llama 3.1
    [{"name": "f", "arguments": {}}]                                          Mistral

What may still become a call is held back; what turns out to be none is text after all.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

from ..compute.text import overlap
from .asked import Tools

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Call:
    """One call. arguments: an object, as JSON text."""

    id: str
    name: str
    arguments: str


class CallReader:
    """Reads one answer. After `finish`, `calls` is all of them."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._names = {one["name"] for one in tools.functions}
        self._held = ""
        self._inside = False
        self._said = False  # something that is no call stands at the beginning
        self.calls: list[Call] = []

    def push(self, text: str) -> tuple[str, list[Call]]:
        """The text and the calls that are certain now."""
        self._held += text
        return self._read_tagged() if self._tools.tagged else self._read_bare()

    def finish(self) -> tuple[str, list[Call]]:
        """What was held back, when no more comes."""
        held, self._held = self._held, ""
        if self._tools.tagged:
            if not self._inside:
                return held, []
            found = self._calls(held)
            return ("", found) if found else (_OPEN + held, [])
        found = [] if self._said else self._calls(held)
        return ("", found) if found else (held, [])

    def _read_tagged(self) -> tuple[str, list[Call]]:
        text, calls = "", list[Call]()
        while True:
            mark = _CLOSE if self._inside else _OPEN
            before, found, after = self._held.partition(mark)
            if not found:
                break
            self._held = after
            if self._inside:
                new = self._calls(before)
                calls += new
                text += "" if new else _OPEN + before + _CLOSE
            else:
                text += before
            self._inside = not self._inside
        if not self._inside:
            keep = overlap(self._held, _OPEN)
            text += self._held[: len(self._held) - keep]
            self._held = self._held[len(self._held) - keep :]
        # blanks around the tags are theirs
        return ("" if (calls or self.calls) and not text.strip() else text), calls

    def _read_bare(self) -> tuple[str, list[Call]]:
        start = self._held.lstrip()[:1]
        if not self._said and start in ("", "{", "["):
            return "", []
        self._said = True
        text, self._held = self._held, ""
        return text, []

    def _calls(self, text: str) -> list[Call]:
        """The calls that this JSON is, of functions that were offered; none if it is not."""
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            return []
        found = [self._call(one) for one in (told if isinstance(told, list) else [told])]
        calls = [one for one in found if one is not None]
        if len(calls) < len(found):
            return []
        room = len(calls) if self._tools.many else max(0, 1 - len(self.calls))
        self.calls += calls[:room]
        return calls[:room]

    def _call(self, told: Any) -> Call | None:
        if not isinstance(told, dict) or told.get("name") not in self._names:
            return None
        arguments = told.get("arguments", told.get("parameters", {}))
        if isinstance(arguments, str):
            return Call(_call_id(), told["name"], arguments)
        return Call(_call_id(), told["name"], json.dumps(arguments, ensure_ascii=False))


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"
