"""How fast the directory answers: 64 hosts on this machine, and again after 30 % were killed.

The hosts share a few processes, because 64 processes on a few cores would measure the kernel's
scheduler, and one process the queue of its event loop: six of 9 to 11 hosts, and one light node
(`potluck bootstrap`) as anybody runs it. Reads go one at a time, each of a record that its
owner put, by a host of another process; a read counts when it returns the owner's newest version.
The kill is SIGKILL of whole processes. Processor time is the process's own, so neighbours on the
machine do not count.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psutil
import trio

from .hosts import LINE_BYTES_MAX, model_of

SEATS = (11, 11, 11, 11, 10, 9)  # and the light node: 64 hosts
KILLED = 2  # processes, the last two: 19 of 64 hosts, 30 %
READS = 200
IDLE_S = 40.0  # more than one round of refreshes
AFTER_S = 60.0  # the first minute after the kill
SETTLE_S = 30.0  # the first round of upkeep looks into every bucket


@dataclass(eq=False)
class Crew:
    """One process of hosts."""

    process: trio.Process
    peers: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    async def ask(self, **order: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps(order).encode() + b"\n")
        return await self.line()

    async def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        told = bytearray()
        while not told.endswith(b"\n"):
            piece = await self.process.stdout.receive_some(LINE_BYTES_MAX)
            if not piece:
                raise ConnectionError("a process of hosts ended")
            told += piece
        found: dict[str, Any] = json.loads(told)
        return found


async def bench_dht(
    *, seats: Sequence[int] = SEATS, killed: int = KILLED, reads: int = READS,
    idle_s: float = IDLE_S, after_s: float = AFTER_S, settle_s: float = SETTLE_S, seed: int = 1,
) -> dict[str, object]:  # fmt: skip
    """Put, read, idle, kill, read: figures of one run."""
    dice = random.Random(seed)
    async with _open_light() as light, trio.open_nursery() as nursery:
        crews = await _open_crews(nursery, seats, light.addresses)
        owners = [(crew, at) for crew in crews for at in range(len(crew.peers))]
        await trio.sleep(settle_s)
        idle = await _cpu_share(crews, idle_s)
        puts = [await crew.ask(do="put", host=at) for crew, at in owners]
        versions = {crew.peers[at]: 1 for crew, at in owners}
        cold = await _read_many(owners, versions, reads, dice)
        again = []
        for crew, at in dice.sample(owners, len(owners) // 2):
            again.append(await crew.ask(do="put", host=at))
            versions[crew.peers[at]] += 1
        warm = await _read_many(owners, versions, reads, dice)
        for crew in crews:
            await crew.ask(do="keep")
        keeping = await _cpu_share(crews, idle_s)
        counts = [await crew.ask(do="count") for crew in crews]
        memory = _memory(light.process.pid)
        for crew in crews[len(crews) - killed :]:
            crew.process.send_signal(signal.SIGKILL)
        living = [(crew, at) for crew, at in owners if crew in crews[: len(crews) - killed]]
        after = await _read_for(living, versions, after_s, dice)
        for crew in crews:
            crew.process.kill()
        nursery.cancel_scope.cancel()
    hosts = len(owners) + 1
    return {
        "hosts": hosts,
        "processes": len(seats) + 1,
        "put_ms_p50": _ms([put["s"] for put in puts], 0.5),
        "put_again_ms_p50": _ms([put["s"] for put in again], 0.5),
        "kept_by_p50": sorted(put["kept"] for put in puts)[len(puts) // 2],
        "read_first_ms_p50": _ms(cold.seconds, 0.5),
        "read_ms_p50": _ms([*cold.seconds, *warm.seconds], 0.5),
        "read_ms_p95": _ms([*cold.seconds, *warm.seconds], 0.95),
        "read_fresh_share": round((cold.right + warm.right) / (cold.reads + warm.reads), 4),
        "killed_hosts": len(owners) - len(living),
        "killed_share": round((len(owners) - len(living)) / hosts, 3),
        "after_kill_reads": after.reads,
        "after_kill_share": round(after.right / max(after.reads, 1), 4),
        "after_kill_ms_p50": _ms(after.seconds, 0.5),
        "after_kill_ms_p95": _ms(after.seconds, 0.95),
        "after_kill_first_5_s_ms_p50": _ms(after.first or [0.0], 0.5),
        "idle_cpu_share_per_host": round(idle, 5),
        "keeping_cpu_share_per_host": round(keeping, 5),
        "light_node_pss_mib": memory[0],
        "light_node_rss_mib": memory[1],
        "connections_per_host": round(sum(c["connections"] for c in counts) / len(owners), 1),
        "streams_per_host": round(sum(c["streams"] for c in counts) / len(owners), 1),
        "known_per_host": round(sum(c["known"] for c in counts) / len(owners), 1),
        "load_average": os.getloadavg()[0],
    }


@dataclass(slots=True)
class _Light:
    process: trio.Process
    addresses: list[str]


@asynccontextmanager
async def _open_light() -> AsyncIterator[_Light]:
    with tempfile.TemporaryDirectory(prefix="potluck-bench-") as home:
        command = [sys.executable, "-P", "-m", "potluck.cli", "bootstrap", "--home", home]
        command += ["--json", "--log-level", "error"]
        environment = {**os.environ, "POTLUCK_JOIN": ""}
        process = await trio.lowlevel.open_process(
            command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, env=environment
        )
        try:
            yield _Light(process, (await Crew(process).line())["addresses"])
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


async def _open_crews(
    nursery: trio.Nursery, seats: Sequence[int], join: Sequence[str]
) -> list[Crew]:
    crews = []
    for count in seats:
        command = [sys.executable, "-P", "-m", "potluck.node.bench.hosts", str(count), *join]
        start = partial(
            trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False
        )
        crew = Crew(await nursery.start(start))
        told = await crew.line()
        crew.peers, crew.addresses = told["peers"], told["addresses"]
        crews.append(crew)
    return crews


@dataclass(slots=True)
class _Reads:
    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # of the first five seconds
    right: int = 0

    @property
    def reads(self) -> int:
        return len(self.seconds)

    async def one(
        self, owner: tuple[Crew, int], reader: tuple[Crew, int], versions: dict[str, int]
    ) -> None:
        peer = owner[0].peers[owner[1]]
        told = await reader[0].ask(do="find", host=reader[1], model=model_of(peer))
        self.seconds.append(told["s"])
        self.right += told["found"] == [[peer, versions[peer]]]


async def _read_many(
    owners: list[tuple[Crew, int]], versions: dict[str, int], count: int, dice: random.Random
) -> _Reads:
    done = _Reads()
    while done.reads < count:
        owner, reader = dice.sample(owners, 2)
        if owner[0] is not reader[0]:
            await done.one(owner, reader, versions)
    return done


async def _read_for(
    living: list[tuple[Crew, int]], versions: dict[str, int], seconds: float, dice: random.Random
) -> _Reads:
    """Reads, evenly over this time, of what the living put."""
    done = _Reads()
    began_s = time.monotonic()
    while time.monotonic() - began_s < seconds:
        owner, reader = dice.sample(living, 2)
        await done.one(owner, reader, versions)
        if time.monotonic() - began_s < 5.0:
            done.first.append(done.seconds[-1])
        await trio.sleep(0.05)
    return done


async def _cpu_share(crews: Sequence[Crew], seconds: float) -> float:
    """Of one core, for each host, while nobody asks for anything."""
    before = [(await crew.ask(do="count"))["cpu_s"] for crew in crews]
    began_s = time.monotonic()
    await trio.sleep(seconds)
    after = [(await crew.ask(do="count"))["cpu_s"] for crew in crews]
    spent_s = float(sum(after) - sum(before))
    return spent_s / (time.monotonic() - began_s) / sum(len(crew.peers) for crew in crews)


def _memory(pid: int) -> tuple[float, float]:
    """PSS and RSS of a process, in MiB; PSS is 0 where the system does not tell."""
    info = psutil.Process(pid).memory_full_info()
    return round(getattr(info, "pss", 0) / 2**20, 1), round(info.rss / 2**20, 1)


def _ms(seconds: Sequence[float], share: float) -> float:
    """A quantile, in milliseconds."""
    ordered = sorted(seconds)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)
