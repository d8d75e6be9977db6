"""What one node costs: its memory while it serves half of the tiny shape, and how soon it serves.

The node is a process of its own, started as a person starts it. `pss_mib` is the most that it took,
at rest or serving; pages that neighbours share count in part, so `rss_mib` (all of them whole) is
what a node takes that is alone on its machine. `ready_s` is the median from exec to the line that
says that it serves; `ready_cpu_s`, the processor time of the same, does not depend on neighbours.

    python -m integration.memory
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import trio

from potluck.node.client import open_swarm
from potluck.node.compute.shapes import write_random
from potluck.node.compute.voice import DTYPE
from potluck.node.frames import FrameStream
from potluck.swarm.wire import PROTOCOL, Open, Opened, Output, Step

from .ground import ENVIRONMENT, Memory, Node, load, open_node

MEMORY_MAX_MIB = 320.0
READY_MAX_S = 3.0
SESSIONS = 16
TOKENS = 256
STEPS = 20

# what is imported on the way to a node, in an order that gives each its own share
STAGES = (
    "typer",
    "trio, structlog",
    "cryptography.hazmat.primitives.ciphers.aead, noise.connection, msgpack",
    "potluck.dht.kad",
    "potluck.node.member",
    "numpy",
    "torch",
    "potluck.node.daemon",
)
PROBE = """
import importlib, json, sys, time
def own():
    kib = {}
    for line in open("/proc/self/smaps_rollup").read().splitlines()[1:]:
        name, _, size = line.partition(":")
        kib[name] = int(size.split()[0])
    return kib["Anonymous"] / 1024, kib["Rss"] / 1024
found, before, began = [], own(), time.process_time()
found.append(["python", *before, began])
for stage in json.loads(sys.argv[1]):
    for name in stage.split(", "):
        importlib.import_module(name)
    after, now = own(), time.process_time()
    found.append([stage, after[0] - before[0], after[1] - before[1], now - began])
    before, began = after, now
print(json.dumps(found))
"""


def measure(starts: int = 5, *, explain: bool = True) -> dict[str, Any]:
    """Start a node several times, and let the last one serve. explain: by what is imported."""
    with tempfile.TemporaryDirectory(prefix="potluck-memory-") as folder:
        home = Path(folder)
        model = home / "model"
        write_random(model, "tiny")
        ready_s: list[float] = []
        cpu_s: list[float] = []
        for number in range(starts):
            with open_node(home / "node", model, "--blocks", "0:4") as node:
                ready_s.append(node.ready_s)
                cpu_s.append(node.cpu_s())
                rest = node.memory()
                if number == starts - 1:
                    serving = trio.run(_serving, node, model)
                    processes = 1 + len(psutil.Process(node.process.pid).children(recursive=True))
    most, soon_s = max(rest.pss, serving.pss), round(statistics.median(ready_s), 2)
    return {
        "holds": most <= MEMORY_MAX_MIB and soon_s <= READY_MAX_S and processes == 1,
        "pss_mib": most,
        "rss_mib": max(rest.rss, serving.rss),
        "processes": processes,
        "ready_s": soon_s,
        "ready_s_of_each": [round(one, 2) for one in ready_s],
        "ready_cpu_s": round(statistics.median(cpu_s), 2),
        "at_rest_mib": asdict(rest),
        "serving_mib": asdict(serving),
        "sessions": SESSIONS,
        "tokens_each": TOKENS,
        "breakdown": breakdown() if explain else [],
        "load": load(),
    }


def breakdown(stages: Sequence[str] = STAGES) -> list[dict[str, Any]]:
    """What each import adds, in a process of its own: memory of its own, all pages, CPU seconds."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROBE, json.dumps(list(stages))],
        capture_output=True,
        check=True,
        env={**os.environ, **ENVIRONMENT},
    )
    return [
        {"what": what, "own_mib": round(own, 1), "rss_mib": round(rss, 1), "cpu_s": round(cpu, 2)}
        for what, own, rss, cpu in json.loads(done.stdout)
    ]


async def _serving(node: Node, model: Path) -> Memory:
    """The node's memory while sessions are open and have filled their caches."""
    async with open_swarm(node.addresses, home=node.home, threads=1) as swarm:
        voice = await swarm.voice(str(model))
        chunk = voice.embed([3] * (TOKENS - STEPS))
        one = voice.embed([5])
        sessions: list[FrameStream] = []
        for number in range(SESSIONS):
            frames = FrameStream(await swarm.member.host.open_stream(node.peer, PROTOCOL))
            name = number.to_bytes(16)
            await frames.send(Open(name, voice.digest, 0, 4, TOKENS, DTYPE))
            assert isinstance(await _heard(frames), Opened)
            await frames.send(Step(0, (TOKENS - STEPS,), 1), chunk)
            assert isinstance(await _heard(frames), Output)
            sessions.append(frames)
        for at in range(TOKENS - STEPS, TOKENS):
            for frames in sessions:
                await frames.send(Step(at, (1,), 1), one)
            for frames in sessions:
                assert isinstance(await _heard(frames), Output)
        memory = node.memory()
        for frames in sessions:
            await frames.close()
        return memory


async def _heard(frames: FrameStream) -> object:
    received = await frames.receive()
    assert received is not None, "the node ended a session"
    return received[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=5)
    print(json.dumps(measure(parser.parse_args().starts), indent=2))


if __name__ == "__main__":
    main()
