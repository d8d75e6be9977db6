"""Sessions without end: 10,000 opened, stepped and closed by one client, then 200 at once.

Two nodes serve half of the tiny shape each; a session is one step through both. Nothing may hang,
no stream may be left on either side, every lease must be back, and a server's own memory must be
within 5 % of what it was after the first 1,000: at once after the 10,000, and after the crowds as
soon as the pages that they filled have been given back (node/serving.py: in twice 15 s).

    python -m integration.soak                   the bar: some minutes
    python -m integration.soak --sessions 1000
"""

from __future__ import annotations

import argparse
import json
import secrets
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio

from potluck.node.client import Swarm, open_swarm
from potluck.node.compute.shapes import write_random
from potluck.node.compute.voice import Voice
from potluck.node.serving import TRIM_EVERY_S
from potluck.node.session import SessionPlan, open_session

from .ground import Memory, Node, load, open_node, quantile_ms

NAME = "soak"
SESSION_TOKENS = 16
SESSION_S = 20.0  # longer than any deadline of the software's own: beyond it is a hang
AT_ONCE_S = 60.0
LINGER_S = 40.0  # a closed stream lingers 30 s when the other end is slow to agree
TRIMMED_S = 2 * TRIM_EVERY_S + 5.0
LOOK_EVERY_S = 0.5
GROWTH_MAX = 0.05


def measure(
    sessions: int = 10_000, settle: int = 1_000, at_once: int = 200, waves: int = 3
) -> dict[str, Any]:
    """Soak two nodes. settle: sessions after which memory is taken as the measure of all later."""
    with tempfile.TemporaryDirectory(prefix="potluck-soak-") as folder:
        home = Path(folder)
        write_random(home / "model", "tiny")
        options = ["--name", NAME]
        with open_node(home / "n1", home / "model", "--blocks", "0:4", *options) as first:
            options += ["--join", first.addresses[0]]
            with open_node(home / "n2", home / "model", "--blocks", "4:8", *options) as second:
                nodes = (first, second)
                return trio.run(_soak, nodes, home / "model", sessions, settle, at_once, waves)


async def _soak(
    nodes: Sequence[Node], model: Path, sessions: int, settle: int, at_once: int, waves: int
) -> dict[str, Any]:
    async with open_swarm(nodes[0].addresses, home=nodes[0].home, threads=1) as swarm:
        voice = await swarm.voice(str(model))
        idle = [await trio.to_thread.run_sync(node.counts) for node in nodes]
        hung = 0
        taken_s: list[float] = []
        settled: list[Memory] = []
        began_s = time.monotonic()
        for number in range(sessions):
            if number == settle:
                settled = [node.memory() for node in nodes]
            hung += await _one(swarm, voice, taken_s)
        spent_s = time.monotonic() - began_s
        after = [node.memory() for node in nodes]
        waves_s: list[float] = []
        for _ in range(waves):
            hung += await _many(swarm, voice, at_once, waves_s)
        left = await _left(swarm, nodes, idle)
        crowded = [node.memory() for node in nodes]
        began_s = time.monotonic()
        crowd = await _trimmed(nodes, settled)
        trimmed_s = time.monotonic() - began_s
    growth = [
        late.own / early.own - 1 for early, late in zip(settled * 2, [*after, *crowd], strict=True)
    ]
    return {
        "holds": not hung and not any(left.values()) and max(growth) <= GROWTH_MAX,
        "sessions": sessions,
        "hung": hung,
        "sessions_per_s": round(sessions / spent_s, 1),
        "session_ms_p50": quantile_ms(taken_s, 0.5),
        "session_ms_p99": quantile_ms(taken_s, 0.99),
        "session_ms_max": quantile_ms(taken_s, 1),
        "at_once": at_once,
        "at_once_s": [round(one, 2) for one in waves_s],
        "streams_leaked": sum(left.values()),
        "left": left,
        "memory_growth_worst": round(max(growth), 4),
        "memory_mib_settled": [asdict(one) for one in settled],
        "memory_mib_after_all": [asdict(one) for one in after],
        "memory_mib_at_the_crowds_end": [asdict(one) for one in crowded],
        "memory_mib_after_crowds": [asdict(one) for one in crowd],
        "trimmed_s": round(trimmed_s, 1),
        "load": load(),
    }


def _plan(voice: Voice) -> SessionPlan:
    return SessionPlan(voice.digest, NAME, voice.blocks, voice.width, SESSION_TOKENS)


async def _one(swarm: Swarm, voice: Voice, taken_s: list[float]) -> int:
    """One session of one step; 1 when it hung."""
    payload = voice.embed([3 + secrets.randbelow(250)])
    began_s = time.monotonic()
    with trio.move_on_after(SESSION_S) as deadline:
        async with open_session(swarm.member.host, swarm.router, _plan(voice)) as session:
            session.feed(payload, tokens=1, rows=1)
            assert len(await session.output()) == len(payload)
        taken_s.append(time.monotonic() - began_s)
    return int(deadline.cancelled_caught)


async def _many(swarm: Swarm, voice: Voice, count: int, waves_s: list[float]) -> int:
    """Sessions that are all open at the same time; how many of them hung."""
    payload = voice.embed([5])
    stepped = [0]
    all_stepped = trio.Event()
    done: list[bool] = []

    async def live() -> None:
        async with open_session(swarm.member.host, swarm.router, _plan(voice)) as session:
            for step in range(2):
                session.feed(payload, tokens=1, rows=1)
                await session.output()
                stepped[0] += step == 0
                if stepped[0] == count:
                    all_stepped.set()
                await all_stepped.wait()
        done.append(True)

    began_s = time.monotonic()
    with trio.move_on_after(AT_ONCE_S):
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(live)
    waves_s.append(time.monotonic() - began_s)
    return count - len(done)


async def _left(
    swarm: Swarm, nodes: Sequence[Node], idle: Sequence[dict[str, int]]
) -> dict[str, int]:
    """What is still open once everything was closed; waits as long as a stream may linger."""
    deadline_s = time.monotonic() + LINGER_S
    while True:
        found = {"streams of the client": max(0, swarm.member.host.streams - len(nodes))}
        for number, (node, before) in enumerate(zip(nodes, idle, strict=True), 1):
            now = await trio.to_thread.run_sync(node.counts)
            found[f"sessions of n{number}"] = now["sessions"]
            found[f"leases of n{number}"] = now["leases"]
            found[f"tokens of n{number}"] = before["free_tokens"] - now["free_tokens"]
            # the directory's and gossip's: one each way, and the client's
            asking = 2 * 2 * (len(nodes) - 1) + 1
            found[f"streams of n{number}"] = max(0, now["streams"] - asking)
        if not any(found.values()) or time.monotonic() > deadline_s:
            return found
        await trio.sleep(LOOK_EVERY_S)


async def _trimmed(nodes: Sequence[Node], settled: Sequence[Memory]) -> list[Memory]:
    """The servers' memory once it is back, or when it should be."""
    deadline_s = time.monotonic() + TRIMMED_S
    while True:
        now = [node.memory() for node in nodes]
        growth = [late.own / early.own - 1 for early, late in zip(settled, now, strict=True)]
        if max(growth) <= GROWTH_MAX or time.monotonic() > deadline_s:
            return now
        await trio.sleep(LOOK_EVERY_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--settle", type=int, default=1_000)
    parser.add_argument("--at-once", type=int, default=200)
    asked = parser.parse_args()
    found = measure(asked.sessions, min(asked.settle, asked.sessions // 2), asked.at_once)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
