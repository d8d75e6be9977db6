"""The page over HTTP: its files, and what it is told by server-sent events.

    /                      the page; needs no key, for it tells nothing by itself
    /dashboard/NAME        its script, style and icon
    /dashboard/events      what is seen, as it changes: a line of JSON each; needs the key

The page reads the events by fetch, so that the key goes in a header and never into a URL. Its
policy lets it load nothing, and send nothing, but from and to where it came from.

Source: W3C, "Content Security Policy Level 3"; WHATWG HTML, 9.2 "Server-sent events".
"""

from __future__ import annotations

from contextlib import aclosing
from importlib.resources import files
from typing import Final

import trio

from ..api.asking import Asking, while_there
from ..api.problem import Problem
from ..api.routes import Route, get
from .watch import PAGES_MAX, Watch

FULL_RETRY_S: Final = 2.0
EVENTS: Final = "text/event-stream"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for "
    "'script'"
)
HEADERS: Final = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
)
_KINDS: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
INDEX: Final = "index.html"


def load_static() -> dict[str, tuple[str, bytes]]:
    """By name: kind and content. Blocks."""
    found: dict[str, tuple[str, bytes]] = {}
    for one in (files(__package__) / "static").iterdir():
        kind = _KINDS.get(one.name.rpartition(".")[2])
        if kind is not None:
            found[one.name] = (kind, one.read_bytes())
    return found


class Page:
    """The handlers. stopping: once it is set, no page is held any more."""

    def __init__(self, watch: Watch, stopping: trio.Event, *, keyed: bool) -> None:
        self._watch = watch
        self._stopping = stopping
        self._static = load_static()
        if keyed:  # the page asks for the key before it asks for anything else
            kind, content = self._static[INDEX]
            marked = content.replace(b'data-keyed="no"', b'data-keyed="yes"')
            self._static[INDEX] = (kind, marked)

    def routes(self) -> tuple[Route, ...]:
        return (
            get("/", self._index, needs_key=False),
            get("/dashboard", self._index, needs_key=False),
            get("/dashboard/events", self._events),
            get("/dashboard/{name}", self._file, needs_key=False),
        )

    async def _index(self, asking: Asking) -> None:
        await self._send(asking, INDEX)

    async def _file(self, asking: Asking) -> None:
        await self._send(asking, asking.found["name"])

    async def _send(self, asking: Asking, name: str) -> None:
        if name not in self._static:
            raise Problem(404, f"there is no {name[:80]!r} here", code="unknown_url")
        kind, content = self._static[name]
        await asking.reply(200, content, kind, HEADERS)

    async def _events(self, asking: Asking) -> None:
        if self._watch.pages >= PAGES_MAX:
            raise Problem(
                429, f"{self._watch.pages} pages are open, which is the most", code="pages_full",
                retry_after_s=FULL_RETRY_S,
            )  # fmt: skip

        async def work() -> None:
            await asking.start(200, EVENTS, HEADERS)
            with self._watch.page():
                async with aclosing(self._watch.news(self._stopping)) as news:
                    async for text in news:
                        await asking.event(text)
            await asking.event('{"part":"end","facts":null}', last=True)

        await while_there(asking, work)
