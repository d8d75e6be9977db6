"""100,000 fuzzed frames and streams against a live node, and an honest client all the while.

Three processes: the node, the enemy (enemy.py), and this one, which asks the node for answers as
fast as it gives them and compares each with the answer before the attack. A newcomer joins every
few seconds. The node may not die, may not stop serving, and may not grow. It is a relay as well;
what it would hear over one is said afterwards to hosts of this process (fuzz_punch.py).

    python -m integration.fuzz                   the bar: some minutes
    python -m integration.fuzz --units 5000
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import trio

from potluck.errors import PotluckError
from potluck.node.client import Swarm, open_swarm
from potluck.node.compute.shapes import SHAPES, write_random

from .fuzz_punch import attack as attack_punches
from .ground import Memory, Node, load, open_node, quantile_ms

SHAPE = "tiny"
PROMPT = (5, 6, 7, 8, 9, 10, 11, 12)
ANSWER_TOKENS = 8
ANSWER_S = 20.0  # an answer later than this is a node that has stopped serving
PAUSE_S = 0.02  # between two answers: the enemy shall have its share of the machine too
NEWCOMER_EVERY_S = 3.0
SAMPLE_EVERY_S = 1.0
GROWTH_MAX_MIB = 128.0  # the shelf may take 32, unread bytes for a moment more
PUNCHES = 0.02  # of all units
OVER_S = 5.0  # a step that is being computed when its client leaves is computed to its end
ROOT = Path(__file__).parent.parent


@dataclass
class Seen:
    """What the honest saw, and what the node took meanwhile."""

    answers_s: list[float] = field(default_factory=list)
    newcomers_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)  # of the only hop, which was then found again
    memory: list[Memory] = field(default_factory=list)


def measure(units: int = 100_000, seed: int = 1) -> dict[str, Any]:
    """Attack one node that serves the whole tiny shape."""
    with tempfile.TemporaryDirectory(prefix="potluck-fuzz-") as folder:
        home = Path(folder)
        write_random(home / "model", SHAPE)
        with open_node(home / "node", home / "model", "--relay", "yes") as node:
            found = trio.run(_measure, node, home / "model", units, seed)
    punches = trio.run(attack_punches, int(units * PUNCHES), seed)
    found["holds"] = found["holds"] and not punches["streams_left"]
    return {**found, "sent": found["sent"] + punches["units"], "punches_over_a_relay": punches}


async def _measure(node: Node, model: Path, units: int, seed: int) -> dict[str, Any]:
    seen = Seen()
    before = node.memory()
    async with open_swarm(node.addresses, home=node.home, threads=1) as swarm:
        expected, _ = await _answer(swarm, model)
        calm_s = [(await _answer(swarm, model))[1] for _ in range(20)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ask_on, swarm, model, expected, seen)
            nursery.start_soon(_join_on, node, model, expected, seen)
            nursery.start_soon(_watch, node, seen)
            told = await _attack(node, units, seed)
            nursery.cancel_scope.cancel()
        after_attack = await _asked(swarm, model, expected, seen)
    counts, over_s = await _when_over(node)
    after = node.memory() if node.lives else before
    grown = round(after.own - before.own, 1)
    alive = node.lives and "Traceback" not in node.log
    served = after_attack and bool(seen.answers_s) and bool(seen.newcomers_s)
    clean = not counts.get("sessions", 1) and not counts.get("leases", 1)
    return {
        "holds": alive and served and clean and not seen.failures and grown <= GROWTH_MAX_MIB,
        "sent": told["units"],
        "seconds": told["seconds"],
        "alive": alive,
        "honest_answers": len(seen.answers_s),
        "honest_failures": len(seen.failures),
        "hops_lost": len(seen.losses),
        "losses": seen.losses[:10],
        "failures": seen.failures[:10],
        "answer_ms_calm_p50": quantile_ms(calm_s, 0.5),
        "answer_ms_p50": quantile_ms(seen.answers_s, 0.5),
        "answer_ms_p99": quantile_ms(seen.answers_s, 0.99),
        "answer_ms_max": quantile_ms(seen.answers_s, 1),
        "newcomers": len(seen.newcomers_s),
        "newcomer_ms_p50": quantile_ms(seen.newcomers_s, 0.5),
        "newcomer_ms_max": quantile_ms(seen.newcomers_s, 1),
        "memory_mib_before": asdict(before),
        "memory_mib_peak": asdict(max(seen.memory, key=lambda one: one.own, default=before)),
        "memory_mib_after": asdict(after),
        "memory_grown_mib": grown,
        "left": counts,
        "left_for_s": over_s,
        "node_cpu_s": round(node.cpu_s(), 1) if node.lives else None,
        "by_kind": told["by_kind"],
        "load": load(),
    }


async def _attack(node: Node, units: int, seed: int) -> dict[str, Any]:
    """Run the enemy in a process of its own, to its end."""
    hidden, blocks, *_ = SHAPES[SHAPE]
    command = [sys.executable, "-m", "integration.enemy", node.addresses[0]]
    command += ["--model", node.facts["model"], "--width", str(hidden), "--blocks", str(blocks)]
    command += ["--seed", str(seed), "--units", str(units)]
    done = await trio.run_process(command, capture_stdout=True, cwd=ROOT)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


async def _when_over(node: Node) -> tuple[dict[str, int], float]:
    """What is open in it once the enemy's sessions are over, or OVER_S have passed; and when."""
    began_s = time.monotonic()
    while True:
        counts = await trio.to_thread.run_sync(node.counts) if node.lives else {}
        spent_s = time.monotonic() - began_s
        if not (counts.get("sessions") or counts.get("leases")) or spent_s > OVER_S:
            return counts, round(spent_s, 1)
        await trio.sleep(SAMPLE_EVERY_S)


async def _answer(
    swarm: Swarm, model: Path, losses: list[str] | None = None
) -> tuple[list[int], float]:
    began_s = time.monotonic()
    async with swarm.generation(
        str(model), PROMPT, max_new_tokens=ANSWER_TOKENS, ignore_eos=True
    ) as answer:
        tokens = [piece.token async for piece in answer]
    if losses is not None:
        losses += [lost.reason for lost in answer.recoveries]
    return tokens, time.monotonic() - began_s


async def _asked(swarm: Swarm, model: Path, expected: Sequence[int], seen: Seen) -> bool:
    """One answer, held against the undisturbed one; whether it was right and in time."""
    with trio.move_on_after(ANSWER_S):
        try:
            tokens, spent_s = await _answer(swarm, model, seen.losses)
        except PotluckError as error:
            seen.failures.append(f"no answer: {error}")
            return False
        if tokens != expected:
            seen.failures.append(f"another answer: {tokens}")
            return False
        seen.answers_s.append(spent_s)
        return True
    seen.failures.append(f"no answer within {ANSWER_S:.0f} s")
    return False


async def _ask_on(swarm: Swarm, model: Path, expected: Sequence[int], seen: Seen) -> None:
    while True:
        await _asked(swarm, model, expected, seen)
        await trio.sleep(PAUSE_S)


async def _join_on(node: Node, model: Path, expected: Sequence[int], seen: Seen) -> None:
    """Somebody new, again and again: joins, asks, leaves."""
    while True:
        await trio.sleep(NEWCOMER_EVERY_S)
        began_s = time.monotonic()
        answered = False
        try:
            async with open_swarm(node.addresses, home=node.home, threads=1) as swarm:
                answered = await _asked(swarm, model, expected, seen)
        except PotluckError as error:
            seen.failures.append(f"a newcomer: {error}")
        if answered:
            seen.newcomers_s.append(time.monotonic() - began_s)


async def _watch(node: Node, seen: Seen) -> None:
    while True:
        with suppress(FileNotFoundError):  # it died: `alive` tells
            seen.memory.append(node.memory())
        await trio.sleep(SAMPLE_EVERY_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.units, asked.seed), indent=2))


if __name__ == "__main__":
    main()
