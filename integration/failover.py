"""The failover sweep: kill the serving peer of each stage at every token, and compare the words.

Real daemons, three stages with replicas, SIGKILL. Each run is held against the undisturbed run of
the same request: same token ids, same text. A stall is the time between the two tokens around a
kill. Killed nodes are started anew beside the next runs, so that replicas are always there.

    python integration/failover.py            the whole sweep, about ten minutes on two cores
    python integration/failover.py --every 8  each eighth token index
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from potluck.node.client import Swarm, open_swarm
from potluck.node.library import DEMO_FOLDER
from potluck.node.testnet.launcher import LocalSwarm, Plan, open_testnet

STAGES = 3
REPLICAS = 3
TOKENS = 36
INDICES = 32
CONTEXT = 64  # tokens of the prompt
LONG_PROMPT = 600  # in prefill: five chunks
# one token in a step: with guesses a kill at each index would hit few of the steps, and often
GREEDY: dict[str, Any] = {"draft": "off"}
SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "seed": 11, "draft": "off"}


@dataclass
class Run:
    """One disturbed answer. stall_s: the longest wait for a token from the kill on."""

    what: str
    same: bool
    stall_s: float
    lost: int


@dataclass
class Sweep:
    swarm: Swarm
    net: LocalSwarm
    nursery: trio.Nursery
    runs: list[Run] = field(default_factory=list)
    restarting: set[str] = field(default_factory=set)
    lock: trio.Lock = field(default_factory=trio.Lock)
    back: trio.Event = field(default_factory=trio.Event)

    async def undisturbed(self, prompt: Sequence[int], how: dict[str, Any]) -> list[int]:
        async with self.swarm.generation(
            "demo", prompt, max_new_tokens=TOKENS, ignore_eos=True, **how
        ) as answer:
            return [piece.token async for piece in answer]

    async def killed_at(
        self,
        prompt: Sequence[int],
        how: dict[str, Any],
        expected: list[int],
        stages: Sequence[int],
        index: int,
        what: str,
    ) -> None:
        """Kill the peers of `stages` once token `index` is there; -1: while the prompt fills."""
        tokens: list[int] = []
        waits: list[float] = []
        async with self.swarm.generation(
            "demo", prompt, max_new_tokens=TOKENS, ignore_eos=True, **how
        ) as answer:
            if index < 0:
                async with trio.open_nursery() as nursery:

                    async def kill_soon() -> None:
                        while not answer.flowing:  # the first chunks are on their way
                            await trio.lowlevel.checkpoint()
                        self.kill(answer.route, stages)

                    nursery.start_soon(kill_soon)
                    piece = await anext(answer)
                tokens.append(piece.token)
                waits.append(piece.seconds)
            async for piece in answer:
                tokens.append(piece.token)
                if len(tokens) > index + 1:
                    waits.append(piece.seconds)
                if len(tokens) == index + 1:
                    self.kill(piece.route, stages)
            lost = len(answer.recoveries)
        self.runs.append(Run(what, tokens == expected, max(waits), lost))
        await self.replicas_are_back()

    def kill(self, route: Sequence[Any], stages: Sequence[int]) -> None:
        for stage in stages:
            name = next(seat.name for seat in self.net.seats if seat.peer == route[stage].peer)
            self.net.send(name, signal.SIGKILL)
            self.restarting.add(name)
            self.nursery.start_soon(self.restart, name)

    async def restart(self, name: str) -> None:
        async with self.lock:  # one at a time: the machine has two cores
            await trio.to_thread.run_sync(self.net.restart, name)
        self.restarting.discard(name)
        self.back.set()

    async def replicas_are_back(self) -> None:
        """Until each stage has two peers again: a kill must leave one."""
        while len(self.restarting) > REPLICAS - 2:
            self.back = trio.Event()
            await self.back.wait()


async def sweep(every: int, how_many: Sequence[str] = ("greedy", "sampled")) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="potluck-failover-") as folder:
        plan = Plan(
            home=Path(folder),
            source=str(DEMO_FOLDER),
            name="demo",
            blocks=8,
            nodes=STAGES * REPLICAS,
            replicas=REPLICAS,
        )
        with open_testnet(plan) as net:
            async with (
                open_swarm(net.join, home=folder, threads=1) as swarm,
                trio.open_nursery() as nursery,
            ):
                made = Sweep(swarm, net, nursery)
                await _all(made, every, how_many)
                nursery.cancel_scope.cancel()
    return _summary(made.runs)


async def _all(made: Sweep, every: int, how_many: Sequence[str]) -> None:
    voice = await made.swarm.voice("demo")
    text = (DEMO_FOLDER / "README.md").read_text(encoding="utf-8") * 20
    ids = voice.text.encode(text)
    prompt, long_prompt = ids[:CONTEXT], ids[:LONG_PROMPT]
    for name in how_many:
        how = GREEDY if name == "greedy" else SAMPLED
        expected = await made.undisturbed(prompt, how)
        for index in range(0, INDICES, every):
            for stage in range(STAGES):
                what = f"{name}, stage {stage}, token {index}"
                await made.killed_at(prompt, how, expected, [stage], index, what)
        for index in range(2, INDICES, 4 * every):
            pair = [index % STAGES, (index + 1) % STAGES]
            what = f"{name}, stages {pair} at once, token {index}"
            await made.killed_at(prompt, how, expected, pair, index, what)
        expected = await made.undisturbed(long_prompt, how)
        for stage in range(STAGES):
            what = f"{name}, stage {stage}, in prefill"
            await made.killed_at(long_prompt, how, expected, [stage], -1, what)


def _summary(runs: list[Run]) -> dict[str, Any]:
    decode = sorted(run.stall_s for run in runs if "prefill" not in run.what)
    return {
        "runs": len(runs),
        "identical": sum(run.same for run in runs),
        "different": [run.what for run in runs if not run.same],
        "hops_lost": sum(run.lost for run in runs),
        "stall_s_p50": round(statistics.median(decode), 3),
        "stall_s_p95": round(decode[int(0.95 * (len(decode) - 1))], 3),
        "stall_s_max": round(decode[-1], 3),
        "context_tokens": CONTEXT,
    }


def measure(every: int = 1) -> dict[str, Any]:
    """Run the sweep; figures as in the bar."""
    return trio.run(sweep, every)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    print(json.dumps(measure(parser.parse_args().every), indent=1))
