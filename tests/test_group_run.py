"""What a run asks of a group: to be joined late, to go on after a stop, to be met, to overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from sim.group_town import COUNT, Citizen, Town, open_town
from sim.run_world import run_world, terms_of
from trio.testing import MockClock, wait_all_tasks_blocked

from potluck.errors import UserError
from potluck.node.compute.mixing import Vector
from potluck.node.runs.checkpoint import Progress, Shelf
from potluck.node.runs.exchange import (
    Calls,
    Carries,
    Exchanged,
    Joins,
    Overlaps,
    Serves,
    Signs,
)
from potluck.node.runs.group import Settings
from potluck.node.runs.runner import Runner
from potluck.swarm.run.group_events import Pace
from potluck.swarm.run.group_wire import Member
from potluck.swarm.run.plan import Training
from potluck.swarm.run.shards import Split


async def commit(town: Town, *some: Citizen) -> None:
    for one in some or town.alive:
        one.learns(target=1.0)
    with trio.fail_after(60):
        await town.exchange(*some)
    town.assert_equal(*some)


async def again(town: Town, number: int, kept: dict[str, Vector], weights: Vector) -> Citizen:
    """Killed, and started anew with its checkpoint."""
    await town.citizens[number].die()
    one = await town.join(number, boot=2)
    one.group.carry_on(kept, 1)
    one.weights = weights.clone()
    return one


async def test_a_newcomer_begins_at_the_others_state_and_epoch(autojump_clock: MockClock) -> None:
    async with open_town(3) as town:
        group = town.citizens[0].group
        assert isinstance(group, Carries) and isinstance(group, Joins) and isinstance(group, Serves)
        assert not isinstance(group, Signs)
        assert await group.join() is None  # nobody is further than the start
        for _ in range(2):
            await commit(town)
        late = await town.join(7)
        joined = await late.group.join()
        assert joined is not None and joined[0] == 2
        assert torch.equal(joined[1], group.anchor[0]) and late.group.place == group.place
        late.weights = joined[1]
        await commit(town)
        assert Member(late.host.peer_id, 1) in group.place.members


async def test_a_newcomer_begins_when_it_was_told_where_the_others_are_however_slow_they_are(
    autojump_clock: MockClock,
) -> None:
    """A machine that does other things takes longer than an answer does on a road."""
    async with open_town(3) as town:
        await commit(town)
        late = await town.join(7)
        for one in town.alive:
            one.host.open_stream = slowly(one.host.open_stream)  # type: ignore[method-assign]
        joined = await late.group.join()
        assert joined is not None and joined[0] == 1


async def test_a_newcomer_waits_for_nobody_who_is_gone(autojump_clock: MockClock) -> None:
    async with open_town(3) as town:
        await commit(town)
        for one in town.alive:
            await one.die()
        late = await town.join(7)
        with trio.fail_after(Pace().step_s):
            assert await late.group.join() is None


def slowly(open_stream: Callable[..., Any]) -> Callable[..., Any]:
    async def opens(peer: str, protocol: str) -> Any:
        await trio.sleep(2 * Pace().step_s)
        return await open_stream(peer, protocol)

    return opens


async def test_all_who_are_there_are_waited_for_no_time_and_nor_is_who_is_yet_to_join(
    autojump_clock: MockClock,
) -> None:
    """A town's roads take no time, so that all that passes is waiting."""
    async with open_town(3) as town:
        await commit(town)
        members = town.alive
        began_s = trio.current_time()
        for _ in range(3):
            await commit(town, *members)
        await town.join(7)  # it answers, and is at the run's first state
        for _ in range(3):
            await commit(town, *members)
        assert trio.current_time() - began_s < 0.5 * Pace().tick_s


async def test_who_is_slower_is_called_once_the_others_are_enough(
    autojump_clock: MockClock,
) -> None:
    async with open_town(4) as town:
        await commit(town)
        *others, slow = town.alive
        early, *rest = others
        assert isinstance(slow.group, Calls) and not slow.group.called(1e9)

        async def calls() -> None:
            with trio.fail_after(Pace().window_s / 2):
                while not slow.group.called(1e9):
                    await slow.group.changed.wait()
            assert not slow.group.called(0.1)  # it ends by itself
            await slow.exchange()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(early.exchange)
            await wait_all_tasks_blocked()
            assert not slow.group.called(1e9)  # one of four does not go on alone
            for one in rest:
                nursery.start_soon(one.exchange)
            nursery.start_soon(calls)
        town.assert_equal()
        assert len(slow.group.place.members) == 4 and slow.group.place.commits == 2
        assert not slow.group.called(1e9)


async def test_who_is_killed_after_its_steps_were_averaged_counts_none_twice(
    autojump_clock: MockClock,
) -> None:
    """Its checkpoint is from before the exchange that it was killed after."""
    async with open_town(3) as town:
        await commit(town)
        doomed, *others = town.citizens
        for one in town.alive:
            one.learns(target=1.0)
        kept, weights = doomed.group.carried(), doomed.weights.clone()
        await town.exchange()
        back = await again(town, 0, kept, weights)
        assert back.group.place.commits == 1
        with trio.fail_after(300):
            found = await back.exchange(epoch=1)
        assert found.next == 2 and back.group.place == others[0].group.place
        assert torch.equal(back.weights, others[0].group.anchor[0])  # and nothing of its own on top
        await commit(town)
        assert back.group.place.commits == 3


async def test_who_comes_back_before_the_others_have_gone_on_brings_its_steps(
    autojump_clock: MockClock,
) -> None:
    async with open_town(3) as town:
        await commit(town)
        for one in town.alive:
            one.learns(target=1.0)
        doomed, *others = town.citizens
        back = await again(town, 0, doomed.group.carried(), doomed.weights)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(town.exchange, back)
                await wait_all_tasks_blocked()  # the others know that it is there again
                nursery.start_soon(town.exchange, *others)
        town.assert_equal()
        assert back.group.place.commits == 2
        assert Member(back.host.peer_id, 2) in others[0].group.place.members


async def test_a_checkpoint_of_something_else_is_refused(autojump_clock: MockClock) -> None:
    async with open_town(1) as town:
        group = town.citizens[0].group
        kept = group.carried()
        broken = [
            {},
            {**kept, "anchor": torch.zeros(COUNT - 1)},
            {**kept, "place": torch.full((9,), 1e9)},
            {**kept, "place": kept["place"][:-1]},
        ]
        for one in broken:
            with pytest.raises(UserError, match="checkpoint"):
                group.carry_on(one, 0)


async def test_in_a_grid_a_newcomer_takes_the_mean_and_weighs_nothing_in_it(
    autojump_clock: MockClock,
) -> None:
    """The others stand at 1; its own start, at 0, pulls nobody back."""
    async with open_town(3, Settings(bits=32, grid=True)) as town:
        for epoch in range(3):
            for one in town.citizens:
                one.weights = torch.ones(COUNT)
            await town.exchange(epoch=epoch)
        late = await town.join(7)
        joined = await late.group.join()
        assert joined is not None and joined[0] == 3
        for one in town.citizens:
            one.weights = torch.ones(COUNT)
        late.weights = joined[1] + 0.5
        await town.exchange(epoch=3)
        assert torch.allclose(late.group.anchor[0], torch.ones(COUNT), atol=1e-5)
        assert late.group.place.commits == 2 * 3 + 1


async def test_whoever_pulls_nothing_is_met_all_the_same(autojump_clock: MockClock) -> None:
    """Members of a group have no gossip to answer with."""
    async with run_world(1) as world:
        silent = await world.add(serves=False)
        late = await world.add(serves=False)
        with trio.fail_after(60):
            await late.company.until(2)
        assert silent.key.peer_id in late.company.members
        stranger = await world.add(terms_of(asked=4), serves=False)
        assert {one.exchange.asked for one in stranger.company.others} == {3}


class Tuner:
    """Each step adds one."""

    def __init__(self) -> None:
        self.now = torch.zeros(4)

    def step(self, rows: Sequence[int], rate: float) -> float:
        self.now = self.now + 1
        return 1.0

    def weights(self) -> Vector:
        return self.now

    def adopt(self, weights: Vector) -> None:
        self.now = weights

    def loss_of(self, weights: Vector, rows: Sequence[int]) -> float:
        return 1.0

    def carried(self) -> dict[str, Vector]:
        return {"weights": self.now}

    def carry_on(self, kept: dict[str, Vector]) -> None:
        self.now = kept["weights"]


class Beside:
    """An exchange that is on its way for two steps, and then has to be waited for another 3 s."""

    overlap = 2

    def __init__(self) -> None:
        self.settled: list[float] = []

    async def exchange(self, epoch: int, weights: Vector, tokens: int) -> Exchanged:
        await trio.lowlevel.checkpoint()
        return Exchanged(weights, (), 5, 0)

    async def settle(self, weights: Vector) -> Exchanged:
        await trio.sleep(3.0)
        self.settled.append(float(weights[0]))
        return Exchanged(weights + 100, ("ann",), 10, 20)


async def test_what_goes_on_beside_the_steps_is_taken_in_after_so_many(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    training = Training(batch=1, inner_steps=4, epochs=3)
    terms = replace(terms_of(), training=training)
    tuner, exchange, told = Tuner(), Beside(), list[Progress]()
    assert isinstance(exchange, Overlaps)
    one = Runner(terms, tuner, Split.of(20, 0.1, 1), Shelf(tmp_path), me="me", tell=told.append)
    await one.run(exchange)
    # after the second step of each epoch, and at the end
    assert exchange.settled == [2.0, 6.0 + 100, 10.0 + 200, 12.0 + 300]
    assert float(tuner.now[0]) == 12 + 400
    assert one.history[-1].sent_bytes == 3 * 5 + 3 * 10
    assert told[1].share < 0.5  # waiting is no work
