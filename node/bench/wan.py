"""Answers over a wide area, beside what the formula allows: `potluck bench wan`.

Real daemons, each in a network of its own, on roads of a length, a rate and a loss (roads.py);
where that cannot be had, on loopback, with a road that is made long at the client (far.py). Three
things are measured apart first, in the same run: the passes of every stage, as its server tells
them; what a hop takes beyond its pass and its way; what the client takes for a token. Then answers
as `potluck bench draft` has them, plain and guessed, and the first token of a long prompt; beside
each what swarm/wan.py makes of those three.

    bar 1    plain decoding keeps 80 % of 1 / R(1)
    bar 2    at 60 ms and 4 hops guesses make chat 2.0 times as fast, code edits 2.5, nothing slower
             than 0.98, and all within 15 % of the formula
    bar 4    two hops at 20 ms: 17 tokens a second plain and 25 guessed, by a model that alone makes
             77 (or fewer)
    bar 5    the first token of a prompt comes within 1.3 times the cut-through formula
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import trio

from ...errors import UserError
from ...swarm.wan import Shape, Stage, Way, first_token_s, rate_of, step_s
from ...swarm.wire import PROTOCOL, Open, Opened, Output, Step
from ..client import Swarm
from ..compute.checkpoint import open_checkpoint
from ..compute.local import local_seconds
from ..compute.shapes import write_random
from ..compute.voice import DTYPE, Voice
from ..compute.worker import Worker, open_worker
from ..drafting import Drafts
from ..frames import FrameStream
from ..generation import GREEDY
from ..library import DEMO_FOLDER
from ..net.host import Host
from ..testnet import roads
from ..testnet.launcher import LocalSwarm, Plan
from ..testnet.roster import Seat
from .drafts import Reader, Recited, Task, tasks_of
from .far import FarHost
from .road import PROMPT_TOKENS, joined

CONTEXT: Final = 4096  # of the models here: a prompt of 2,048 tokens, and an answer
PROBES: Final = ((1, 9), (8, 5), (33, 3), (128, 3), (512, 3))  # rows of a step, how often
PROBED_AT: Final = 64  # positions that are there before
MEASURED: Final = ("code edit", "summarise", "chat", "none")
BARE_SHAPE: Final = "demo"
SOLO_TOKENS: Final = 48
NAME: Final = "far"


@dataclass(frozen=True, slots=True)
class Wanted:
    """rtt_s: between any two. bytes_s: of each road and direction. loss: share of packets, 0..1.
    tokens: of each answer, at most. prompt: tokens of the long one; 0: none. model: "demo", or the
    shape of a random one (compute/shapes.py). way: how rows go from hop to hop."""

    hops: int = 4
    rtt_s: float = 0.1
    bytes_s: float = 100e6 / 8
    loss: float = 0.0
    tokens: int = 96
    prompt: int = 2048
    model: str = BARE_SHAPE
    way: Shape = "star"


@dataclass(frozen=True, slots=True)
class Measured:
    """What the formula is told, and where it is from."""

    way: Way
    solo_per_s: float


async def bench_wan(wanted: Wanted) -> dict[str, object]:
    """All figures of one run. Raises UserError for what cannot be had here."""
    why = roads.why_not()
    if wanted.loss and why is not None:
        raise UserError(f"--loss needs networks of their own, and {why}: leave it out")
    with tempfile.TemporaryDirectory(prefix="potluck-wan-") as folder:
        model = Path(folder) / "model"
        await trio.to_thread.run_sync(write_model, model, wanted.model)
        checkpoint = open_checkpoint(model)
        if wanted.hops > checkpoint.spec.blocks:
            raise UserError(f"{wanted.hops} hops: this model has {checkpoint.spec.blocks} blocks")
        alone = await trio.to_thread.run_sync(
            local_seconds, checkpoint, list(range(3, 3 + PROMPT_TOKENS)), SOLO_TOKENS
        )
        solo_per_s = 1 / statistics.median(alone[1:])
        road = None
        if why is None:
            road = roads.Road(wanted.rtt_s / 2, wanted.bytes_s, wanted.loss)
        plan = Plan(
            home=Path(folder), source=str(model), name=NAME, blocks=checkpoint.spec.blocks,
            nodes=wanted.hops, road=road,
        )  # fmt: skip
        async with (
            joined(plan) as (swarm, net),
            open_worker(threads=1) as worker,
            _far(swarm, wanted, real=road is not None) as host,
        ):
            voice = await swarm.voice(NAME)
            way = await _measure(host, net, worker, voice, wanted)
            found = await _answers(Reader(host, swarm, worker, voice), way, wanted)
    return {
        "hops": wanted.hops,
        "rtt_ms": round(wanted.rtt_s * 1e3, 3),
        "mbit": round(wanted.bytes_s * 8 / 1e6, 3),
        "loss": wanted.loss,
        "roads": "between networks of their own" if road else f"made at the client: {why}",
        "shape": wanted.way,
        "model": wanted.model,
        **told(found, Measured(way, solo_per_s), wanted),
    }


def write_model(folder: Path, model: str) -> None:
    """The model to measure with. Raises UserError.

    The shipped one, said to take longer prompts than it was trained for: its words do not matter
    here, and each step costs what it costs.
    """
    if model != BARE_SHAPE:
        write_random(folder, model, context=CONTEXT)
        return
    shutil.copytree(DEMO_FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = CONTEXT
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


@asynccontextmanager
async def _far(swarm: Swarm, wanted: Wanted, *, real: bool) -> AsyncIterator[Host]:
    """The client's host, at the end of a long road."""
    async with trio.open_nursery() as nursery:
        host = swarm.member.host
        if not real:
            host = cast(Host, FarHost(host, wanted.rtt_s / 2, nursery, wanted.bytes_s))
        yield host
        nursery.cancel_scope.cancel()


async def _measure(
    host: Host, net: LocalSwarm, worker: Worker, voice: Voice, wanted: Wanted
) -> Way:
    """Each stage alone, one after another, over its road; then the client."""
    row_bytes = len(voice.embed([PROMPT_TOKENS]))
    stages, over_s = list[Stage](), list[float]()
    for seat in net.seats:
        times, overhead_s = await _probe(host, seat, voice, wanted, row_bytes)
        stages.append(Stage(wanted.rtt_s / 2, times, wanted.bytes_s))
        over_s.append(overhead_s)
    row = voice.embed([PROMPT_TOKENS])
    client_s = []
    for _ in range(25):
        began_s = time.perf_counter()
        await worker.run(voice.next_token, row, GREEDY, 1, [PROMPT_TOKENS])
        client_s.append(time.perf_counter() - began_s)
    return Way(
        tuple(stages), row_bytes, wanted.way, statistics.median(over_s), statistics.median(client_s)
    )


async def _probe(
    host: Host, seat: Seat, voice: Voice, wanted: Wanted, row_bytes: int
) -> tuple[tuple[tuple[int, float], ...], float]:
    """Seconds of its passes by rows, and what a step of one row takes beyond pass and way."""
    frames = FrameStream(await host.open_stream(seat.peer, PROTOCOL))
    await frames.send(Open(bytes(16), voice.digest, seat.start, seat.stop, CONTEXT // 4, DTYPE))
    received = await frames.receive()
    assert received is not None and isinstance(received[0], Opened)
    row = bytes(voice.embed([PROMPT_TOKENS]))

    async def step(at: int, rows: int) -> tuple[float, float]:
        """From being sent to its answer; and its pass."""
        began_s = time.perf_counter()
        await frames.send(Step(at, (rows,), rows), row * rows)
        received = await frames.receive()
        assert received is not None and isinstance(received[0], Output)
        return time.perf_counter() - began_s, received[0].compute_s

    await step(0, PROBED_AT)
    times, over_s = list[tuple[int, float]](), list[float]()
    for rows, count in PROBES:
        spent = [await step(PROBED_AT, rows) for _ in range(count)]
        times.append((rows, statistics.median(pass_s for _, pass_s in spent)))
        if rows == 1:
            way_s = wanted.rtt_s + 2 * row_bytes / wanted.bytes_s
            over_s = [whole_s - pass_s - way_s for whole_s, pass_s in spent]
    await frames.close()
    return tuple(times), max(0.0, statistics.median(over_s))


@dataclass(frozen=True, slots=True)
class Answered:
    """Plain and guessed, of one kind."""

    plain: Recited
    guessing: Recited

    def predicted(self, way: Way) -> float:
        """Tokens a second of the guessed one, by the formula: of as many guesses a step, right as
        often."""
        guessed = self.guessing.guessed
        assert guessed is not None
        return rate_of(way, guessed.chance, guessed.widths or {0: 1})


@dataclass(frozen=True, slots=True)
class Answers:
    """Of each kind; and of the long prompt: seconds to its first token, and its chunk."""

    kinds: dict[str, Answered]
    first_s: float | None
    chunk: int


async def _answers(reader: Reader, way: Way, wanted: Wanted) -> Answers:
    tasks = {task.kind: task for task in tasks_of(reader.voice, wanted.tokens)}
    warm = Task("warm", tasks["chat"].prompt)  # connections are made, histories begun
    await reader.recite(warm, 2)
    kinds = {}
    for kind in MEASURED:
        plain = await reader.recite(tasks[kind], wanted.tokens)
        kinds[kind] = Answered(plain, await reader.recite(tasks[kind], wanted.tokens, Drafts()))
    if not wanted.prompt:
        return Answers(kinds, None, 0)
    vocabulary = reader.voice.ends.spec.vocab
    ids = tuple(3 + (number * 7) % (vocabulary - 3) for number in range(wanted.prompt))
    firsts = [await reader.recite(Task("long", ids), 1) for _ in range(3)]
    spent_s = statistics.median(one.seconds[0] for one in firsts)
    return Answers(kinds, spent_s, firsts[-1].chunk)


def told(found: Answers, measured: Measured, wanted: Wanted) -> dict[str, object]:
    """Figures beside the formula's, and which bars hold. Seconds as milliseconds."""
    way = measured.way
    bound_per_s = 1 / step_s(way)
    kinds = {}
    for kind, one in found.kinds.items():
        guessed = one.guessing.guessed
        assert guessed is not None
        predicted = one.predicted(way)
        kinds[kind] = {
            "tokens": len(one.plain.said),
            "plain_per_s": round(one.plain.per_s, 2),
            "plain_formula_per_s": round(bound_per_s, 2),
            "of_formula": round(one.plain.per_s / bound_per_s, 3),
            "guessed_per_s": round(one.guessing.per_s, 2),
            "guessed_formula_per_s": round(predicted, 2),
            "guessed_of_formula": round(one.guessing.per_s / predicted, 3),
            "times": round(one.guessing.per_s / one.plain.per_s, 3),
            "acceptance": None if guessed.share is None else round(guessed.share, 3),
            "chance": round(guessed.chance, 3),
            "guesses_a_step": round(guessed.sent / max(guessed.steps, 1), 2),
            "first_ms": round(one.plain.seconds[0] * 1e3, 1),
            "same": one.plain.said == one.guessing.said,
        }
    first = None
    if found.first_s is not None:
        formula_s = first_token_s(way, wanted.prompt, found.chunk)
        stored_s = first_token_s(way, wanted.prompt, found.chunk, cut_through=False)
        first = {
            "prompt": wanted.prompt,
            "chunk": found.chunk,
            "ms": round(found.first_s * 1e3, 1),
            "formula_ms": round(formula_s * 1e3, 1),
            "of_formula": round(found.first_s / formula_s, 3),
            "stored_and_forwarded_formula_ms": round(stored_s * 1e3, 1),
        }
    return {
        "solo_per_s": round(measured.solo_per_s, 1),
        "pass_ms": [[(n, round(s * 1e3, 2)) for n, s in stage.times] for stage in way.stages],
        "overhead_ms": round(way.overhead_s * 1e3, 2),
        "client_ms": round(way.client_s * 1e3, 2),
        "kinds": kinds,
        "first_token": first,
        "bars": bars(found, measured, wanted),
    }


def bars(found: Answers, measured: Measured, wanted: Wanted) -> dict[str, bool | None]:
    """Which hold; None where the run is not the one that a bar is about."""
    way = measured.way
    plain = [one.plain.per_s for one in found.kinds.values()]
    return {
        "1": min(plain) * step_s(way) >= 0.8,
        "2": _bar_2(found, way) if (wanted.hops, wanted.rtt_s) == (4, 0.06) else None,
        "4": _bar_4(found) if _is_bar_4(measured, wanted) else None,
        "5": None
        if found.first_s is None
        else found.first_s <= 1.3 * first_token_s(way, wanted.prompt, found.chunk),
    }


def _bar_2(found: Answers, way: Way) -> bool:
    least = {"chat": 2.0, "code edit": 2.5, "none": 0.98}
    for kind, one in found.kinds.items():
        if one.guessing.per_s < least.get(kind, 0.0) * one.plain.per_s:
            return False
        if abs(one.guessing.per_s / one.predicted(way) - 1) > 0.15:
            return False
    return True


def _is_bar_4(measured: Measured, wanted: Wanted) -> bool:
    """77 tokens a second alone, or as near as a run measures it."""
    return (wanted.hops, wanted.rtt_s) == (2, 0.02) and measured.solo_per_s <= 77 * 1.1


def _bar_4(found: Answers) -> bool:
    plain, guessing = found.kinds["chat"].plain, found.kinds["chat"].guessing
    return plain.per_s >= 17 and guessing.per_s >= 25


def rows_of(found: dict[str, object]) -> list[Sequence[str]]:
    """The kinds as lines of a table."""
    kinds = cast(dict[str, dict[str, float | None]], found["kinds"])
    return [
        (
            kind,
            f"{one['plain_per_s']}",
            f"{one['plain_formula_per_s']}",
            f"{one['guessed_per_s']}",
            f"{one['guessed_formula_per_s']}",
            f"{one['times']}",
            "-" if one["acceptance"] is None else f"{one['acceptance']:.0%}",
            f"{one['first_ms']}",
        )
        for kind, one in kinds.items()
    ]
