"""A peer's part in a run: its epochs in order, its checkpoint, and what it does after a stop."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trio
from sim.run_world import FLAT, START, TERMS, run_world, terms_of
from trio.testing import MockClock

from potluck.errors import Refused, TransportError, UserError
from potluck.node.compute.mixing import Vector
from potluck.node.runs.checkpoint import STATE, Progress, Shelf, State
from potluck.node.runs.exchange import Calls, Exchanged
from potluck.node.runs.runner import Runner
from potluck.swarm.run.plan import Terms, Training
from potluck.swarm.run.shards import Split
from potluck.swarm.run.statement import PROTOCOL

SPLIT = Split.of(20, 0.1, 1)


class Tuner:
    """Each step adds one to each weight; the loss is what is missing to 100."""

    def __init__(self) -> None:
        self.now = START.clone()
        self.rows: list[tuple[int, ...]] = []
        self.rates: list[float] = []
        self.failures = 0

    def step(self, rows: Sequence[int], rate: float) -> float:
        if self.failures:
            self.failures -= 1
            raise TransportError("nobody is there")
        self.rows.append(tuple(rows))
        self.rates.append(rate)
        self.now = self.now + 1
        return 100 - float(self.now[0])

    def weights(self) -> Vector:
        return self.now

    def adopt(self, weights: Vector) -> None:
        self.now = weights

    def loss_of(self, weights: Vector, rows: Sequence[int]) -> float:
        return 100 - float(weights[0])

    def carried(self) -> dict[str, Vector]:
        return {"weights": self.now}

    def carry_on(self, kept: dict[str, Vector]) -> None:
        self.now = kept["weights"]


class Alone:
    """An exchange with nobody: it says what it was given. ends_at: raises there, as kill -9."""

    def __init__(self, *, lead: int = 0, skip: int = 1, ends_at: int = -1) -> None:
        self.asked: list[tuple[int, float, int]] = []
        self._lead, self._skip, self._ends_at = lead, skip, ends_at

    async def exchange(self, epoch: int, weights: Vector, tokens: int) -> Exchanged:
        await trio.lowlevel.checkpoint()
        if epoch == self._ends_at:
            raise KeyboardInterrupt
        self.asked.append((epoch, float(weights[0]), tokens))
        return Exchanged(weights, ("ann",), 10, 20, epoch + self._skip, self._lead)


def terms(**said: object) -> Terms:
    training = Training(batch=2, inner_steps=3, epochs=4, learning_rate=1.0)
    return replace(TERMS, training=replace(training, **said), tokens=16)


def runner(
    tuner: Tuner, folder: Path, wanted: Terms | None = None, told: list[Progress] | None = None
) -> Runner:
    told = [] if told is None else told
    return Runner(wanted or terms(), tuner, SPLIT, Shelf(folder), me="me", tell=told.append)


async def test_each_epoch_has_its_steps_and_then_its_exchange(tmp_path: Path) -> None:
    tuner, exchange, told = Tuner(), Alone(), list[Progress]()
    await runner(tuner, tmp_path, told=told).run(exchange)
    assert exchange.asked == [(0, 3.0, 96), (1, 6.0, 96), (2, 9.0, 96), (3, 12.0, 96)]
    assert [one.epoch for one in told] == [1, 2, 3, 4]
    last = told[-1]
    assert (last.steps, last.tokens, last.sent_bytes, last.received_bytes) == (12, 384, 40, 80)
    assert last.loss == 89.0 and last.peers == 1
    run = terms().run
    assert tuner.rows[4] == SPLIT.batch(run, 1, "me", 1, size=2)  # as anybody can say
    assert tuner.rates == sorted(tuner.rates, reverse=True)


async def test_who_is_ahead_makes_more_steps_and_who_is_behind_skips(tmp_path: Path) -> None:
    tuner, exchange = Tuner(), Alone(lead=1, skip=2)
    await runner(tuner, tmp_path).run(exchange)
    assert [(epoch, tokens) for epoch, _, tokens in exchange.asked] == [(0, 96), (2, 192)]


async def test_who_is_called_ends_its_steps_after_one_at_least(tmp_path: Path) -> None:
    class Calling(Alone):
        left_s: list[float]

        def called(self, left_s: float) -> bool:
            self.left_s.append(left_s)
            return len(self.asked) == 1  # in the second epoch

    exchange = Calling()
    exchange.left_s = []
    assert isinstance(exchange, Calls)
    tuner = Tuner()
    await runner(tuner, tmp_path).run(exchange)
    assert [tokens for _, _, tokens in exchange.asked] == [96, 32, 96, 96]
    assert len(exchange.left_s) == 2 + 1 + 2 + 2  # before each step but the first
    assert min(exchange.left_s) > 0
    assert tuner.rates == sorted(tuner.rates, reverse=True)


async def test_an_epoch_ends_with_its_time(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Each step takes a second of two; so there are two of three."""

    class Slow(Tuner):
        def step(self, rows: Sequence[int], rate: float) -> float:
            trio.from_thread.run_sync(autojump_clock.jump, 1.0)
            return super().step(rows, rate)

    exchange, told = Alone(), list[Progress]()
    await runner(Slow(), tmp_path, terms(epoch_s=2.0), told).run(exchange)
    assert [tokens for _, _, tokens in exchange.asked] == [64] * 4
    assert told[0].tokens_s == pytest.approx(32, rel=0.1)
    assert told[0].share == pytest.approx(1.0, abs=0.05)


async def test_a_step_that_nobody_computes_is_tried_again_and_not_for_ever(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    tuner = Tuner()
    tuner.failures = 3
    await runner(tuner, tmp_path / "a").run(Alone())
    assert len(tuner.rows) == 12
    tuner.failures = 1000
    with pytest.raises(TransportError):
        await runner(tuner, tmp_path / "b", replace(terms(), seed=9)).run(Alone())


async def test_who_refuses_for_a_year_is_asked_again_in_a_minute(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    class Busy(Tuner):
        def step(self, rows: Sequence[int], rate: float) -> float:
            if trio.from_thread.run_sync(trio.current_time) < began_s + 30:
                raise Refused("full", retry_after_s=3e7)
            return super().step(rows, rate)

    began_s = trio.current_time()
    await runner(Busy(), tmp_path).run(Alone())
    assert trio.current_time() - began_s < 100


async def test_a_loss_that_nobody_computes_is_tried_again_too(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The gate asks for it, and the end: it was computed by a swarm whose peers come and go."""

    class Lame(Tuner):
        def loss_of(self, weights: Vector, rows: Sequence[int]) -> float:
            self.failures -= 1
            if self.failures >= 0:
                raise TransportError("nobody is there")
            return super().loss_of(weights, rows)

    tuner = Lame()
    tuner.failures = 3
    assert await runner(tuner, tmp_path).loss_of(START) == 100.0
    tuner.failures = 1000
    with pytest.raises(TransportError):
        await runner(tuner, tmp_path).final_loss()


async def test_what_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """Killed in its third exchange: the steps before it are not made again."""
    first, second, exchange = Tuner(), Tuner(), Alone()
    with pytest.raises(KeyboardInterrupt):
        await runner(first, tmp_path).run(Alone(ends_at=2))
    again = runner(second, tmp_path)
    await again.run(exchange)
    assert exchange.asked == [(2, 9.0, 96), (3, 12.0, 96)]
    assert len(first.rows) + len(second.rows) == 12 and not set(first.rows) & set(second.rows)
    assert [one.epoch for one in again.history] == [1, 2, 3, 4]
    assert again.history[-1].steps == 12
    done = Alone()
    await runner(Tuner(), tmp_path).run(done)
    assert done.asked == []  # nothing is left to do


async def test_another_run_of_this_name_is_not_gone_on_with(tmp_path: Path) -> None:
    await runner(Tuner(), tmp_path).run(Alone())
    with pytest.raises(UserError, match="another run of this name"):
        await runner(Tuner(), tmp_path, replace(terms(), seed=5)).run(Alone())
    (tmp_path / STATE).write_bytes(b"rubbish")
    with pytest.raises(UserError, match="remove it to begin this run anew"):
        await runner(Tuner(), tmp_path).run(Alone())


async def test_a_full_disk_ends_no_run(tmp_path: Path) -> None:
    tuner, exchange = Tuner(), Alone()
    await runner(tuner, tmp_path / "there is no such folder").run(exchange)
    assert len(exchange.asked) == 4


async def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    progress = Progress(1, 4, 2.5, None, 3, 96, 10.0, 0.9, 2, 5, 6)
    state = State(
        b"r" * 32, 1, 96, 2.5, 3, {"weights": torch.arange(4.0)}, b"said", b"raw", (progress,)
    )
    assert await shelf.save(state)
    found = shelf.load(b"r" * 32)
    assert found is not None and torch.equal(found.vectors["weights"], torch.arange(4.0))
    assert replace(found, vectors=state.vectors) == state
    assert os.listdir(tmp_path) == [STATE]
    assert await shelf.save(replace(state, statement=b"", told=b""))
    found = shelf.load(b"r" * 32)
    assert found is not None and found.statement == found.told == b""


async def test_a_killed_peer_says_by_gossip_what_it_said_before(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It is killed while it waits for another, which is silent, and comes back: it neither takes
    its steps again nor signs again."""

    async def silent(stream: object) -> None:
        await trio.sleep_forever()

    wanted = replace(terms(), exchange=terms_of().exchange)
    async with run_world(2, wanted) as world:
        peer = world.peers[0]
        world.peers[1].host.handle(PROTOCOL, silent)
        one = Runner(wanted, Tuner(), SPLIT, Shelf(tmp_path), me=peer.key.peer_id)
        peer.gossip._keep = one.keep
        with trio.move_on_after(45.0):  # it tries to join for 30 of them
            await one.run(peer.gossip)
        said = peer.gossip.signed
        assert said is not None
        again = Runner(wanted, Tuner(), SPLIT, Shelf(tmp_path), me=peer.key.peer_id)
        peer.gossip._signed = None
        peer.gossip._keep = again.keep
        with trio.move_on_after(5.0):
            await again.run(peer.gossip)
        assert peer.gossip.signed == said
        assert float(again._tuner.weights()[0]) == 3.0
        stranger = world.peers[1]  # to whom somebody gave this checkpoint
        with pytest.raises(UserError, match="a statement of another peer; remove it"):
            one = Runner(wanted, Tuner(), SPLIT, Shelf(tmp_path), me=stranger.key.peer_id)
            await one.run(stranger.gossip)


async def test_a_late_peer_begins_with_the_others(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    wanted = replace(terms(epochs=9), exchange=terms_of().exchange)
    async with run_world(3, wanted) as world:
        await world.together(6, [5.0, 6.0, 7.0])
        late = await world.add(wanted)
        await late.company.until(3)
        tuner = Tuner()
        one = Runner(wanted, tuner, SPLIT, Shelf(tmp_path), me=late.key.peer_id)
        late.gossip._keep = one.keep
        await one.run(late.gossip)
        assert [progress.epoch for progress in one.history] == [8, 9]
        assert len(tuner.rows) == 3 + 6  # the others stand still: it is ahead of them by then
        assert FLAT.count == len(tuner.now)
