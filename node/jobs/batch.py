"""A batch: every line of a file asked of the swarm, so many at once, until all have their answers.

    store ─▶ feed ─▶ (at_once) ask ─▶ the API's own plan ─▶ sessions over the swarm
      ▲                         │  ▲
      │                         │  └── what the swarm lacks: later, again (patience.py)
      └───── answer, or error ──┘

Answers come in any order and are stored as they come; their order is that of their numbers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from ...errors import (
    LocalError,
    PotluckError,
    Refused,
    RemoteError,
    TransportError,
    UserError,
)
from ..api.answering import Answering, plan_chat, plan_completion
from ..api.asked import Body, read_chat, read_completion
from ..api.backend import Backend
from ..api.language import Language
from ..api.metrics import Metrics
from ..api.problem import Problem, problem_of, wrong
from ..generation import Request
from .lines import AT_ONCE_MAX, CHATS, Asked, BatchSpec, read_line, told_problem, told_whole
from .patience import LONGEST_S, Patience
from .progress import Rate, left_s
from .store import Job
from .work import Desk, Report

PAGE: Final = 256  # lines that are read ahead
JOIN_AGAIN_S: Final = 2.0


class Voices(Protocol):
    """A swarm, as a batch asks it."""

    @property
    def backend(self) -> Backend: ...

    async def language(self, model: str) -> Language:
        """Of the model that a line names, loaded once. Raises UserError or a Problem."""

    def sent_bytes(self) -> int:
        """Of activations, so far."""

    def peers(self) -> int:
        """How many computed for us lately."""


class Unready(UserError):
    """A model cannot be loaded: no line's fault, and a person has to see to it."""


Open = Callable[[BatchSpec], AbstractAsyncContextManager[Voices]]


class BatchWork:
    """open_voices: joins the swarm, for as long as it lasts."""

    def __init__(self, open_voices: Open) -> None:
        self._open = open_voices

    async def run(self, job: Job, desk: Desk, report: Report) -> None:
        spec = BatchSpec.read(job.spec)
        async with AsyncExitStack() as stack:
            voices = await self._join(stack, spec, report)
            batch = _Batch(job, spec, voices, desk, report)
            await batch.run()
        if spec.out:
            await desk.write(Path(spec.out), replace=spec.replace)

    async def _join(self, stack: AsyncExitStack, spec: BatchSpec, report: Report) -> Voices:
        """A swarm that nobody answers in is waited for, as blocks are."""
        wait_s = JOIN_AGAIN_S
        while True:
            try:
                voices = await stack.enter_async_context(self._open(spec))
            except (UserError, TransportError, RemoteError, Refused) as error:
                report.tell(note=f"{error} (trying again)")
            else:
                report.tell(note="")
                return voices
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_S)


@dataclass(frozen=True, slots=True)
class _Told:
    """A line's answer as it is stored. tokens: that were generated for it. failed: it is an
    error."""

    line: str
    tokens: int
    failed: bool


class _Batch:
    """One run of one job."""

    def __init__(
        self, job: Job, spec: BatchSpec, voices: Voices, desk: Desk, report: Report
    ) -> None:
        self._job = job.id
        self._spec = spec
        self._defaults = spec.defaults
        self._voices = voices
        self._desk = desk
        self._report = report
        self._metrics = Metrics()
        self._rng = random.Random(job.id)  # of waits alone: answers are drawn by their own seeds
        self._answered = 0  # by the swarm, in this run
        now = trio.current_time()
        self._words, self._lines = Rate(now), Rate(now)
        self._sent_before = job.progress.sent_bytes
        self._scope = trio.CancelScope()
        self._failure: Exception | None = None

    async def run(self) -> None:
        """Until every line has its answer. Raises Unready or Superseded."""
        told = await self._desk.tally()
        self._report.tell(done=told.done, total=told.total, errors=told.errors, tokens=told.tokens)
        send, receive = trio.open_memory_channel[tuple[int, str]](0)
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            nursery.start_soon(self._guarded, self._feed, send)
            for _ in range(min(self._spec.at_once, AT_ONCE_MAX)):
                nursery.start_soon(self._guarded, self._take, receive.clone())
            receive.close()
        if self._failure is not None:
            raise self._failure

    async def _guarded(self, part: Callable[[Any], Awaitable[None]], channel: Any) -> None:
        """The first failure ends all parts; the nursery would wrap it in a group."""
        async with channel:
            try:
                await part(channel)
            except Exception as error:
                self._failure = self._failure or error
                self._scope.cancel()

    async def _feed(self, send: trio.MemorySendChannel[tuple[int, str]]) -> None:
        past = 0
        while page := await self._desk.open_lines(past=past, count=PAGE):
            for line in page:
                await send.send(line)
            past = page[-1][0]

    async def _take(self, receive: trio.MemoryReceiveChannel[tuple[int, str]]) -> None:
        async for number, text in receive:
            told = await self._answer(read_line(number, text, self._defaults))
            if await self._desk.answer(number, told.line, failed=told.failed, tokens=told.tokens):
                self._count(told)

    async def _answer(self, asked: Asked) -> _Told:
        patience = Patience()
        while True:
            before = self._answered
            try:
                answer = await self._ask(asked)
            except Problem as problem:
                return self._fault(asked, problem)
            except (Unready, LocalError):
                raise
            except PotluckError as error:
                others = self._answered > before or await self._answers_at_all(asked, error)
                again = patience.judge(error, others_answered=others)
                if again is None:
                    return self._fault(asked, problem_of(error))
            else:
                self._answered += 1
                tokens = answer["usage"]["completion_tokens"]
                return _Told(told_whole(asked, self._job, answer), tokens, failed=False)
            self._report.tell(note=again.waits_for)
            await trio.sleep(again.after_s * self._rng.uniform(0.75, 1.25))  # not all at once

    def _fault(self, asked: Asked, problem: Problem) -> _Told:
        return _Told(told_problem(asked, self._job, problem), 0, failed=True)

    async def _ask(self, asked: Asked) -> dict[str, Any]:
        """What the API answers. Raises what it raises, and Unready."""
        plan, body = _plan_of(asked)
        language = await self._language(asked.model)
        answering: Answering = await plan(
            body, language, self._voices.backend, self._metrics, trio.current_time()
        )
        answer = await answering.whole()
        if any(choice["finish_reason"] is None for choice in answer["choices"]):
            raise LocalError("an answer came without its end")  # no line shall have half of one
        return answer

    async def _language(self, model: str) -> Language:
        try:
            return await self._voices.language(model)
        except (UserError, Problem) as error:
            raise Unready(f"the model {model} cannot be used: {error}") from error

    async def _answers_at_all(self, asked: Asked, error: PotluckError) -> bool:
        """Whether the swarm gives a token of this model for a question that nobody can mistake."""
        if not isinstance(error, TransportError | RemoteError):
            return False
        language = await self._language(asked.model)
        request = Request(voice=language.voice, ids=(0,), max_new_tokens=1, ignore_eos=True)
        try:
            async with self._voices.backend.answer(request) as answer:
                await anext(answer)
        except LocalError:
            raise
        except PotluckError:
            return False
        return True

    def _count(self, told: _Told) -> None:
        now, before = trio.current_time(), self._report.progress
        self._words.count(told.tokens, now)
        self._lines.count(1, now)
        done = before.done + 1
        self._report.tell(
            done=done,
            errors=before.errors + told.failed,
            tokens=before.tokens + told.tokens,
            tokens_per_s=self._words.per_s(now),
            left_s=left_s(before.total - done, self._lines.per_s(now)),
            sent_bytes=self._sent_before + self._voices.sent_bytes(),
            peers=self._voices.peers(),
            note="",
        )


def _plan_of(asked: Asked) -> tuple[Callable[..., Awaitable[Answering]], Body]:
    """How the API makes an answer of this, and the body that it checked. Raises a Problem."""
    raw = json.dumps(asked.body).encode()
    if asked.url == CHATS:
        plan, body = plan_chat, read_chat(raw)
    else:
        plan, body = plan_completion, read_completion(raw)
    if body.get("stream"):
        raise wrong("a batch cannot stream", "stream", "unsupported_value")
    return plan, body
