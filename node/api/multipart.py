"""A form with a file in it, read piece by piece: only its small fields are ever held whole.

    --boundary CRLF head CRLF CRLF body CRLF --boundary CRLF ... CRLF --boundary--

        preamble ──▶ head ──▶ body ──▶ head ...        at the last boundary: epilogue
                      Part    Data

A body may hold anything but the boundary. So what has come is given out but for an end that might
be the beginning of one, and the answer does not depend on how the bytes came in pieces.

Source: RFC 7578 (multipart/form-data), RFC 2046 section 5.1.1 (boundaries).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.message import Message
from typing import Final

from .problem import Problem, wrong

HEAD_BYTES_MAX: Final = 8 * 1024
PARTS_MAX: Final = 16
BOUNDARY_CHARS_MAX: Final = 70  # RFC 2046
KIND: Final = "multipart/form-data"
_BOUNDARY: Final = re.compile(r"[0-9a-zA-Z'()+_,\-./:=? ]*[0-9a-zA-Z'()+_,\-./:=?]")


@dataclass(frozen=True, slots=True)
class Part:
    """A field begins. filename: None where it is no file."""

    name: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class Data:
    """Some bytes of the field that has begun last."""

    content: bytes


def boundary_of(content_type: str) -> bytes:
    """What stands between the fields. Raises a Problem (415)."""
    head = Message()
    head["content-type"] = content_type
    found = head.get_param("boundary") if head.get_content_type() == KIND else None
    if not isinstance(found, str) or not 0 < len(found) <= BOUNDARY_CHARS_MAX:
        raise Problem(415, f"the body must be {KIND}, with its boundary", code="not_multipart")
    if not _BOUNDARY.fullmatch(found):
        raise Problem(415, "the boundary holds what no boundary may", code="not_multipart")
    return found.encode("ascii")


class Multipart:
    """Reads one body. Raises a Problem (400) for what is no form."""

    def __init__(self, boundary: bytes) -> None:
        self._mark = b"\r\n--" + boundary
        self._held = b"\r\n"  # the first boundary has no line before it
        self._in: str = "preamble"
        self._parts = 0

    def feed(self, piece: bytes) -> list[Part | Data]:
        """What is certain with this piece."""
        self._held += piece
        found: list[Part | Data] = []
        while self._step(found):
            pass
        return found

    def end(self) -> None:
        """The body has ended. Raises a Problem where the form has not."""
        if self._in != "epilogue":
            raise wrong("the form breaks off before its last boundary", code="bad_form")

    def _step(self, found: list[Part | Data]) -> bool:
        """Whether there may be more to take of what is held."""
        match self._in:
            case "preamble" | "body":
                return self._until_mark(found)
            case "mark":
                return self._behind_mark()
            case "head":
                return self._head(found)
        self._held = b""  # the epilogue is nobody's
        return False

    def _until_mark(self, found: list[Part | Data]) -> bool:
        at = self._held.find(self._mark)
        if at >= 0:
            content, self._held = self._held[:at], self._held[at + len(self._mark) :]
        else:
            keep = len(self._mark) - 1
            content, self._held = self._held[:-keep], self._held[-keep:]
        if content and self._in == "body":
            found.append(Data(content))
        if at >= 0:
            self._in = "mark"
        return at >= 0

    def _behind_mark(self) -> bool:
        if len(self._held) < 2:
            return False
        if self._held[:2] == b"--":
            self._in = "epilogue"
            return True
        line = self._held.lstrip(b" \t")  # RFC 2046: padding that a gateway added
        if len(line) < 2:
            if len(self._held) > HEAD_BYTES_MAX:
                raise wrong("a boundary is followed by too much padding", code="bad_form")
            return False
        if line[:2] != b"\r\n":
            raise wrong("a boundary is followed by what is no field", code="bad_form")
        self._held, self._in = line, "head"  # the line's end stays: a head may have no lines
        return True

    def _head(self, found: list[Part | Data]) -> bool:
        head, end, rest = self._held.partition(b"\r\n\r\n")
        if len(head) > HEAD_BYTES_MAX:
            raise wrong(f"the head of a field is above {HEAD_BYTES_MAX} bytes", code="bad_form")
        if not end:
            return False
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise wrong(f"the form has more than {PARTS_MAX} fields", code="bad_form")
        found.append(_part(head))
        self._held, self._in = rest, "body"
        return True


def _part(head: bytes) -> Part:
    message = Message()
    for line in head.decode("utf-8", "replace").split("\r\n"):
        field, colon, value = line.partition(":")
        if colon and field.strip().lower() == "content-disposition":
            message["content-disposition"] = value.strip()
    kind = message.get_content_disposition()
    name, filename = (_told(message, one) for one in ("name", "filename"))
    if kind != "form-data" or name is None:
        raise wrong("a field of the form has no name", code="bad_form")
    return Part(name, filename)


def _told(message: Message, name: str) -> str | None:
    """One parameter of the disposition."""
    found = message.get_param(name, None, "content-disposition")
    if isinstance(found, tuple):  # RFC 5987: a charset, a language, and the text
        return found[2]
    if not isinstance(found, str):
        return None
    for code, plain in (("%22", '"'), ("%0D", "\r"), ("%0A", "\n")):  # as browsers write them
        found = found.replace(code, plain)
    return found
