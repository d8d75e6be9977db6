"""Issue H, bar 2: many readers of `potluck api` at once, while nodes are killed.

    python -m integration.readers                   ten minutes, 64 readers, a kill every 15 s
    python -m integration.readers --readers 8 --seconds 30

A testnet with two nodes of each range of blocks, and one API over it. Each reader streams one
answer after another, over HTTP as anybody would; a node is killed with SIGKILL every so often and
started anew at once, and never one whose twin is away: there is capacity for all at all times. An
answer that is refused, ends early, or has other words than the same prompt had on the idle swarm,
has failed. A stall is the time from one piece of a running answer to the next. In the end nothing
may be left open in any node, and the API's memory is told as it was after a quarter of the time
and at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from potluck.node.library import DEMO_FOLDER
from potluck.node.testnet.launcher import LocalSwarm, Plan, open_testnet
from potluck.node.testnet.logs import counts, log_bytes

from .ground import ENVIRONMENT, POTLUCK, load, memory_of, quantile_ms
from .waiting import until

PROMPTS = [
    f"The {thing} of a {owner}"
    for thing in ("function", "list", "class", "value")
    for owner in ("module", "string", "file", "number")
]
TOKENS = 48
NODES, REPLICAS = 6, 2
PIECE_S = 60.0  # a reader that waits longer for a piece gives up, and has failed
SETTLED_SHARE = 0.25  # of the time: the API's memory is measured against what it was then
GROWTH_MAX = 0.1  # guess: of the API's own memory, in three quarters of the time
NOTHING = ("sessions", "leases", "pages")  # of what a node tells is open in it


@dataclass
class Tally:
    """What readers have seen. stalls_s: from piece to piece; first_s: to the first."""

    answers: int = 0
    tokens: int = 0
    failures: list[str] = field(default_factory=list)
    stalls_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)


def measure(
    readers: int = 64, seconds: float = 600.0, every_s: float = 15.0, seed: int = 1
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="potluck-readers-") as folder:
        home = Path(folder)
        plan = Plan(
            home=home, source=str(DEMO_FOLDER), name="demo", blocks=8, nodes=NODES,
            replicas=REPLICAS,
        )  # fmt: skip
        with open_testnet(plan) as net, _api(home) as (url, api):
            with httpx.Client(base_url=url, timeout=PIECE_S) as client:
                expected = [_read(client, prompt, Tally()) for prompt in PROMPTS]
            return _crowd(net, url, api, expected, readers, seconds, every_s, seed)


@contextmanager
def _api(home: Path) -> Iterator[tuple[str, psutil.Process]]:
    command = [*POTLUCK, "api", "--port", "0", "--json", "--home", str(home)]
    environment = {**os.environ, **ENVIRONMENT}
    with (
        (home / "api.log").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            yield str(json.loads(process.stdout.readline())["url"]), psutil.Process(process.pid)
        finally:
            process.terminate()


def _crowd(
    net: LocalSwarm, url: str, api: psutil.Process, expected: list[str], readers: int,
    seconds: float, every_s: float, seed: int,
) -> dict[str, Any]:  # fmt: skip
    tallies = [Tally() for _ in range(readers)]
    began_s = time.monotonic()
    over = threading.Event()
    settled: dict[str, Any] = {}
    with ThreadPoolExecutor(readers) as pool:
        futures = [
            pool.submit(_reader, url, tally, expected, random.Random(seed * 1000 + number), over)
            for number, tally in enumerate(tallies)
        ]
        try:
            dice, kills = random.Random(seed), 0
            away: dict[str, None] = {}
            next_s = began_s + every_s
            while (now_s := time.monotonic()) < began_s + seconds:
                for name in [name for name in away if net.ready(name) is not None]:
                    del away[name]
                if now_s >= next_s and (victim := _victim(net, away, dice)) is not None:
                    net.send(victim, signal.SIGKILL)
                    net.launch(victim, net.join)
                    away[victim] = None
                    kills += 1
                    next_s += every_s
                if not settled and now_s >= began_s + SETTLED_SHARE * seconds:
                    settled = _of(api)
                over.wait(0.2)
        finally:
            over.set()
        for future in futures:
            future.result()
    spent_s = time.monotonic() - began_s
    at_end = _of(api)
    for name in away:
        until(lambda name=name: net.ready(name) is not None, within_s=60.0)
    left = _left(net)
    stalls = [one for tally in tallies for one in tally.stalls_s]
    firsts = [one for tally in tallies for one in tally.first_s]
    failures = [one for tally in tallies for one in tally.failures]
    growth = at_end["own_mib"] / settled["own_mib"] - 1 if settled else 0.0
    return {
        "holds": not failures and not any(left.values()) and growth <= GROWTH_MAX,
        "readers": readers,
        "kills": kills,
        "seconds": round(spent_s, 1),
        "answers": sum(tally.answers for tally in tallies),
        "failed": len(failures),
        "failures": failures[:10],
        "tokens_per_s": round(sum(tally.tokens for tally in tallies) / spent_s, 1),
        "stall_ms_p50": quantile_ms(stalls, 0.5),
        "stall_ms_p99": quantile_ms(stalls, 0.99),
        "stall_ms_max": quantile_ms(stalls, 1),
        "first_ms_p50": quantile_ms(firsts, 0.5),
        "first_ms_p99": quantile_ms(firsts, 0.99),
        "left_open": left,
        "api_after_a_quarter": settled,
        "api_at_the_end": at_end,
        "api_growth": round(growth, 4),
        "seed": seed,
        "load": load(),
    }


def _reader(
    url: str, tally: Tally, expected: list[str], dice: random.Random, over: threading.Event
) -> None:
    with httpx.Client(base_url=url, timeout=PIECE_S) as client:
        while not over.is_set():
            number = dice.randrange(len(PROMPTS))
            try:
                text = _read(client, PROMPTS[number], tally)
            except (httpx.HTTPError, RuntimeError) as error:
                tally.failures.append(f"{type(error).__name__}: {error}"[:300])
                continue
            if text != expected[number]:
                tally.failures.append(f"other words: {text!r}"[:300])
            tally.answers += 1


def _read(client: httpx.Client, prompt: str, tally: Tally) -> str:
    """One streamed answer, whole. Raises RuntimeError when it is refused or ends early."""
    asked = {
        "model": "demo", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": True,
    }  # fmt: skip
    text, done = "", False
    before_s, first = time.monotonic(), True
    with client.stream("POST", "/completions", json=asked) as reply:
        if reply.status_code != 200:
            raise RuntimeError(f"{reply.status_code}: {reply.read().decode()}")
        for line in reply.iter_lines():
            if not line.startswith("data: "):
                continue
            if done := line == "data: [DONE]":
                break
            said = json.loads(line[6:])
            if "error" in said:
                raise RuntimeError(line)
            now_s = time.monotonic()
            (tally.first_s if first else tally.stalls_s).append(now_s - before_s)
            before_s, first = now_s, False
            tally.tokens += 1
            text += said["choices"][0]["text"]
    if not done:
        raise RuntimeError("it ended without [DONE]")
    return text


def _victim(net: LocalSwarm, away: dict[str, None], dice: random.Random) -> str | None:
    """A node whose twin serves; None while there is none."""
    there = [seat for seat in net.seats if seat.name not in away]
    spans = [(seat.start, seat.stop) for seat in there]
    may = [seat.name for seat, span in zip(there, spans, strict=True) if spans.count(span) > 1]
    return dice.choice(may) if may else None


def _of(process: psutil.Process) -> dict[str, Any]:
    return {
        "own_mib": memory_of(process.pid).own,
        "files": process.num_fds(),
        "threads": process.num_threads(),
    }


def _left(net: LocalSwarm) -> dict[str, int]:
    """What is open in all nodes together, once it has come to rest."""
    folder = net.roster.folder
    found: dict[str, int] = {}

    def rest() -> bool:
        found.clear()
        for seat in net.seats:
            since = log_bytes(folder, seat.name)
            net.send(seat.name, signal.SIGUSR1)
            until(lambda s=seat, b=since: counts(folder, s.name, b) is not None, within_s=20.0)
            told = counts(folder, seat.name, since) or {}
            for name in NOTHING:
                found[name] = found.get(name, 0) + told.get(name, 0)
        return not any(found.values())

    until(rest, within_s=60.0)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--every-s", type=float, default=15.0, help="from one kill to the next")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    found = measure(asked.readers, asked.seconds, asked.every_s, asked.seed)
    print(json.dumps(found, indent=1))
    return 0 if found["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
