"""The laboratory of `potluck bench wan`: real daemons on long roads, and what its formula is told.

Real daemons, each in a network of its own, on roads of a length, a rate and a loss (roads.py);
where that cannot be had, on loopback, with roads that are made long at the client (far.py) and, for
what is pushed from hop to hop, at the nodes (testnet/far_peers.py). Measured apart first, in the
same run: the passes of every stage, as its server tells them; what a hop takes beyond its pass and
its way; what the client takes for a token.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import trio

from ...errors import UserError
from ...swarm.wan import Shape, Stage, Way
from ...swarm.wire import PROTOCOL, Open, Opened, Output, Step
from ..client import Swarm
from ..compute.checkpoint import open_checkpoint
from ..compute.local import local_seconds
from ..compute.shapes import write_random
from ..compute.voice import DTYPE, Voice
from ..compute.worker import Worker, open_worker
from ..frames import FrameStream
from ..generation import GREEDY
from ..library import DEMO_FOLDER
from ..net.host import Host
from ..testnet import roads
from ..testnet.launcher import LocalSwarm, Plan
from ..testnet.roster import Seat
from .far import FarHost
from .road import PROMPT_TOKENS, joined

CONTEXT: Final = 4096  # of the models here: a prompt of 2,048 tokens, and an answer
PROBES: Final = ((1, 9), (8, 5), (33, 3), (128, 3), (512, 3))  # rows of a step, how often
PROBED_AT: Final = 64  # positions that are there before
BARE_SHAPE: Final = "demo"
SOLO_TOKENS: Final = 48
NAME: Final = "far"

Wish = Literal["star", "chain", "both"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """rtt_s: between any two. bytes_s: of each road and direction. loss: share of packets, 0..1.
    tokens: of each answer, at most. prompt: tokens of the long one; 0: none. model: "demo", or the
    shape of a random one (compute/shapes.py). way: how rows go from hop to hop. draft: what
    guesses, as `potluck generate --draft` is told."""

    hops: int = 4
    rtt_s: float = 0.1
    bytes_s: float = 100e6 / 8
    loss: float = 0.0
    tokens: int = 96
    prompt: int = 2048
    model: str = BARE_SHAPE
    way: Wish = "star"
    draft: str = "auto"

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return ("star", "chain") if self.way == "both" else (self.way,)

    def told(self) -> dict[str, object]:
        return {
            "hops": self.hops,
            "rtt_ms": round(self.rtt_s * 1e3, 3),
            "mbit": round(self.bytes_s * 8 / 1e6, 3),
            "loss": self.loss,
            "model": self.model,
            "draft": self.draft,
        }


def check_way(word: str) -> Wish:
    """Raises UserError."""
    for wish in get_args(Wish):
        if word == wish:
            return cast(Wish, wish)
    raise UserError(f"no way {word}: give {' or '.join(get_args(Wish))}")


@dataclass(frozen=True, slots=True)
class Laboratory:
    """host: the client's, at the end of its roads. way: by star, as it was measured. roads: what
    they are made of, in words."""

    host: Host
    swarm: Swarm
    net: LocalSwarm
    worker: Worker
    voice: Voice
    way: Way
    solo_per_s: float
    roads: str


@asynccontextmanager
async def open_laboratory(wanted: Wanted) -> AsyncIterator[Laboratory]:
    """Raises UserError for what cannot be had here."""
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
        plan = Plan(
            home=Path(folder), source=str(model), name=NAME, blocks=checkpoint.spec.blocks,
            nodes=wanted.hops, **_roads_of(wanted, real=why is None),
        )  # fmt: skip
        async with (
            joined(plan) as (swarm, net),
            open_worker(threads=1) as worker,
            _far(swarm, wanted, real=why is None) as host,
        ):
            voice = await swarm.voice(NAME)
            way = await _measure(host, net, worker, voice, wanted)
            yield Laboratory(
                host, swarm, net, worker, voice, way, 1 / statistics.median(alone[1:]),
                "between networks of their own" if why is None else f"made at both ends: {why}",
            )  # fmt: skip


def _roads_of(wanted: Wanted, *, real: bool) -> dict[str, Any]:
    """What a plan is told of the roads between the nodes."""
    if real:
        return {"road": roads.Road(wanted.rtt_s / 2, wanted.bytes_s, wanted.loss)}
    return {"peer_roads": f"{wanted.rtt_s * 1e3}:{wanted.bytes_s}"}


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
        tuple(stages), row_bytes, "star", statistics.median(over_s), statistics.median(client_s)
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
