"""A testnet and its simulated twin: do they agree on p50 and goodput?

Sixteen daemons as processes of their own serve a model of random weights, a few blocks each. First
each of them alone is asked for steps of several sizes: its compute table, and the time of the
software around it; what a session of one token takes beyond that is the opening. Then requests
come at random moments, each a session of one step through all blocks, by the daemon's own router.
The twin is the simulator with those tables, those spans, the same number of requests a second, and
the same cores: the processes share one machine, and the software around a step is theirs to run,
too, so that it stands in the tables. So does what the opening of a session takes of the cores, here
and in the daemons, shared out over its steps. What the daemons take at rest makes all slower, and
so does another core at work, which shares memory and perhaps more: as often as the load has it so.

A request is good when it is answered within three times what one takes alone.

    python -m integration.calibration                              16 daemons, some minutes
    python -m integration.calibration --nodes 4 --replicas 2 --seconds 30
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from potluck.errors import PotluckError
from potluck.node.client import Swarm, open_swarm
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.shapes import write_random
from potluck.node.compute.voice import DTYPE, Voice
from potluck.node.frames import FrameStream
from potluck.node.session import SessionPlan, open_session
from potluck.node.testnet.launcher import LocalSwarm, Plan, open_testnet
from potluck.node.testnet.roster import Seat as Placed
from potluck.swarm.blocks import BlockRange
from potluck.swarm.sim.dice import Dice
from potluck.swarm.sim.run import Outcome, Simulation
from potluck.swarm.sim.scenario import Links, Load, Model, Peers, Placing, Scenario
from potluck.swarm.sim.table import Table
from potluck.swarm.sim.world import Seat
from potluck.swarm.wire import PROTOCOL, Open, Opened, Output, Step

from .ground import load, processor_s

NAME = "calibration"
TOKENS = 64  # of each request
SIZES = (1, 16, TOKENS)
REPEATS = 7
GOOD_TIMES = 3.0
AGREE_WITHIN = 0.15
SEEDS = 5  # of the twin
DRAIN_S = 60.0  # for the last answers
REST_S = 10.0
OPENINGS = 40  # sessions
READY_S = 900.0  # sixteen daemons start at once; two cores with other work take minutes


@dataclass(slots=True)
class Measured:
    """What a step takes in a peer, as (blocks, tokens, ms) rows; of it, the software around."""

    rows: list[tuple[int, int, float]] = field(default_factory=list)
    software_s: dict[int, float] = field(default_factory=dict)  # by tokens


@dataclass(slots=True)
class Life:
    """What the testnet did."""

    offered: int = 0
    failed: int = 0
    latencies_s: list[float] = field(default_factory=list)


def measure(
    nodes: int, replicas: int, seconds: float, share: float, seed: int, shape: str = "small"
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="potluck-calibration-") as folder:
        home = Path(folder)
        write_random(home / "model", shape)
        blocks = open_checkpoint(home / "model").spec.blocks
        plan = Plan(
            home=home, source=str(home / "model"), name=NAME, blocks=blocks,
            nodes=nodes, replicas=replicas, ready_s=READY_S,
        )  # fmt: skip
        with open_testnet(plan) as net:
            return trio.run(_calibrate, net, home, seconds, share, seed)


async def _calibrate(
    net: LocalSwarm, home: Path, seconds: float, share: float, seed: int
) -> dict[str, Any]:
    async with open_swarm(net.join, home=home, threads=1) as swarm:
        voice = await swarm.voice(NAME)
        found = [await _table(swarm, voice, seat) for seat in net.seats]
        seats = [
            Seat(BlockRange(seat.start, seat.stop), Table(seat.name, tuple(one.rows)))
            for seat, one in zip(net.seats, found, strict=True)
        ]
        hop_s = {
            tokens: statistics.median(one.software_s[tokens] for one in found) for tokens in SIZES
        }
        alone_s, one_s = [
            statistics.median([await _request(swarm, voice, tokens) for _ in range(REPEATS)])
            for tokens in (TOKENS, 1)
        ]
        open_s = max(0.0, one_s - _work_s(seats, voice.blocks, 1))
        cores = len(os.sched_getaffinity(0))
        crowding = await _crowding(swarm, voice, net.seats[0], net.seats[-1])
        rest = await _rest(net)
        open_cpu_s = min(open_s, await _opening_s(swarm, voice, net, seats, rest))
        rate = share * cores / _work_s(seats, voice.blocks, TOKENS)
        deadline_s = GOOD_TIMES * alone_s
        life = await _offer(swarm, voice, rate, seconds, random.Random(seed))
    plan = _twin(seats, voice.blocks, cores, open_s - open_cpu_s, deadline_s, seconds)
    stretch = cores / (cores - rest) * (1 + share * (crowding - 1))
    shared = [
        _loaded(seat, one.rows, 1000 * open_cpu_s / voice.blocks, stretch)
        for seat, one in zip(seats, found, strict=True)
    ]
    twins = [_simulate(plan, rate, shared, number) for number in range(1, SEEDS + 1)]
    real = _facts(life.latencies_s, life.offered, deadline_s)
    twin = {
        key: statistics.mean(_facts(one.latencies_s, one.offered, deadline_s)[key] for one in twins)
        for key in real
    }
    apart = {key: abs(twin[key] / real[key] - 1) if real[key] else float("inf") for key in real}
    return {
        "holds": max(apart["p50_s"], apart["goodput"]) <= AGREE_WITHIN,
        "nodes": len(seats),
        "cores": cores,
        "requests": life.offered,
        "failed": life.failed,
        "requests_per_s": round(rate, 3),
        "share_of_the_cores": share,
        "alone_s": round(alone_s, 3),
        "open_s": round(open_s, 3),
        "open_cpu_s": round(open_cpu_s, 4),
        "cores_at_rest": round(rest, 3),
        "crowding": round(crowding, 3),
        "deadline_s": round(deadline_s, 3),
        "software_ms_a_hop": round(1000 * hop_s[TOKENS], 2),
        "testnet": {key: round(value, 3) for key, value in real.items()},
        "twin": {key: round(value, 3) for key, value in twin.items()},
        "apart": {key: round(value, 3) for key, value in apart.items()},
        "tables_ms": {seat.table.name: one.rows for seat, one in zip(seats, found, strict=True)},
        "load": load(),
    }


class Asked:
    """One peer, asked for steps by hand."""

    def __init__(self, frames: FrameStream, voice: Voice) -> None:
        self._frames = frames
        self._row = bytes(voice.embed([5]))
        self._at = 0

    async def step(self, tokens: int) -> tuple[float, float]:
        """Seconds that it computes, and those around."""
        began_s = time.perf_counter()
        await self._frames.send(Step(self._at, (tokens,), tokens), self._row * tokens)
        received = await self._frames.receive()
        spent_s = time.perf_counter() - began_s
        assert received is not None and isinstance(received[0], Output), received
        self._at += tokens
        return received[0].compute_s, spent_s - received[0].compute_s


@asynccontextmanager
async def _asked(swarm: Swarm, voice: Voice, seat: Placed, positions: int) -> AsyncIterator[Asked]:
    frames = FrameStream(await swarm.member.host.open_stream(seat.peer, PROTOCOL))
    await frames.send(Open(bytes(16), voice.digest, seat.start, seat.stop, positions, DTYPE))
    received = await frames.receive()
    assert received is not None and isinstance(received[0], Opened), received
    yield Asked(frames, voice)
    await frames.close()


async def _table(swarm: Swarm, voice: Voice, seat: Placed) -> Measured:
    """Ask one peer, with nobody else about, for steps of each size."""
    found = Measured()
    async with _asked(swarm, voice, seat, sum(SIZES) * (REPEATS + 1)) as asked:
        for tokens in SIZES:
            took = [await asked.step(tokens) for _ in range(REPEATS + 1)][1:]  # the first warms
            compute_s, software_s = (statistics.median(each) for each in zip(*took, strict=True))
            found.software_s[tokens] = software_s
            took_s = 1000 * (compute_s + software_s)
            found.rows.append((seat.stop - seat.start, tokens, took_s))
    return found


async def _crowding(swarm: Swarm, voice: Voice, one: Placed, other: Placed) -> float:
    """How many times as long a step takes while another core computes as well."""
    positions = 2 * TOKENS * (REPEATS + 1)
    alone_s, beside_s = [], []
    async with (
        _asked(swarm, voice, one, positions) as first,
        _asked(swarm, voice, other, positions) as second,
    ):
        for _ in range(REPEATS + 1):
            alone_s.append((await first.step(TOKENS))[0])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(second.step, TOKENS)
                beside_s.append((await first.step(TOKENS))[0])
    return max(1.0, statistics.median(beside_s[1:]) / statistics.median(alone_s[1:]))


async def _rest(net: LocalSwarm) -> float:
    """Cores that the daemons take with nobody there."""
    before_s, began_s = _cpu_s(net), time.perf_counter()
    await trio.sleep(REST_S)
    return (_cpu_s(net) - before_s) / (time.perf_counter() - began_s)


async def _opening_s(
    swarm: Swarm, voice: Voice, net: LocalSwarm, seats: Sequence[Seat], rest: float
) -> float:
    """Core seconds of a session beyond its steps, in the daemons and here."""
    before_s, began_s = _cpu_s(net) + time.process_time(), time.perf_counter()
    for _ in range(OPENINGS):
        await _request(swarm, voice, 1)
    spent_s = _cpu_s(net) + time.process_time() - before_s
    spent_s -= rest * (time.perf_counter() - began_s)
    return max(0.0, spent_s / OPENINGS - _work_s(seats, voice.blocks, 1))


def _cpu_s(net: LocalSwarm) -> float:
    """Processor time of the daemons so far."""
    return processor_s(seat.pid for seat in net.seats)


def _loaded(
    seat: Seat, rows: Sequence[tuple[int, int, float]], block_ms: float, stretch: float
) -> Seat:
    """The same peer, with its share of the openings in its steps: so much for each block."""
    more = tuple((span, tokens, stretch * (ms + span * block_ms)) for span, tokens, ms in rows)
    return Seat(seat.blocks, Table(seat.table.name, more))


async def _request(swarm: Swarm, voice: Voice, tokens: int = TOKENS) -> float:
    """One request: a session of one step. Seconds until its answer."""
    payload = bytes(voice.embed([5])) * tokens
    began_s = time.perf_counter()
    asked = SessionPlan(voice.digest, NAME, voice.blocks, voice.width, tokens)
    async with open_session(swarm.member.host, swarm.router, asked) as session:
        session.feed(payload, tokens=tokens, rows=1)
        await session.output()
        return time.perf_counter() - began_s


async def _offer(
    swarm: Swarm, voice: Voice, rate: float, seconds: float, dice: random.Random
) -> Life:
    """Requests at random moments, whether or not those before are answered."""
    life = Life()

    async def live() -> None:
        try:
            life.latencies_s.append(await _request(swarm, voice))
        except PotluckError:
            life.failed += 1

    ends = trio.current_time() + seconds
    with trio.move_on_at(ends + DRAIN_S):
        async with trio.open_nursery() as nursery:
            at = trio.current_time()
            while (at := at + dice.expovariate(rate)) < ends:
                await trio.sleep_until(at)
                life.offered += 1
                nursery.start_soon(live)
    return life


def _work_s(seats: Sequence[Seat], blocks: int, tokens: int) -> float:
    """Core seconds of one request: each block at the mean of who serves it."""
    total_s = 0.0
    for block in range(blocks):
        serving = [seat for seat in seats if seat.blocks.start <= block < seat.blocks.stop]
        total_s += statistics.mean(
            seat.table.seconds(len(seat.blocks), tokens) / len(seat.blocks) for seat in serving
        )
    return total_s


def _twin(
    seats: Sequence[Seat],
    blocks: int,
    cores: int,
    open_s: float,
    deadline_s: float,
    seconds: float,
) -> Scenario:
    return Scenario(
        name=NAME,
        seconds=seconds,
        warm_s=0.0,
        model=Model(blocks=blocks, row_bytes=0),
        peers=Peers(count=len(seats), span_min=1, span_max=blocks, cores=cores),
        links=Links(access_ms_min=0.0, access_ms_max=0.0, world_ms=0.0),
        load=Load(
            clients=1, tokens=TOKENS, open_s=open_s,
            deadline_s=deadline_s, give_up=DRAIN_S / deadline_s,
        ),
        placing=Placing(moving="none"),
    )  # fmt: skip


def _simulate(plan: Scenario, rate: float, seats: Sequence[Seat], seed: int) -> Outcome:
    def dice(purpose: str) -> Dice:
        return random.Random(f"{seed}/{purpose}")

    return Simulation(plan, "ours", dice, seats=seats, rate=rate).run()


def _facts(latencies_s: Sequence[float], offered: int, deadline_s: float) -> dict[str, float]:
    ordered = sorted(latencies_s) + [float("inf")] * (offered - len(latencies_s))
    return {
        "p50_s": ordered[len(ordered) // 2],
        "p95_s": ordered[int(0.95 * len(ordered))],
        "goodput": sum(s <= deadline_s for s in ordered) / offered,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--share", type=float, default=0.5, help="of what the cores can compute")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shape", default="small", help="of the random model: small, tiny")
    asked = parser.parse_args()
    found = measure(
        asked.nodes, asked.replicas, asked.seconds, asked.share, asked.seed, asked.shape
    )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
