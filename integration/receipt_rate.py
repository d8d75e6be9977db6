"""Bar E3, of receipts: tokens a second with them and without, and their bytes.

    python -m integration.receipt_rate --shape tiny --servers 2 --rounds 100

Real daemons on loopback, one thread each. Answers with and without receipts take turns, in an order
that turns too, so that a machine which is busy otherwise is so for both; a rate leaves out the time
to the first token. `cost_of_positions` adds up the median time of each token of an answer: what
falls on every 32nd is in it, what else runs for a moment is not. Processor time, of all processes
together, is told beside the rates: it does not depend on what else runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import tempfile
import time
from base64 import b64decode
from itertools import pairwise
from pathlib import Path
from typing import Any

import trio

from potluck.node.client import Swarm, open_swarm
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.shapes import SHAPES, write_random
from potluck.node.library import DEMO_FOLDER
from potluck.node.testnet.launcher import LocalSwarm, Plan, open_testnet
from potluck.swarm.frame import pack_frame
from potluck.swarm.proof import check_proof
from potluck.swarm.receipt import CHUNK_TOKENS
from potluck.swarm.wire import Receipts, Sign

from .ground import processor_s

PROMPT = list(range(3, 11))
TOKENS = 1 + 4 * CHUNK_TOKENS


def measure(shape: str = "tiny", servers: int = 2, rounds: int = 100) -> dict[str, Any]:
    """shape: of random weights, or demo."""
    with tempfile.TemporaryDirectory(prefix="potluck-receipts-") as folder:
        home = Path(folder)
        model = DEMO_FOLDER if shape == "demo" else home / "model"
        if shape in SHAPES:
            write_random(model, shape)
        blocks = open_checkpoint(model).spec.blocks
        plan = Plan(home=home, source=str(model), name="bench", blocks=blocks, nodes=servers)
        with open_testnet(plan) as net:
            found = trio.run(_rounds, net, home, rounds)
    return {"shape": shape, "servers": servers, "rounds": rounds, "new_tokens": TOKENS, **found}


async def _rounds(net: LocalSwarm, home: Path, rounds: int) -> dict[str, Any]:
    times: dict[bool, list[list[float]]] = {False: [], True: []}
    ours: dict[bool, list[float]] = {False: [], True: []}
    theirs: dict[bool, list[float]] = {False: [], True: []}
    raw = b""
    async with open_swarm(net.join, home=home, threads=1) as swarm:
        gc.freeze()  # as the command line does (cli/loading.py): else full collections are measured
        for number in range(-1, rounds):
            for receipts in (False, True) if number % 2 else (True, False):
                spent, own, served, proof = await _answer(swarm, net, receipts)
                raw = proof or raw
                if number >= 0:  # the first round warms up
                    times[receipts].append(spent)
                    ours[receipts].append(own)
                    theirs[receipts].append(served)
    seconds = {on: [sum(one) for one in times[on]] for on in times}
    pairs = zip(seconds[True], seconds[False], strict=True)
    costs = sorted(1 - off / on for on, off in pairs)
    medians = {on: statistics.median(seconds[on]) for on in (False, True)}
    usual = {on: sum(map(statistics.median, zip(*times[on], strict=True))) for on in times}
    return {
        "tokens_per_s_without": round((TOKENS - 1) / medians[False], 1),
        "tokens_per_s_with": round((TOKENS - 1) / medians[True], 1),
        "cost_of_medians": round(1 - medians[False] / medians[True], 4),
        "cost_of_positions": round(1 - usual[False] / usual[True], 4),
        "cost_median_of_pairs": round(statistics.median(costs), 4),
        "cost_interval_95": [round(one, 4) for one in _interval(costs)],
        "client_cpu_ms_a_token": _both(ours),
        "servers_cpu_ms_a_token": _both(theirs),
        **_bytes(raw),
    }


def _interval(ordered: list[float]) -> tuple[float, float]:
    """Of the median, at 95 %: between two of the ordered figures, whatever they are spread like."""
    count = len(ordered)
    away = math.ceil(1.96 * math.sqrt(count) / 2)
    return ordered[max(0, count // 2 - away)], ordered[min(count - 1, count // 2 + away)]


async def _answer(
    swarm: Swarm, net: LocalSwarm, receipts: bool
) -> tuple[list[float], float, float, bytes]:
    """From the first token to the last: seconds of each, processor seconds of ours and of the
    servers; and the proof. Nobody waits for a token at the last signatures: they count in none."""
    async with swarm.generation(
        "bench", PROMPT, max_new_tokens=TOKENS, ignore_eos=True, receipts=receipts, draft="off"
    ) as answer:
        await anext(answer)
        served_s, own_s, came_s = _served_s(net), time.process_time(), [time.perf_counter()]
        async for _ in answer:
            came_s.append(time.perf_counter())
        own_s = time.process_time() - own_s
        served_s = _served_s(net) - served_s
        raw = await answer.proof(swarm.member.key) if receipts else b""
    return [after - before for before, after in pairwise(came_s)], own_s, served_s, raw


def _served_s(net: LocalSwarm) -> float:
    """Processor time of the servers so far."""
    return processor_s(seat.pid for seat in net.seats)


def _both(spent_s: dict[bool, list[float]]) -> dict[str, float]:
    """Milliseconds a token: the means, for a system counts a process's time in steps of 10 ms."""
    found = {on: 1e3 * statistics.fmean(spent_s[on]) / (TOKENS - 1) for on in (False, True)}
    return {"without": round(found[False], 3), "with": round(found[True], 3)}


def _bytes(raw: bytes) -> dict[str, Any]:
    """Of a receipt for 32 tokens: itself, and with both frames on the wire. A whole file's."""
    proof = check_proof(raw)
    assert proof.good, proof.faults
    lines = [line.partition(b" ") for line in raw.split(b"\n")]
    chunks = [b64decode(text) for kind, _, text in lines if kind == b"chunk"]
    largest = max(chunks, key=len)
    return {
        "chunk_bytes": len(largest),
        "chunk_bytes_on_the_wire": len(pack_frame(Sign())) + len(pack_frame(Receipts((largest,)))),
        "file_bytes": len(raw),
        "chunks": len(chunks),
        "bare": proof.bare,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="tiny", choices=[*SHAPES, "demo"])
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=100)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.shape, asked.servers, asked.rounds), indent=2))
