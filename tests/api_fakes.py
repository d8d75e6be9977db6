"""A swarm of one pretended model, for tests of the API.

The ends are the demo's own. What its blocks would give is a sum of all that was fed, so an answer
depends on every token before it, and is drawn by the real generation code.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import trio
import trio.testing

from potluck.node.api.app import Api
from potluck.node.api.backend import Offer
from potluck.node.api.check import check
from potluck.node.api.language import Language
from potluck.node.api.problem import no_model
from potluck.node.api.responses import ANSWERS
from potluck.node.api.schemas import PARTS
from potluck.node.api.schemas_jobs import JOB_ANSWERS, JOB_PARTS
from potluck.node.compute.template import ChatTemplate
from potluck.node.compute.voice import Voice
from potluck.node.generation import Generation, Piece, Request
from potluck.node.library import DEMO_FOLDER, Shelf

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
ASKED = {"model": "demo", "prompt": "The function returns", "max_tokens": 12, "seed": 7}
TALK = {
    "model": "demo",
    "messages": [{"role": "user", "content": "What does len do?"}],
    "max_tokens": 12,
    "seed": 7,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is",
        "parameters": {
            "type": "object",
            "properties": {"town": {"enum": ["Rome", "Oslo"]}},
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}
TOOL_TEMPLATE = (
    "{% if tools %}Tools: {{ tools | tojson }} <tool_call>{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments.items() | list }}{% endfor %}"
    "{{ '\\n' }}{% endfor %}assistant:"
)


@cache
def demo() -> Language:
    shelf = Shelf(str(DEMO_FOLDER), "demo")
    voice = replace(Voice.load(DEMO_FOLDER), name="demo")
    return Language.load(shelf, voice, offline=True, home=Path("/nonexistent"))


def with_tools() -> Language:
    return replace(demo(), template=ChatTemplate(TOOL_TEMPLATE, TOOL_TEMPLATE, {}))


class Inline:
    """A worker without a thread."""

    async def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return fn(*args)


class Interrupting(Inline):
    """A worker whose every other call finds that its caller has no more time."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.calls = 0

    async def run(self, fn, *args):  # type: ignore[no-untyped-def]
        self.calls += 1
        if self.calls % 2:
            self.scope.cancel()
        return await super().run(fn, *args)


class PretendedSession:
    """What a Generation needs of a session."""

    def __init__(self, width: int, failing: Exception | None, after: int) -> None:
        self.route = ()
        self.recoveries: list[object] = []
        self.exact = True
        self.chained = self.ledger = None
        self.rows_alike = 8
        self.answered_s = 0.0
        self._states = [np.zeros(width, dtype=np.float32)]  # before each position, and behind all
        self._outputs: deque[bytes] = deque()
        self._failing = failing
        self._after = after

    @property
    def length(self) -> int:
        return len(self._states) - 1

    def feed(
        self, payload: memoryview, tokens: int, rows: int, at: int, *, splits: bool = False
    ) -> None:
        self.take_back(at)
        for row in np.frombuffer(payload, dtype="<f4").reshape(tokens, -1):
            self._states.append(np.roll(self._states[-1], 7) * np.float32(0.7) + row)
        self._outputs.append(b"".join(one.tobytes() for one in self._states[-rows:][:rows]))
        self.answered_s = trio.current_time() + 0.1

    def take_back(self, at: int) -> None:
        del self._states[at + 1 :]

    async def output(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if self._failing is not None and self._after == 0:
            raise self._failing
        self._after -= 1
        return self._outputs.popleft()


@dataclass
class PretendedSwarm:
    """failing: what each answer raises, after so many tokens. open: answers being made."""

    language_: Language = field(default_factory=demo)
    failing: Exception | None = None
    after: int = 0
    open: int = 0
    opened: int = 0
    neighbours: int = 3

    async def offers(self) -> tuple[Offer, ...]:
        voice = self.language_.voice
        return (Offer("demo", voice.digest, 8, 2), Offer("org/name", "f" * 64, 4, 1))

    async def language(self, name: str) -> Language:
        if name != "demo":
            raise no_model(name, "is not served here")
        return self.language_

    async def source(self, name: str) -> str:
        await self.language(name)
        return name

    async def proof(self, answer: Generation) -> bytes:
        return b"signed %d" % answer.tokens

    @asynccontextmanager
    async def answer(self, request: Request) -> AsyncIterator[Generation]:
        self.open += 1
        self.opened += 1
        try:
            session = PretendedSession(request.voice.width, self.failing, self.after)
            yield Generation(session, Inline(), request)  # type: ignore[arg-type]
        finally:
            self.open -= 1

    async def hidden(self, language: Language, ids: Sequence[int], wait_s: float) -> Any:
        await trio.lowlevel.checkpoint()
        if self.failing is not None:
            raise self.failing
        return language.voice.ends.embed(ids).mean(0).numpy()

    async def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        return await Inline().run(fn, *args)

    def peers(self) -> int:
        return self.neighbours

    async def plainly(self, request: Request) -> list[Piece]:
        """An answer without the API."""
        async with self.answer(request) as answer:
            return [piece async for piece in answer]


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Of a stream: each event's JSON, and that it ended with [DONE]."""
        told = [part.removeprefix("data: ") for part in self.body.decode().split("\n\n")[:-1]]
        assert told[-1] == "[DONE]"
        return [json.loads(one) for one in told[:-1]]


async def ask(
    api: Api,
    path: str,
    body: object = None,
    *,
    method: str = "",
    raw: bytes | None = None,
    headers: dict[str, str] | None = None,
    leave_after: int | None = None,
) -> Answer:
    """One request. leave_after: the client is gone once so many pieces of body came."""
    sent = raw if raw is not None else (b"" if body is None else json.dumps(body).encode())
    told = {"host": "localhost:11545", "content-type": "application/json"} | (headers or {})
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method or ("GET" if body is None and raw is None else "POST"),
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in told.items()],
    }
    answer, pieces, gone = Answer(), 0, trio.Event()
    messages = iter([{"type": "http.request", "body": sent, "more_body": False}])

    async def receive() -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        for message in messages:
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal pieces
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {n.decode(): v.decode("latin-1") for n, v in message["headers"]}
            return
        answer.body += message.get("body", b"")
        pieces += 1
        if leave_after is not None and pieces >= leave_after:
            gone.set()
            await trio.testing.wait_all_tasks_blocked()  # it is noticed before the sender goes on

    if leave_after == 0:
        gone.set()
    await api(scope, receive, send)
    return answer


def fits(answer: Answer, name: str) -> Any:
    """The answer's JSON, which is what the published document says."""
    assert answer.headers["content-type"] == "application/json"
    parts = {**PARTS, **JOB_PARTS, **ANSWERS, **JOB_ANSWERS}
    check(answer.json, parts[name], parts)
    return answer.json


def complaint(answer: Answer, status: int) -> dict[str, Any]:
    assert answer.status == status, answer.body
    return fits(answer, "Error")["error"]
