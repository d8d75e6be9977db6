"""One request on its way: who may ask, what came with it, and how it is answered.

    scope ─▶ Asking ── Guard.admit ──▶ body, pieces ──▶ reply, or start and event after event

Whatever is read has a limit and a deadline; whatever is wrong is a Problem, told in OpenAI's shape.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import trio

from .http import ClientGone, Message, Receive, Send
from .problem import Problem, wrong

BODY_BYTES_MAX = 8 * 1024 * 1024  # guess: a million tokens of text
BODY_S = 60.0
QUERY_FIELDS_MAX: Final = 32
HERE = ("localhost", "127.0.0.1", "[::1]")
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Guard:
    """Who may ask. keys: any of them; none: whoever reaches us. here: only by this machine's own
    names, so that no web page can have a browser ask for it (DNS rebinding), and no page but our
    own (forgery across sites)."""

    keys: tuple[str, ...] = ()
    here: bool = True

    def admit(self, headers: Mapping[str, str], *, is_open: bool) -> None:
        """is_open: what is asked for needs no key. Raises a Problem."""
        if self.here:
            host = headers.get("host", "").lower()
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name not in HERE:
                raise Problem(
                    403,
                    f"without a key only {', '.join(HERE)} are answered, not {host[:80]!r}",
                    code="wrong_host",
                    param=None,
                )
            # a form of another's page can be sent here without the browser's asking first
            origin = headers.get("origin")
            if origin is not None and _place_of(origin) != host:
                raise Problem(
                    403, f"pages of {origin[:80]!r} are not answered", code="wrong_origin"
                )
        if not self.keys or is_open:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        told = given.strip().encode("latin-1", "replace") if kind.lower() == "bearer" else b""
        # all are compared, whichever fits: the time tells nothing
        if not any([hmac.compare_digest(told, one.encode()) for one in self.keys]):
            raise Problem(
                401,
                "the key is wrong" if told else "a key is needed: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers=(("www-authenticate", "Bearer"),),
            )


@dataclass(slots=True)
class Asking:
    """One request on its way."""

    method: str
    path: str
    headers: dict[str, str]
    receive: Receive
    send: Send
    query: str = ""
    found: Mapping[str, str] = field(default_factory=dict)  # what the path names, by the route
    began_s: float = field(default_factory=trio.current_time)
    status: int = 0
    ended: bool = False  # all of the answer was handed on: whoever hangs up now was served

    def asked(self) -> dict[str, str]:
        """What stands behind the question mark. Raises a Problem."""
        try:
            told = parse_qsl(self.query, keep_blank_values=True, max_num_fields=QUERY_FIELDS_MAX)
        except ValueError as error:
            raise wrong(f"the query has more than {QUERY_FIELDS_MAX} fields") from error
        return dict(told)

    async def json(self) -> bytes:
        """The body, if it says that it is JSON: what a form of a web page can send never does.
        Raises a Problem, or ClientGone."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON:
            raise Problem(
                415, f"the body must be {JSON}, not {kind[:80] or 'untyped'}", code="not_json"
            )
        return await self.body()

    async def body(self) -> bytes:
        """All of it. Raises a Problem, or ClientGone."""
        with trio.move_on_after(BODY_S):
            return b"".join([piece async for piece in self.pieces(BODY_BYTES_MAX)])
        raise Problem(408, f"the body did not come within {BODY_S:.0f} s", code="too_slow")

    async def pieces(self, most: int) -> AsyncGenerator[bytes, None]:
        """The body as it comes, at most so many bytes. Raises a Problem, or ClientGone."""
        size = self.headers.get("content-length", "0")
        if size.isdigit() and int(size) > most:
            raise too_large(most)
        total, more = 0, True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = bytes(message.get("body", b""))
            total += len(piece)
            if total > most:
                raise too_large(most)
            more = message.get("more_body", False)
            yield piece

    async def reply(
        self,
        status: int,
        body: bytes,
        kind: str = JSON,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        size = ("content-length", str(len(body)))
        await self.start(status, kind, [size, *headers])
        await self.end(body)

    async def tell(self, told: Mapping[str, Any]) -> None:
        """An answer as JSON."""
        await self.reply(200, json.dumps(told, ensure_ascii=False).encode("utf-8", "replace"))

    async def start(self, status: int, kind: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        self.status = status
        told = [("content-type", kind), ("cache-control", "no-store"), *headers]
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in told]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})

    async def event(self, data: str, *, last: bool = False) -> None:
        """One server-sent event. The last goes out in one piece with the end of the answer, since
        clients hang up as soon as they have read it."""
        body = f"data: {data}\n\n".encode()
        if last:
            await self.end(body)
        else:
            await self.send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes = b"") -> None:
        """The last of the answer. Raises ClientGone."""
        self.ended = True
        await self.send({"type": "http.response.body", "body": body})

    async def complain(self, problem: Problem) -> None:
        """The error, as an answer or, where one has begun, as its last event."""
        if self.status:
            await self.event(json.dumps(problem.body), last=True)
            return
        told = json.dumps(problem.body, ensure_ascii=False).encode("utf-8", "replace")
        await self.reply(problem.status, told, headers=problem.headers)


Handler = Callable[[Asking], Awaitable[None]]


async def while_there(asking: Asking, work: Callable[[], Awaitable[None]]) -> None:
    """Work until it is done, or the client is gone: then ClientGone is raised."""
    failure: Exception | None = None
    gone = False
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            nonlocal gone
            await _until_gone(asking.receive)
            if not asking.ended:
                gone = True
                nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            await work()
        except Exception as error:  # the nursery would wrap it in a group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if gone:
        raise ClientGone


def _place_of(origin: str) -> str:
    """The host and port of an origin; empty for what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # half an IPv6 address
        return ""


async def _until_gone(receive: Receive) -> None:
    message: Message = {}
    while message.get("type") != "http.disconnect":
        message = await receive()


def too_large(most: int) -> Problem:
    return Problem(413, f"the body is above {most >> 20} MiB", code="request_too_large")
