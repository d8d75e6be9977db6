"""A run by one byte a step as `potluck finetune` has it: equal weights, kills, late joiners."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import trio
from guards import key
from sim.memory_host import MemoryNet
from sim.run_world import FLAT, START, TERMS
from trio.testing import MockClock

from potluck.dht.memory import MemoryDirectory, MemoryShelf
from potluck.node.compute.mixing import Vector
from potluck.node.runs import by_scalar
from potluck.node.runs.by_scalar import ByScalar, rules_of
from potluck.node.runs.checkpoint import Progress, Shelf
from potluck.node.runs.company import Company
from potluck.node.runs.exchange import Amends, Serves, Trains
from potluck.swarm.run.plan import Exchanging, Training
from potluck.swarm.run.scalars import FIRST, Page, sign_page
from potluck.swarm.run.shards import Split
from potluck.swarm.run.tables import Scalars

SPLIT = Split.of(40, 0.1, 1)
SAID = Scalars(least=2, trim_percent=0, round_s=5.0, most=1.0)
TRAINING = Training(batch=2, inner_steps=6, epochs=3, learning_rate=0.05, schedule="constant")
RUN = replace(TERMS, training=TRAINING, exchange=Exchanging("scalar", scalar=SAID))


class Measurer:
    """How far it is to ones, as these sequences see it."""

    def __init__(self) -> None:
        self.now = START.clone()

    def adopt(self, weights: Vector) -> None:
        self.now = weights

    def loss_of(self, weights: Vector, rows: Sequence[int]) -> float:
        dice = torch.Generator().manual_seed(sum(rows))
        return float((weights - 1.0 - 0.1 * torch.randn(FLAT.count, generator=dice)).square().sum())


@dataclass
class Life:
    run: ByScalar
    tuner: Measurer
    company: Company
    host: Any
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    over: trio.Event = field(default_factory=trio.Event)
    under_way: trio.Event = field(default_factory=trio.Event)  # an epoch is behind it
    told: list[Progress] = field(default_factory=list)
    history: list[Progress] = field(default_factory=list)

    def tell(self, progress: Progress) -> None:
        self.told.append(progress)
        self.under_way.set()


@dataclass
class World:
    net: MemoryNet
    nursery: trio.Nursery
    folder: Path
    shelf: MemoryShelf = field(default_factory=MemoryShelf)

    async def start(self, number: int, others: int) -> Life:
        name, folder = key(number), self.folder / str(number)
        self.net.hosts.pop(name.peer_id, None)
        host: Any = self.net.host(name.peer_id)
        folder.mkdir(exist_ok=True)
        dice = random.Random(number)
        company = Company(host, MemoryDirectory(name, self.shelf), RUN, dice)
        tuner = Measurer()
        run = ByScalar(host, company, name, RUN, START, tuner, SPLIT, Shelf(folder), dice=dice)
        life = Life(run, tuner, company, host)
        self.nursery.start_soon(self._live, life, others)
        return life

    async def _live(self, life: Life, others: int) -> None:
        with life.scope:
            async with trio.open_nursery() as services:
                await services.start(life.run.run)
                await services.start(life.company.run)
                await life.company.until(others)
                life.history = await life.run.train(life.tell)
                life.over.set()
                await trio.sleep_forever()


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield World(MemoryNet(nursery), nursery, folder)
        nursery.cancel_scope.cancel()


def apart(life: Life) -> float:
    return float((life.tuner.now - 1.0).square().mean())


async def test_peers_learn_by_bytes_alone_and_tell_of_each_epoch(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        lives = [await made.start(number, 2) for number in range(3)]
        for one in lives:
            await one.over.wait()
    for one in lives:
        assert isinstance(one.run, Trains) and isinstance(one.run, Serves)
        assert [told.epoch for told in one.told] == [1, 2, 3] and one.history == one.told
        assert one.told[-1].steps == 18 and one.told[-1].sent_bytes > 0
        assert apart(one) < 0.6 and one.told[-1].loss < one.told[0].loss
        assert torch.equal(one.tuner.now, lives[0].tuner.now)


async def test_what_is_heard_after_the_end_amends_the_weights(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Somebody was killed when a byte was on its disk that nobody had heard, and is back."""
    async with world(tmp_path) as made:
        lives = [await made.start(number, 2) for number in range(3)]
        for one in lives:
            await one.over.wait()
            assert not await one.run.amended()
        heard, before = lives[0].run._run.hearing, lives[0].tuner.now
        page = Page(RUN.run, 17, FIRST, b"\x20")
        heard._took(heard.log.merge(sign_page(key(9), page)).changes)
        assert isinstance(lives[0].run, Amends) and await lives[0].run.amended()
        assert not torch.equal(lives[0].tuner.now, before)
        assert not await lives[0].run.amended()


async def test_who_answers_no_more_is_not_asked_any_more(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        lives = [await made.start(number, 2) for number in range(3)]
        gone = lives[2]
        await lives[0].under_way.wait()
        await gone.host.die()
        gone.scope.cancel()
        for one in lives[:2]:
            await one.over.wait()
            assert gone.host.peer_id not in one.company.members


async def test_who_is_killed_goes_on_and_another_comes_late_though_the_first_is_gone(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: Any
) -> None:
    """Snapshots of four rounds: the newcomer begins with one, by digest, from who is left."""
    monkeypatch.setattr(by_scalar, "EPOCH_ROUNDS", 4)
    async with world(tmp_path) as made:
        lives = [await made.start(number, 2) for number in range(3)]
        first = lives[0]
        await first.under_way.wait()
        await first.host.die()
        first.scope.cancel()
        while len(lives[1].told) < 2:  # noqa: ASYNC110
            await trio.sleep(1.0)
        late, again = await made.start(5, 2), await made.start(0, 2)
        alive = [*lives[1:], late, again]
        for one in alive:
            await one.over.wait()
    epochs = [told.epoch for told in again.history]
    assert epochs in ([1, 2, 3], [1, 3]), "of one that it was away for it tells nothing"
    assert late.history[-1].epoch == 3 and late.history[-1].steps <= 18
    assert all(apart(one) < 0.7 for one in alive)
    assert all(torch.equal(one.tuner.now, late.tuner.now) for one in alive)
    assert all(one._run.hearing.log.convicted == () for one in (life.run for life in alive))


def test_the_rules_are_of_the_runs_file_and_the_rate_falls_with_the_cosine() -> None:
    rules = rules_of(RUN)
    assert (rules.run, rules.least, rules.trim_percent, rules.rounds) == (RUN.run, 2, 0, 0)
    falling = replace(RUN, training=replace(TRAINING, schedule="cosine"))
    assert rules_of(falling).rounds == 18 and rules_of(falling).rate(17) < rules_of(falling).rate(0)
