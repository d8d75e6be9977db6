"""From a wish to its answers: told whole, or as they come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from ..compute.voice import Voice
from ..drafting import Drafts
from ..generation import Request
from ..prompt import encode_request
from .asked import (
    CHAT_TOKENS,
    Body,
    Wish,
    conversation,
    prompts_of,
    wish_of_chat,
    wish_of_completion,
)
from .backend import Backend
from .calls import CallReader
from .grammar import Constraint
from .hearing import Job, Said, hearing
from .language import Language
from .metrics import Metrics
from .problem import wrong
from .schemas import PROMPTS_MAX
from .shapes import ChatShape, Choice, CompletionShape, Shape, remarks, usage
from .speaker import Speaker

EVENTS = "text/event-stream"
LONG_CHARS = 16 * 1024  # from here on the event loop would wait for the tokenizer: some 10 ms


class Listener(Protocol):
    """Whoever takes an answer's events."""

    async def start(self, status: int, kind: str) -> None: ...

    async def event(self, data: str, *, last: bool = False) -> None: ...


@dataclass(slots=True)
class Answering:
    """All answers to one body."""

    wish: Wish
    shape: Shape
    backend: Backend
    metrics: Metrics
    model: str
    began_s: float
    jobs: list[Job]
    choices: list[Choice]
    prompt_tokens: int
    last_s: dict[int, float] = field(default_factory=dict)

    async def whole(self) -> dict[str, Any]:
        """Raises what an answer raises."""
        async with hearing(self.backend, self.jobs) as said:
            async for one in said:
                self._count(one)
                self.choices[one.index].hear(one)
        self._count_recoveries()
        return {
            **self.shape.whole(self.choices),
            "usage": usage(self.prompt_tokens, self.choices),
            "potluck": self._remarks(),
        }

    async def stream(self, listener: Listener) -> None:
        """The head is sent with the first token, so that a swarm that is full, or lacks blocks,
        still says so by a status. Raises what an answer raises."""
        begun = set[int]()
        async with hearing(self.backend, self.jobs) as said:
            async for one in said:
                self._count(one)
                choice = self.choices[one.index]
                if not begun:
                    await listener.start(200, EVENTS)
                if one.index not in begun:
                    begun.add(one.index)
                    await self._tell(listener, self.shape.begin(choice))
                delta = choice.hear(one)
                await self._tell(listener, self.shape.chunk(delta, choice))
                if choice.finish is not None:
                    await self._tell(listener, self.shape.end(choice))
        self._count_recoveries()
        if self.wish.usage or self.wish.receipt:
            told = {"usage": usage(self.prompt_tokens, self.choices)} if self.wish.usage else {}
            last = self.shape.about(choices=[], potluck=self._remarks(), **told)
            await self._tell(listener, last)
        await listener.event("[DONE]", last=True)

    def _remarks(self) -> dict[str, Any]:
        receipts = [receipt for job in self.jobs for receipt in job.receipt]
        return remarks(self.wish, self.choices, receipts)

    async def _tell(self, listener: Listener, chunk: dict[str, Any] | None) -> None:
        if chunk is not None:
            if self.wish.usage:
                chunk.setdefault("usage", None)
            # ASCII: some readers end lines at U+2028 or U+0085 too
            await listener.event(json.dumps(chunk, separators=(",", ":")))

    def _count(self, said: Said) -> None:
        now_s = trio.current_time()
        if (last_s := self.last_s.get(said.index)) is None:
            self.metrics.first_s.observe(now_s - self.began_s)
        else:
            self.metrics.next_s.observe(now_s - last_s)
        self.last_s[said.index] = now_s
        self.metrics.tokens.labels(self.model).inc()

    def _count_recoveries(self) -> None:
        self.metrics.recoveries.inc(sum(one.recoveries for one in self.choices))


async def plan_chat(
    body: Body, language: Language, backend: Backend, metrics: Metrics, began_s: float
) -> Answering:
    """Raises a Problem or UserError."""
    wish = wish_of_chat(body, language)
    voice = language.voice
    ids = await ids_of(backend, voice, conversation(body, language, wish.tools), special=False)
    shape = ChatShape(voice.name, voice.digest, wish, language.tokens)
    return await _plan(shape, wish, [("", ids)], language, backend, metrics, began_s)


async def plan_completion(
    body: Body, language: Language, backend: Backend, metrics: Metrics, began_s: float
) -> Answering:
    """Raises a Problem or UserError."""
    voice = language.voice
    wish = wish_of_completion(body, voice)
    given = prompts_of(body["prompt"], "prompt")
    if len(given) * wish.choices > PROMPTS_MAX:
        raise wrong(f"prompts times n may be at most {PROMPTS_MAX}", "n")
    prompts = [(_echo(one, language) if wish.echo else "", one) for one in given]
    shape = CompletionShape(voice.name, voice.digest, wish, language.tokens)
    return await _plan(shape, wish, prompts, language, backend, metrics, began_s)


async def _plan(
    shape: Shape,
    wish: Wish,
    prompts: Sequence[tuple[str, str | Sequence[int]]],
    language: Language,
    backend: Backend,
    metrics: Metrics,
    began_s: float,
) -> Answering:
    """One job for each choice of each prompt. prompts: (what is told again, text or ids)."""
    jobs, choices, tokens = list[Job](), list[Choice](), 0
    voice = language.voice
    for again, prompt in prompts:
        ids = await ids_of(backend, voice, prompt)
        tokens += len(ids)
        room = voice.context - len(ids)
        most = min(room, CHAT_TOKENS) if wish.max_tokens is None else wish.max_tokens
        if most > room:
            raise wrong(
                f"{len(ids)} prompt tokens and {most} new ones are more than the context of "
                f"{voice.name}, {voice.context}; ask for at most {room} new tokens",
                "max_tokens",
                "context_length_exceeded",
            )
        for choice in range(wish.choices):
            constraint: Constraint | None = None
            if wish.grammar is not None:
                constraint = await backend.run(language.tokens.constraint, wish.grammar)
            speaker = Speaker.speaking(voice, begun=len(ids), constraint=constraint, top=wish.top)
            request = Request(
                voice=speaker,
                ids=ids,
                settings=wish.settings_of(choice),
                max_new_tokens=most,
                stops=wish.stops,
                wait_s=wish.wait_s,
                ignore_eos=wish.ignore_eos,
                receipts=wish.receipt,
                adapter=language.adapter,
                drafts=Drafts() if wish.draft else None,
            )
            jobs.append(Job(len(jobs), request, speaker))
            reader = CallReader(wish.tools) if wish.tools is not None else None
            choices.append(Choice(len(choices), again, reader))
    metrics.prompt_tokens.labels(voice.name).inc(tokens)
    return Answering(wish, shape, backend, metrics, voice.name, began_s, jobs, choices, tokens)


async def ids_of(
    backend: Backend, voice: Voice, prompt: str | Sequence[int], *, special: bool = True
) -> tuple[int, ...]:
    """The ids of a prompt. special: with what the model expects around a text. Raises UserError."""
    if not isinstance(prompt, str) or len(prompt) < LONG_CHARS:
        return _encode(voice, prompt, special)
    return await backend.run(_encode, voice, prompt, special)


def _encode(voice: Voice, prompt: str | Sequence[int], special: bool) -> tuple[int, ...]:
    if isinstance(prompt, str) and not special:
        prompt = voice.text.encode(prompt, special=False)
    return encode_request(voice, prompt)


def _echo(prompt: str | Sequence[int], language: Language) -> str:
    return prompt if isinstance(prompt, str) else language.voice.text.decode(prompt)
