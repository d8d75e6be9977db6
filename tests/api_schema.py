"""Ask an API whatever its published document allows, and what it does not: schemathesis as oracle.

A real server on loopback, in a thread of its own, over a pretended swarm and a home in a folder.
What is answered must be what the document says: no 5xx, no status, type or shape beside it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import schemathesis
import trio
from api_fakes import PretendedSwarm
from api_office import form, lines, open_desk
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from potluck.node.api.http import Server, listen
from potluck.node.api.language import Language
from potluck.node.generation import Generation, Request

TOKENS_MAX = 4  # of an answer: the shapes are looked at, not the words
CALL_S = 30.0
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


class Brief(PretendedSwarm):
    """Its answers are short, and it has whatever model is asked for: else most were 404."""

    async def language(self, name: str) -> Language:
        return self.language_

    @asynccontextmanager
    async def answer(self, request: Request) -> AsyncIterator[Generation]:
        short = replace(request, max_new_tokens=min(request.max_new_tokens, TOKENS_MAX))
        async with super().answer(short) as answer:
            yield answer


@contextmanager
def serving(home: Path) -> Iterator[str]:
    """The server's URL. What a caller may want to name is there: a file, a batch, a run."""
    url, token, ended = list[str](), list[trio.lowlevel.TrioToken](), trio.Event()
    ready = threading.Event()

    async def serve() -> None:
        token.append(trio.lowlevel.current_trio_token())
        async with open_desk(home, Brief()) as desk:
            sent = form(("purpose", None, b"batch"), ("file", "a.jsonl", lines({"a": 1})))
            await desk.send(sent)
            bound = await listen("127.0.0.1", 0)
            server = Server(desk.api, bound)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.run)
                url.append(f"http://127.0.0.1:{bound.port}")
                ready.set()
                await ended.wait()
                nursery.cancel_scope.cancel()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert ready.wait(60)
    try:
        yield url[0]
    finally:
        token[0].run_sync_soon(ended.set)
        thread.join(60)


def _varies(operation: schemathesis.APIOperation) -> bool:
    """Whether there is anything to say: one case of it is all cases else."""
    return bool(operation.path_parameters or operation.query or operation.body)


def _cases(operation: schemathesis.APIOperation) -> SearchStrategy[schemathesis.Case]:
    """What the document allows and, where something may be said, what it does not."""
    right = operation.as_strategy(schemathesis.GenerationMode.POSITIVE)
    if not (operation.query or operation.body):
        return right
    return st.one_of(right, operation.as_strategy(schemathesis.GenerationMode.NEGATIVE))


def ask_everything(home: Path, cases: int, *, seed: int = 1) -> Counter[str]:
    """So many cases, spread over all operations; how often each status was answered."""
    found: Counter[str] = Counter()
    with serving(home) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [one.ok() for one in schema.get_all_operations()]
        each = -(-cases // sum(map(_varies, operations)))
        for operation in operations:
            _ask(operation, each, seed, found)
    return found


def _ask(operation: schemathesis.APIOperation, cases: int, seed: int, found: Counter[str]) -> None:
    name = f"{operation.method.upper()} {operation.path}"

    @seeded(seed)
    @settings(
        max_examples=cases, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(_cases(operation))
    def ask(case: schemathesis.Case) -> None:
        response = case.call(timeout=CALL_S)
        found[f"{name} {response.status_code}"] += 1
        case.validate_response(response, checks=CHECKS)

    ask()
