"""The ASGI application: who may ask, what is asked, and what is answered.

    body ── check ──▶ Wish ── jobs ──▶ hearing ── Said ──▶ Choice ── shape ──▶ JSON, or SSE

A handler runs beside a watch on the client: once that is gone, the handler is cancelled, and with
it its sessions, so that the servers free their caches at once.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ...errors import LocalError, PotluckError
from ..log import get_logger
from .answering import Answering, plan_chat, plan_completion
from .asked import Body, read_chat, read_completion
from .asking import Asking, Guard, while_there
from .backend import Backend, Offer
from .embedding import embeddings, read_embedding
from .http import ClientGone, Receive, Scope, Send
from .metrics import CONTENT_TYPE, Metrics
from .openapi import document
from .problem import Problem, no_model, ours, problem_of
from .routes import Route, find_route, get, post, unknown

ANSWERS_MAX = 256  # at a time; more are told to come back
FULL_RETRY_S = 1.0

log = get_logger()


class Api:
    """The application. One for a process; it keeps nothing between requests but counts."""

    def __init__(
        self,
        backend: Backend,
        guard: Guard | None = None,
        *,
        answers_max: int = ANSWERS_MAX,
        more: Sequence[Route] = (),
    ) -> None:
        """more: what is answered beside the models: files and jobs, the dashboard."""
        self.metrics = Metrics()
        self._backend = backend
        self._guard = guard or Guard()
        self._answers_max = answers_max
        self._answers = 0
        self._began = int(time.time())
        self._document = json.dumps(document(keyed=bool(self._guard.keys))).encode()
        self._routes = (
            post("/v1/chat/completions", self._chat),
            post("/v1/completions", self._completion),
            post("/v1/embeddings", self._embeddings),
            get("/v1/models", self._models),
            get("/v1/models/{model*}", self._model),
            get("/health", self._health, needs_key=False),
            get("/metrics", self._metrics),
            get("/openapi.json", self._openapi, needs_key=False),
            *more,
        )

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
        query = scope.get("query_string", b"").decode("latin-1")
        asking = Asking(scope["method"], scope["path"], headers, receive, send, query)
        route = find_route(self._routes, asking)
        self.metrics.open.inc()
        try:
            try:
                self._guard.admit(headers, is_open=route is not None and not route.needs_key)
                if route is None:
                    raise unknown(asking)
                await route.handler(asking.method)(asking)
            except Problem as problem:
                await asking.complain(problem)
            except PotluckError as error:
                if isinstance(error, LocalError):
                    log.error("our own fault", error=traceback.format_exc())
                await asking.complain(problem_of(error))
            except (ClientGone, OSError):
                raise
            except (
                Exception
            ):  # the edge: one client's bad luck must not end all the others' answers
                log.error("our own fault", error=traceback.format_exc())
                await asking.complain(ours())
        except ClientGone:
            self.metrics.left.inc()
            asking.status = 499  # nginx's number for it
            raise
        finally:
            self.metrics.open.dec()
            name = "unknown" if route is None else route.name
            self.metrics.requests.labels(name, str(asking.status)).inc()

    async def _chat(self, asking: Asking) -> None:
        body = read_chat(await asking.json())
        await self._answer(asking, body, plan_chat)

    async def _completion(self, asking: Asking) -> None:
        body = read_completion(await asking.json())
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
                await asking.tell(await answering.whole())

        await self._watched(asking, work)

    async def _embeddings(self, asking: Asking) -> None:
        body = read_embedding(await asking.json())

        async def work() -> None:
            await asking.tell(await embeddings(body, self._backend, self.metrics))

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
        self._answers += 1
        try:
            await while_there(asking, work)
        finally:
            self._answers -= 1

    async def _models(self, asking: Asking) -> None:
        offers = await self._backend.offers()
        told = {"object": "list", "data": [self._model_of(one) for one in offers]}
        await asking.tell(told)

    async def _model(self, asking: Asking) -> None:
        name = asking.found["model"]
        for one in await self._backend.offers():
            if one.name == name:
                await asking.tell(self._model_of(one))
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
        await asking.tell({"status": "ok", "peers": peers})

    async def _metrics(self, asking: Asking) -> None:
        self.metrics.peers.set(self._backend.peers())
        await asking.reply(200, self.metrics.text(), CONTENT_TYPE)

    async def _openapi(self, asking: Asking) -> None:
        await asking.reply(200, self._document)
