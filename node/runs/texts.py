"""The texts of a run, from its files: JSONL with a text in each line, or plain text as a whole.

What is wrong is named by file and line, all of it at once, so that a file is mended in one go.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ...errors import UserError

JSONL: Final = (".jsonl", ".ndjson")
NAMED_MAX: Final = 5  # lines in a message
LINE_BYTES_MAX: Final = 64 << 20


def read_texts(path: Path, field: str) -> list[str]:
    """The documents of a file. Blocks. Raises UserError."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file, which the run names") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    lines = raw.split(b"\n")
    if lines[-1] == b"":
        lines.pop()  # behind the last line's end
    if not raw.strip():
        raise UserError(f"{path}: is empty; give it some text, or take it out of data.files")
    texts, faults = [], []
    for number, line in enumerate(lines, 1):
        found = _object(line, field) if path.suffix in JSONL else _plain(line)
        if isinstance(found, _Fault):
            faults.append((number, found.why))
        else:
            texts.append(found)
    if faults:
        raise UserError(f"{path}: {_named(faults)}; mend or remove")
    return texts if path.suffix in JSONL else ["\n".join(texts)]


class _Fault:
    def __init__(self, why: str) -> None:
        self.why = why


def _plain(line: bytes) -> str | _Fault:
    try:
        return line.decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError:
        return _Fault("is not UTF-8")


def _object(line: bytes, field: str) -> str | _Fault:
    if not line.strip():
        return _Fault("is empty")
    if len(line) > LINE_BYTES_MAX:
        return _Fault(f"has more than {LINE_BYTES_MAX >> 20} MiB")
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError):
        return _Fault("is not JSON")
    if not isinstance(found, dict):
        return _Fault("is no JSON object")
    text = found.get(field)
    if not isinstance(text, str):
        return _Fault(f'has no text under "{field}"')
    return text if text.strip() else _Fault(f'has an empty text under "{field}"')


def _named(faults: list[tuple[int, str]]) -> str:
    """The first few, each with its number; how many more there are."""
    said = ", ".join(f"line {number} {why}" for number, why in faults[:NAMED_MAX])
    more = len(faults) - NAMED_MAX
    return said if more <= 0 else f"{said}, and {more} more lines are as bad"


def documents(paths: list[Path], field: str) -> Iterator[tuple[str, list[str]]]:
    """Of each file its name and its documents. Raises UserError."""
    for path in paths:
        yield str(path), read_texts(path, field)
