"""Issue F, bar 7: what a reader waits for a token while somebody trains over the same servers.

    python -m integration.yielding [--rounds 6] [--seconds 8]      one JSON line

Two nodes serve a small random model. In turns, so that whatever else the machine does falls on all
of them: a reader alone, a reader while another process trains, and that process alone. The trainer
is a program of its own, as it would be; between its turns it rests, and says that it does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

import potluck
from potluck.node.bench.road import bench_swarm
from potluck.node.client import Swarm
from potluck.node.compute.rehearsal import Rehearsal

ROOT = Path(__file__).parent.parent
BATCH, TOKENS = 4, 64
PROMPT = list(range(3, 11))
ANSWER_TOKENS = 64
WARM_TOKENS = 4  # of each answer: its prompt, and the first that go the way
READY_S = 120.0


@dataclass
class Waits:
    """Seconds of each token, and what was trained meanwhile."""

    alone_s: list[float] = field(default_factory=list)
    beside_s: list[float] = field(default_factory=list)
    trained_beside: list[tuple[int, float]] = field(default_factory=list)  # tokens in seconds
    trained_alone: list[tuple[int, float]] = field(default_factory=list)


class Pupil:
    """The other process, that trains when it may."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._told, self._heard = process.stdin, process.stdout
        self._rest = b""

    async def ready(self) -> None:
        await self._line()

    async def go(self) -> None:
        await self._told.send_all(b"go\n")
        await self._line()

    async def rest(self) -> int:
        """Tokens since it was told to go; nothing of it is under way any more."""
        await self._told.send_all(b"rest\n")
        return int(await self._line())

    async def _line(self) -> bytes:
        with trio.fail_after(READY_S):
            while b"\n" not in self._rest:
                data = await self._heard.receive_some()
                if not data:
                    raise RuntimeError("the process that trains has ended")
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line


async def _measure(rounds: int, seconds: float) -> dict[str, Any]:
    waits = Waits()
    async with (
        bench_swarm("tiny", servers=2) as (swarm, _, model),
        _pupil(model.parent) as pupil,
    ):
        await pupil.ready()
        await _read(swarm, seconds / 2)  # both ends warm
        for _ in range(rounds):
            waits.alone_s += await _read(swarm, seconds)
            began_s = time.monotonic()
            await pupil.go()
            waits.beside_s += await _read(swarm, seconds)
            waits.trained_beside.append((await pupil.rest(), time.monotonic() - began_s))
            began_s = time.monotonic()
            await pupil.go()
            await trio.sleep(seconds / 2)
            waits.trained_alone.append((await pupil.rest(), time.monotonic() - began_s))
    alone, beside = (_quantile(one, 0.95) for one in (waits.alone_s, waits.beside_s))
    rate, fast = (
        sum(tokens for tokens, _ in one) / sum(took_s for _, took_s in one)
        for one in (waits.trained_beside, waits.trained_alone)
    )
    return {
        "p95_ms_alone": round(1000 * alone, 2),
        "p95_ms_beside": round(1000 * beside, 2),
        "p95_times": round(beside / alone, 3),
        "p50_ms_alone": round(1000 * statistics.median(waits.alone_s), 2),
        "p50_ms_beside": round(1000 * statistics.median(waits.beside_s), 2),
        "tokens_read": [len(waits.alone_s), len(waits.beside_s)],
        "trained_tokens_s_beside": round(rate, 1),
        "trained_tokens_s_alone": round(fast, 1),
        "trained_share": round(rate / fast, 4),
        "load": round(os.getloadavg()[0], 1),
    }


async def _read(swarm: Swarm, seconds: float) -> list[float]:
    """Answers one after another for so long: how long each token was waited for."""
    found: list[float] = []
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        async with swarm.generation(
            "bench", PROMPT, max_new_tokens=ANSWER_TOKENS, ignore_eos=True, draft="off"
        ) as answer:
            found += [piece.seconds async for piece in answer][WARM_TOKENS:]
    return found


@asynccontextmanager
async def _pupil(home: Path) -> AsyncIterator[Pupil]:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "integration.yielding", "--train", str(home)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    try:
        yield Pupil(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def _quantile(seconds: Sequence[float], share: float) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def train(home: str) -> None:
    """What the other process does: steps, while it is told to go."""
    may, ended = threading.Event(), threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            if line == "go\n":
                may.set()
                print("goes", flush=True)
            else:
                may.clear()
        ended.set()
        may.set()

    with potluck.connect(home=home) as swarm:
        rehearsal = Rehearsal(swarm, "bench", batch=BATCH, tokens=TOKENS)
        for _ in range(3):
            rehearsal.blocks()
        print("ready", flush=True)
        threading.Thread(target=listen, daemon=True).start()
        while True:
            may.wait()
            if ended.is_set():
                return
            tokens = 0
            while may.is_set():
                rehearsal.blocks()
                tokens += BATCH * TOKENS
            print(tokens, flush=True)


def measure(rounds: int = 6, seconds: float = 8.0) -> dict[str, Any]:
    return trio.run(_measure, rounds, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--train", default="", metavar="HOME", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.train:
        train(asked.train)
    else:
        print(json.dumps(measure(asked.rounds, asked.seconds)))


if __name__ == "__main__":
    main()
