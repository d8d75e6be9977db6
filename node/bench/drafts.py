"""What guesses bring on a long road: tokens a second with and without, for each kind of text.

Real daemons, the shipped model, and a road that is made long at the client (far.py). The model is
too small to edit code or to sum anything up, so its answers would say nothing of how often such
texts repeat themselves: each answer is given, and recited. The servers compute all of it, the
guesses are made, sent, verified and taken back as ever; only the token that the sampler would draw
is read off the page. So what is measured are guesses for a model that writes just that text.

    code edit    a function of Python's library, and the same with a name changed throughout
    summarise    a module of it, and a list of its functions with the first line said of each
    chat         a question, and prose about heaps
    free         what the shipped model itself goes on to say, greedily
    none         tokens of which none comes twice
"""

from __future__ import annotations

import bisect
import heapq
import inspect
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import trio

from ..client import Swarm
from ..compute.sampling import Settings
from ..compute.voice import Logits, Voice
from ..compute.worker import Worker, open_worker
from ..drafting import Drafts, Guessed
from ..generation import GREEDY, Request, open_generation
from ..library import DEMO_FOLDER
from ..net.host import Host
from ..testnet.launcher import Plan
from .far import FarHost
from .road import joined

PROMPT_MAX = 512  # tokens; the shipped model reads twice that


@dataclass(frozen=True, slots=True)
class Reciting(Voice):
    """A voice that says what is written. begun: where it begins."""

    written: tuple[int, ...] = ()
    begun: int = 0

    def choose(
        self, logits: Logits, settings: Settings, position: int, history: Sequence[int]
    ) -> int:
        return self.written[position - self.begun]


@dataclass(frozen=True, slots=True)
class Task:
    """written: the answer; empty: the model's own."""

    kind: str
    prompt: tuple[int, ...]
    written: tuple[int, ...] = ()


def tasks_of(voice: Voice, tokens: int) -> list[Task]:
    """One of each kind, with answers of so many tokens, or fewer."""
    encode = voice.text.encode
    wrapper = inspect.getsource(textwrap.TextWrapper._wrap_chunks)
    edited = wrapper.replace("cur_line", "row").replace("chunks", "words")
    listed = "\n".join(
        f"{name}: {(inspect.getdoc(one) or '').splitlines()[0]}"
        for name, one in inspect.getmembers(bisect, inspect.isroutine)
        if inspect.getdoc(one)
    )
    prose = " ".join(heapq.__about__.split())
    vocabulary = voice.ends.spec.vocab
    once = tuple((number * 7) % vocabulary for number in range(3, 3 + 64 + tokens))
    return [
        Task("code edit", _ids(encode(wrapper)), tuple(encode(edited, special=False)[:tokens])),
        Task(
            "summarise",
            _ids(encode(inspect.getsource(bisect))),
            tuple(encode(listed, special=False)[:tokens]),
        ),
        Task(
            "chat",
            _ids(encode("What is a heap, and what is it good for?\n")),
            tuple(encode(prose, special=False)[:tokens]),
        ),
        Task("free", _ids(encode("The function returns"))),
        Task("none", once[:64], once[64:]),
    ]


def _ids(ids: list[int]) -> tuple[int, ...]:
    return tuple(ids[:PROMPT_MAX])


async def bench_drafts(
    *, hops: int = 2, rtt_ms: float = 60.0, tokens: int = 96, sampled: bool = False
) -> dict[str, object]:
    """Tokens a second behind the first, plain and with guesses, of each kind in turn.

    rtt_ms: between the client and each hop; a step takes `hops` of them.
    """
    found: dict[str, object] = {"hops": hops, "rtt_ms": rtt_ms}
    settings = Settings(0.7, seed=1) if sampled else Settings()
    with tempfile.TemporaryDirectory(prefix="potluck-bench-") as folder:
        source = str(DEMO_FOLDER)
        plan = Plan(home=Path(folder), source=source, name="demo", blocks=8, nodes=hops)
        async with joined(plan) as (swarm, _), open_worker(threads=1) as worker:
            found |= await _each(swarm, worker, rtt_ms, tokens, settings)
    return found


async def _each(
    swarm: Swarm, worker: Worker, rtt_ms: float, tokens: int, settings: Settings
) -> dict[str, object]:
    found: dict[str, object] = {}
    async with trio.open_nursery() as nursery:
        voice = await swarm.voice("demo")
        far = FarHost(swarm.member.host, rtt_ms / 2e3, nursery)
        reader = Reader(cast(Host, far), swarm, worker, voice, settings)
        for task in tasks_of(voice, tokens):
            plain = await reader.recite(task, tokens)
            guessing = await reader.recite(task, tokens, Drafts())
            guessed = guessing.guessed
            assert guessed is not None
            found[task.kind] = {
                "tokens": len(plain.said),
                "plain_per_s": round(plain.per_s, 2),
                "guessed_per_s": round(guessing.per_s, 2),
                "times": round(guessing.per_s / plain.per_s, 2),
                "sent": guessed.sent,
                "accepted": guessed.accepted,
                "steps": guessed.steps,
                "same": plain.said == guessing.said,
            }
        nursery.cancel_scope.cancel()
    return found


@dataclass(frozen=True, slots=True)
class Recited:
    """An answer. seconds: of each token, since the one before or the start. chunk: in how many
    tokens the prompt was sent at once. pushed: steps that went from hop to hop. times: when each
    token came, by trio's clock."""

    said: list[int]
    seconds: list[float]
    guessed: Guessed | None
    chunk: int
    pushed: int = 0
    times: tuple[float, ...] = ()

    @property
    def per_s(self) -> float:
        """Tokens a second behind the first."""
        return (len(self.said) - 1) / sum(self.seconds[1:])


@dataclass(frozen=True, slots=True)
class Reader:
    """Whoever asks for the answers. host: over which road. chain: from hop to hop."""

    host: Host
    swarm: Swarm
    worker: Worker
    voice: Voice
    settings: Settings = GREEDY
    chain: bool = False

    async def recite(self, task: Task, tokens: int, drafts: Drafts | None = None) -> Recited:
        """Have a task answered, in so many tokens where nothing is written."""
        speaking = voice = self.voice
        if task.written:
            tokens = len(task.written)
            speaking = Reciting(
                voice.name, voice.digest, voice.ends, voice.text, voice.wire,
                task.written, len(task.prompt),
            )  # fmt: skip
        request = Request(
            speaking, task.prompt, self.settings, max_new_tokens=tokens, ignore_eos=True,
            drafts=drafts, chain=self.chain,
        )  # fmt: skip
        said, seconds, times = list[int](), list[float](), list[float]()
        router = self.swarm.router
        async with open_generation(self.host, router, self.worker, request) as answer:
            async for piece in answer:
                said.append(piece.token)
                seconds.append(piece.seconds)
                times.append(trio.current_time())
        guessed, pushed = answer.guessed, answer.chained
        return Recited(said, seconds, guessed, answer.chunk, pushed, tuple(times))
