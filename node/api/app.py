"""The ASGI application: who may ask, what is asked, and what is answered.

    body ── check ──▶ Wish ── jobs ──▶ hearing ── Said ──▶ Choice ── shape ──▶ JSON, or SSE

A handler runs beside a watch on the client: once that is gone, the handler is cancelled, and with
it its sessions, so that the servers free their caches at once.
"""

from __future__ import annotations

import hmac
import json
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import trio

from ...errors import LocalError, PotluckError
from ..log import get_logger
from .answering import Answering, plan_chat, plan_completion
from .asked import Body, read_chat, read_completion
from .backend import Backend, Offer
from .embedding import embeddings, read_embedding
from .http import ClientGone, Message, Receive, Scope, Send
from .metrics import CONTENT_TYPE, Metrics
from .openapi import document
from .problem import Problem, no_model, ours, problem_of

BODY_BYTES_MAX = 8 * 1024 * 1024  # guess: a million tokens of text
BODY_S = 60.0
ANSWERS_MAX = 256  # at a time; more are told to come back
FULL_RETRY_S = 1.0
HERE = ("localhost", "127.0.0.1", "[::1]")
JSON = "application/json"
_MODEL_PATH = "/v1/models/"
_OPEN_PATHS = ("/health", "/openapi.json")  # need no key

log = get_logger()


@dataclass(frozen=True, slots=True)
class Guard:
    """Who may ask. keys: any of them; none: whoever reaches us. here: only by this machine's own
    names, so that no web page can have a browser ask for it (DNS rebinding)."""

    keys: tuple[str, ...] = ()
    here: bool = True

    def admit(self, path: str, headers: dict[str, str]) -> None:
        """Raises a Problem."""
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
        if not self.keys or path in _OPEN_PATHS:
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
    began_s: float = field(default_factory=trio.current_time)
    status: int = 0

    async def body(self) -> bytes:
        """All of it. Raises a Problem, or ClientGone."""
        size = self.headers.get("content-length", "0")
        if size.isdigit() and int(size) > BODY_BYTES_MAX:
            raise _too_large()
        parts, total = list[bytes](), 0
        with trio.move_on_after(BODY_S):
            while True:
                message = await self.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                parts.append(message.get("body", b""))
                total += len(parts[-1])
                if total > BODY_BYTES_MAX:
                    raise _too_large()
                if not message.get("more_body", False):
                    return b"".join(parts)
        raise Problem(408, f"the body did not come within {BODY_S:.0f} s", code="too_slow")

    async def reply(
        self,
        status: int,
        body: bytes,
        kind: str = JSON,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        size = ("content-length", str(len(body)))
        await self.start(status, kind, [size, *headers])
        await self.send({"type": "http.response.body", "body": body})

    async def start(self, status: int, kind: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        self.status = status
        told = [("content-type", kind), ("cache-control", "no-store"), *headers]
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in told]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})

    async def event(self, data: str, *, last: bool = False) -> None:
        """One server-sent event. The last goes out in one piece with the end of the answer, since
        clients hang up as soon as they have read it."""
        body = f"data: {data}\n\n".encode()
        await self.send({"type": "http.response.body", "body": body, "more_body": not last})


Handler = Callable[[Asking], Awaitable[None]]


class Api:
    """The application. One for a process; it keeps nothing between requests but counts."""

    def __init__(
        self, backend: Backend, guard: Guard | None = None, *, answers_max: int = ANSWERS_MAX
    ) -> None:
        self.metrics = Metrics()
        self._backend = backend
        self._guard = guard or Guard()
        self._answers_max = answers_max
        self._answers = 0
        self._began = int(time.time())
        self._document = json.dumps(document(keyed=bool(self._guard.keys))).encode()
        self._routes: dict[str, tuple[str, Handler]] = {
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._completion),
            "/v1/embeddings": ("POST", self._embeddings),
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
            "/openapi.json": ("GET", self._openapi),
        }

    @property
    def answers(self) -> int:
        """How many are being made now."""
        return self._answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ClientGone when the client left."""
        if scope["type"] != "http":
            raise LocalError(f"an ASGI server that speaks {scope['type']} is not ours")
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        asking = Asking(scope["method"], scope["path"], headers, receive, send)
        route = "unknown"
        self.metrics.open.inc()
        try:
            try:
                self._guard.admit(asking.path, headers)
                route, handler = self._route(asking)
                await handler(asking)
            except Problem as problem:
                await _complain(asking, problem)
            except PotluckError as error:
                if isinstance(error, LocalError):
                    log.error("our own fault", error=traceback.format_exc())
                await _complain(asking, problem_of(error))
            except (ClientGone, OSError):
                raise
            except (
                Exception
            ):  # the edge: one client's bad luck must not end all the others' answers
                log.error("our own fault", error=traceback.format_exc())
                await _complain(asking, ours())
        except ClientGone:
            self.metrics.left.inc()
            asking.status = 499  # nginx's number for it
            raise
        finally:
            self.metrics.open.dec()
            self.metrics.requests.labels(route, str(asking.status)).inc()

    def _route(self, asking: Asking) -> tuple[str, Handler]:
        path = asking.path.rstrip("/") or "/"
        found = self._routes.get(path)
        if found is None and asking.path.startswith(_MODEL_PATH):
            path, found = f"{_MODEL_PATH}{{model}}", ("GET", self._model)
        if found is None:
            raise Problem(404, f"there is no {asking.path[:200]!r} here", code="unknown_url")
        method, handler = found
        if asking.method != method:
            raise Problem(
                405,
                f"{path} is for {method}, not for {asking.method[:20]!r}",
                code="method_not_allowed",
                headers=(("allow", method),),
            )
        return path, handler

    async def _chat(self, asking: Asking) -> None:
        body = read_chat(await _json_of(asking))
        await self._answer(asking, body, plan_chat)

    async def _completion(self, asking: Asking) -> None:
        body = read_completion(await _json_of(asking))
        await self._answer(asking, body, plan_completion)

    async def _answer(
        self, asking: Asking, body: Body, plan: Callable[..., Awaitable[Answering]]
    ) -> None:
        async def work() -> None:
            language = await self._backend.language(body["model"])
            answering = await plan(body, language, self._backend, self.metrics, asking.began_s)
            if answering.wish.stream:
                await answering.stream(asking)
            else:
                told = await answering.whole()
                await asking.reply(200, json.dumps(told, ensure_ascii=False).encode())

        await self._watched(asking, work)

    async def _embeddings(self, asking: Asking) -> None:
        body = read_embedding(await _json_of(asking))

        async def work() -> None:
            told = await embeddings(body, self._backend, self.metrics)
            await asking.reply(200, json.dumps(told).encode())

        await self._watched(asking, work)

    async def _watched(self, asking: Asking, work: Callable[[], Awaitable[None]]) -> None:
        """Work until it is done, or the client is gone. Raises a Problem when too much is open."""
        if self._answers >= self._answers_max:
            raise Problem(
                429,
                f"{self._answers} answers are being made, which is the most",
                code="api_full",
                retry_after_s=FULL_RETRY_S,
            )
        failure: Exception | None = None
        gone = done = False
        self._answers += 1
        try:
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    nonlocal gone
                    await _until_gone(asking.receive)
                    gone = not done
                    nursery.cancel_scope.cancel()

                nursery.start_soon(watch)
                try:
                    await work()
                    done = True
                except Exception as error:  # the nursery would wrap it in a group
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            self._answers -= 1
        if failure is not None:
            raise failure
        if gone:
            raise ClientGone

    async def _models(self, asking: Asking) -> None:
        offers = await self._backend.offers()
        told = {"object": "list", "data": [self._model_of(one) for one in offers]}
        await asking.reply(200, json.dumps(told, ensure_ascii=False).encode())

    async def _model(self, asking: Asking) -> None:
        name = unquote(asking.path.removeprefix(_MODEL_PATH), errors="replace")
        for one in await self._backend.offers():
            if one.name == name:
                told = json.dumps(self._model_of(one), ensure_ascii=False)
                await asking.reply(200, told.encode())
                return
        raise no_model(name[:256], "is not served here; GET /v1/models tells what is")

    def _model_of(self, offer: Offer) -> dict[str, Any]:
        return {
            "id": offer.name,
            "object": "model",
            "created": self._began,
            "owned_by": "potluck",
            "potluck": {"digest": offer.digest, "blocks": offer.blocks, "peers": offer.peers},
        }

    async def _health(self, asking: Asking) -> None:
        peers = self._backend.peers()
        if not peers:
            raise Problem(503, "no peer is there", code="no_swarm", retry_after_s=FULL_RETRY_S)
        await asking.reply(200, json.dumps({"status": "ok", "peers": peers}).encode())

    async def _metrics(self, asking: Asking) -> None:
        self.metrics.peers.set(self._backend.peers())
        await asking.reply(200, self.metrics.text(), CONTENT_TYPE)

    async def _openapi(self, asking: Asking) -> None:
        await asking.reply(200, self._document)


async def _json_of(asking: Asking) -> bytes:
    """The body, if it says that it is JSON: what a form of a web page can send never does."""
    kind = asking.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise Problem(
            415, f"the body must be {JSON}, not {kind[:80] or 'untyped'}", code="not_json"
        )
    return await asking.body()


async def _complain(asking: Asking, problem: Problem) -> None:
    """The error, as an answer or, where one has begun, as its last event."""
    if asking.status:
        await asking.event(json.dumps(problem.body), last=True)
        return
    told = json.dumps(problem.body, ensure_ascii=False).encode("utf-8", "replace")
    await asking.reply(problem.status, told, headers=problem.headers)


async def _until_gone(receive: Receive) -> None:
    message: Message = {}
    while message.get("type") != "http.disconnect":
        message = await receive()


def _too_large() -> Problem:
    return Problem(413, f"the body is above {BODY_BYTES_MAX >> 20} MiB", code="request_too_large")
