"""Members of a run by a guarded group over memory roads, each with a disk, that may be killed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import trio
from guards import key
from sim.memory_host import MemoryHost, MemoryNet
from sim.run_world import FLAT, START, TERMS

from potluck.dht.memory import MemoryDirectory, MemoryShelf
from potluck.errors import UserError
from potluck.node.compute.mixing import Vector
from potluck.node.compute.repeats import Repeats
from potluck.node.runs.btard_place import Conviction
from potluck.node.runs.checkpoint import Progress, Shelf
from potluck.node.runs.company import Company
from potluck.node.runs.guarded import Guarded
from potluck.node.runs.runner import Runner
from potluck.swarm.run.plan import Exchanging, Terms, Training
from potluck.swarm.run.shards import Split
from potluck.swarm.run.tables import Guarding

SPLIT = Split.of(40, 0.1, 1)
STEPS = 2
TRAINING = Training(batch=2, inner_steps=STEPS, schedule="constant")
TIMES: dict[str, Any] = {"gather_s": 20.0, "phase_s": 4.0, "check_s": 8.0, "validators": 2}


class Tuner:
    """A tenth of the way to ones in each step, with the noise of its sequences; it has a memory, as
    AdamW's moments are one. other: adds what another machine's rounding does."""

    def __init__(self, other: float = 0.0) -> None:
        self.now, self.moment, self.other = START.clone(), torch.zeros(FLAT.count), other

    def step(self, rows: Sequence[int], rate: float) -> float:
        dice = torch.Generator().manual_seed(sum(rows))
        noise = 0.02 * torch.randn(FLAT.count, generator=dice)
        self.moment = 0.5 * self.moment + 0.1 * (1.0 - self.now) + noise + self.other
        self.now = self.now + self.moment
        return float((1.0 - self.now).square().mean())

    def weights(self) -> Vector:
        return self.now

    def adopt(self, weights: Vector) -> None:
        self.now = weights.clone()

    def forget(self) -> None:
        self.moment = torch.zeros(FLAT.count)

    def loss_of(self, weights: Vector, rows: Sequence[int]) -> float:
        return float((1.0 - weights).square().mean())

    def carried(self) -> dict[str, Vector]:
        return {"weights": self.now.clone(), "moment": self.moment.clone()}

    def carry_on(self, kept: dict[str, Vector]) -> None:
        self.now, self.moment = kept["weights"], kept["moment"]


def numerics(other: float = 0.0) -> str:
    return Repeats(Tuner(other), TRAINING, SPLIT).numerics(START)


def terms_of(count: int, epochs: int) -> Terms:
    members = tuple(key(number).peer_id for number in range(count))
    guarded = Guarding(members, numerics(), radius=1.0, **TIMES)
    training = replace(TRAINING, epochs=epochs)
    return replace(TERMS, training=training, exchange=Exchanging("guarded", guarded=guarded))


@dataclass
class Life:
    """One process of a member. ended: the words of the refusal with which it ended, "" if none."""

    number: int
    host: MemoryHost
    tuner: Tuner
    group: Guarded
    runner: Runner
    company: Company
    convicted: list[Conviction]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    over: trio.Event = field(default_factory=trio.Event)
    ended: str = ""

    @property
    def weights(self) -> Vector:
        return self.tuner.now

    @property
    def epochs(self) -> list[int]:
        return [one.epoch for one in self.runner.history]


@dataclass
class GuardedWorld:
    net: MemoryNet
    nursery: trio.Nursery
    folder: Path
    terms: Terms
    shelf: MemoryShelf = field(default_factory=MemoryShelf)
    boots: Counter[int] = field(default_factory=Counter)

    def life(self, number: int, *, other: float = 0.0) -> Life:
        """Of a member that has its disk from the life before, if it had one."""
        name = key(number)
        self.net.hosts.pop(name.peer_id, None)
        host: Any = self.net.host(name.peer_id)
        folder = self.folder / str(number)
        folder.mkdir(exist_ok=True)
        self.boots[number] += 1
        directory = MemoryDirectory(name, self.shelf, boot=self.boots[number])
        company = Company(host, directory, self.terms, random.Random(number))
        tuner, convicted = Tuner(other), list[Conviction]()
        runner = Runner(self.terms, tuner, SPLIT, Shelf(folder), me=name.peer_id, tell=_nothing)
        group = Guarded(
            host, company, name, self.terms, FLAT, START,
            Repeats(tuner, self.terms.training, SPLIT), folder,
            keep=runner.keep, told=convicted.append,
        )  # fmt: skip
        return Life(number, host, tuner, group, runner, company, convicted)

    def start(self, number: int, *, after_s: float = 0.0, **how: Any) -> Life:
        life = self.life(number, **how)
        self.nursery.start_soon(self._live, life, after_s)
        return life

    async def _live(self, life: Life, after_s: float) -> None:
        try:
            with life.scope:
                await trio.sleep(after_s)
                async with trio.open_nursery() as services:
                    await services.start(life.group.run)
                    await services.start(life.company.run)
                    await life.runner.run(life.group)
                    life.over.set()
                    await trio.sleep_forever()  # it is there for whoever is slower
        except* UserError as refused:
            (error,) = refused.exceptions
            life.ended = str(error)
        life.over.set()

    async def kill(self, life: Life) -> None:
        await life.host.die()
        life.scope.cancel()


def _nothing(progress: Progress) -> None:
    """Nobody looks."""


@asynccontextmanager
async def guarded_world(folder: Path, count: int, epochs: int) -> AsyncIterator[GuardedWorld]:
    async with trio.open_nursery() as nursery:
        yield GuardedWorld(MemoryNet(nursery), nursery, folder, terms_of(count, epochs))
        nursery.cancel_scope.cancel()
