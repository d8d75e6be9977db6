"""Peers of a run by one byte a step, over memory roads, who learn where a point is."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import trio
from sim.memory_host import MemoryHost, MemoryNet
from torch import Tensor

from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError
from potluck.node.chunks.fetch import Fetcher
from potluck.node.chunks.serve import ChunkServer
from potluck.node.compute.scalar import Loss, ScalarWeights, Scale
from potluck.node.runs.journal import Journal
from potluck.node.runs.scalar import Pace, ScalarRun
from potluck.node.runs.states import StateServer
from potluck.node.runs.store import Checkpoints
from potluck.swarm.chunk import PROTOCOL as CHUNKS
from potluck.swarm.run.claims import PROTOCOL as STATES
from potluck.swarm.run.scalars import PROTOCOL
from potluck.swarm.run.seeds import Rules

END_S = 3600.0  # virtual: far beyond the slowest run of these tests
RULES = Rules(bytes(range(32)), least=2, epoch_rounds=4)
SCALE = Scale(step=0.05, probe=1e-3, grain=1e-3)
TARGET = torch.randn(6, generator=torch.Generator().manual_seed(1))
BASE = torch.zeros(6)


def point(number: int, round_: int) -> Loss:
    """How far it is to a point, as this peer sees it in this round: with noise of its own."""
    noise = torch.randn(6, generator=torch.Generator().manual_seed(99 * round_ + number))
    wanted = TARGET + 0.1 * noise
    return lambda at: float((at - wanted).square().sum())


@dataclass(frozen=True)
class Task:
    """What is learned. losses: of a peer, by its number, in a round."""

    base: Tensor
    scale: Scale
    losses: Callable[[int, int], Loss]
    rules: Rules = RULES


POINT = Task(BASE, SCALE, point)


@dataclass
class Member:
    key: IdentityKey
    host: MemoryHost
    weights: ScalarWeights
    run: ScalarRun
    kept: Checkpoints

    @property
    def floor(self) -> int:
        return self.run.hearing.log.floor


@dataclass
class World:
    net: MemoryNet
    nursery: trio.Nursery
    folder: Path
    task: Task = POINT
    members: dict[int, Member] = field(default_factory=dict)
    blamed: list[str] = field(default_factory=list)

    def add(self, number: int, *, lies: bool = False) -> Member:
        """A peer that has its disk and its key from an earlier life, if it had one. lies: climbs
        where it should go down, and fifty times as fast."""
        task = self.task
        key = IdentityKey.from_bytes(bytes((number + 1,)) * 32)
        self.net.hosts.pop(key.peer_id, None)  # the process before was killed
        host, folder = self.net.host(key.peer_id), self.folder / str(number)
        kept = Checkpoints(folder, task.rules.run)
        weights = ScalarWeights(task.base, task.rules, task.scale)

        def blame(peer: str, error: RemoteError) -> None:
            self.blamed.append(peer)

        def losses(round_: int) -> Loss:
            loss = task.losses(number, round_)
            return (lambda at: -50 * loss(at)) if lies else loss

        run = ScalarRun(
            host, key, task.rules, task.scale, weights, kept, Journal(folder),
            Fetcher(host, kept.chunks, blame, salt=b""),
            peers=lambda: [one.key.peer_id for one in self.members.values() if one.key != key],
            losses=losses, blame=blame, dice=random.Random(number), pace=Pace(5.0, most=1.0),
        )  # fmt: skip
        host.handle(PROTOCOL, run.hearing.serve)
        host.handle(STATES, StateServer(key, lambda run: kept).serve)
        host.handle(CHUNKS, ChunkServer(kept.chunks).serve)
        self.members[number] = Member(key, host, weights, run, kept)
        return self.members[number]

    async def go(self, *numbers: int, rounds: int) -> None:
        """To the end of a run of so many rounds, all at once. Raises TooSlowError."""
        with trio.fail_after(END_S):
            async with trio.open_nursery() as nursery:
                for number in numbers:
                    nursery.start_soon(self._go, number, rounds)

    async def _go(self, number: int, rounds: int) -> None:
        await self.members[number].run.run(rounds)
        await self.members[number].run.finish(rounds)


def equal(*members: Member) -> bool:
    return all(torch.equal(one.weights.weights(), members[0].weights.weights()) for one in members)


def apart(member: Member) -> float:
    return float((member.weights.weights() - TARGET).norm() / TARGET.norm())


@asynccontextmanager
async def world(folder: Path, peers: int, task: Task = POINT) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        made = World(MemoryNet(nursery), nursery, folder, task)
        for number in range(peers):
            made.add(number)
        yield made
        nursery.cancel_scope.cancel()
