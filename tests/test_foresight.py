"""What queues do not tell: work that is promised or on its way, and plans that fall short."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.swarm.blocks import BlockRange
from potluck.swarm.foresight import CHOSEN_FIRST, SHY, Promises, Shortfall
from potluck.swarm.routing import Finder, Offer
from potluck.swarm.sim.baselines import Greedy
from potluck.swarm.sim.dice import Dice
from potluck.swarm.sim.request import Request
from potluck.swarm.sim.run import Simulation
from potluck.swarm.sim.scenario import Load, Model, Peers, Placing, Scenario
from potluck.swarm.sim.world import World
from potluck.swarm.view import Span, columns_of


def dice(purpose: str) -> Dice:
    return random.Random(purpose)


def test_who_is_asked_expects_a_part_of_the_work_until_it_would_have_come() -> None:
    promises = Promises()
    assert promises.seconds(0.0) == 0.0
    promises.asked(6.0, told_s=0.1, now=1.0, until=1.5)
    part = promises.seconds(1.0)
    assert part == pytest.approx(6.0 * SHY * CHOSEN_FIRST)
    promises.asked(3.0, told_s=50.0, now=1.2, until=1.4)
    assert promises.seconds(1.3) == pytest.approx(part + 3.0 * SHY * CHOSEN_FIRST)
    assert promises.seconds(1.45) == pytest.approx(part)
    assert promises.seconds(1.5) == 0.0


def test_of_queues_after_which_nobody_comes_nothing_is_expected_and_of_the_others_all() -> None:
    promises = Promises()
    for now in range(2000):
        promises.asked(1.0, told_s=0.0, now=now, until=now + 0.5)
        promises.came(told_s=0.01)  # as good as none
        promises.asked(1.0, told_s=3.0, now=now, until=now + 0.5)
    promises.asked(1.0, told_s=0.0, now=5000.0, until=5001.0)
    assert promises.seconds(5000.0) == 1.0  # never more than the work
    promises.asked(1.0, told_s=3.1, now=6000.0, until=6001.0)
    assert promises.seconds(6000.0) < 0.01


@given(came=st.lists(st.booleans(), max_size=300))
def test_what_is_expected_lies_between_nothing_and_the_work(came: list[bool]) -> None:
    promises = Promises()
    for now, comes in enumerate(came):
        promises.asked(2.0, told_s=1.0, now=now, until=now + 1)
        assert 0.0 <= promises.seconds(now) <= 2.0
        if comes:
            promises.came(told_s=1.0)


def test_work_whose_header_came_is_expected_until_its_rows_are_there() -> None:
    promises = Promises()
    promises.expect(4.0, begins=2.0, ends=5.0)
    assert [promises.seconds(now) for now in (1.9, 2.0, 4.9, 5.0)] == [0.0, 4.0, 4.0, 0.0]


@given(gaps=st.lists(st.floats(-3.0, 3.0), max_size=40))
def test_a_shortfall_lies_between_nothing_and_the_worst_that_was_seen(gaps: list[float]) -> None:
    shortfall = Shortfall()
    for gap in gaps:
        shortfall.saw(planned_s=10.0, found_s=10.0 + 4 * gap, blocks=4)
    assert 0.0 <= shortfall.block_s() <= max([0.0, *gaps]) + 1e-9


def test_a_span_is_left_for_a_plan_only_if_it_is_better_by_what_plans_fall_short() -> None:
    """The planned successor takes half of the time: 0.03 s for three blocks, and a round trip."""
    whole = BlockRange(0, 5)
    spans = [
        Span("here", BlockRange(0, 5), 0.010, rtt_s=0.0),
        Span("there", BlockRange(2, 5), 0.001, rtt_s=0.0),
    ]
    finder = Finder(columns_of(spans), whole)
    offers = [Offer(0, queue_s=0.0)]
    assert finder.bind(0, offers)[:2] == (0, 2)
    assert finder.bind(0, offers, short_s=0.005)[:2] == (0, 2)
    assert finder.bind(0, offers, short_s=0.015)[:2] == (0, 5)
    # What is told of the rest is the plan, with or without.
    assert finder.bind(0, offers, short_s=0.015)[2] == pytest.approx(0.051)


def test_a_hundred_times_the_work_takes_not_twice_the_hops() -> None:
    """The same peers and load; a round trip is a tenth of a hop, and then a thousandth. With a
    fixed 0.15 s as the least gain for which a span was left early it took 2.8 times the hops."""
    light = Scenario(
        seconds=8.0, warm_s=2.0, model=Model(blocks=16, row_bytes=0),
        peers=Peers(count=40, span_min=2, span_max=8, table="even-150us"),
        load=Load(share=0.6, clients=4),
        placing=Placing(moving="none"),
    )  # fmt: skip
    heavy = replace(
        light, seconds=800.0, warm_s=200.0, peers=replace(light.peers, table="even-1500us"),
        load=replace(light.load, tokens=1280, deadline_s=500.0),
        control=replace(light.control, fresh_s=100 * light.control.fresh_s),
    )  # fmt: skip
    hops = []
    for plan in (light, heavy):
        outcome = Simulation(plan, "ours", dice).run()
        assert outcome.done == outcome.offered > 100
        hops.append(outcome.hops / outcome.done)
    assert hops[1] < 2 * hops[0]


def test_the_oracle_does_not_send_twice_where_its_work_is_on_the_way() -> None:
    plan = Scenario(
        model=Model(blocks=4, row_bytes=8192),
        peers=Peers(count=6, span_min=4, span_max=4, spread=0.0, table="even-1500us"),
    )
    world = World(plan, dice)
    greedy = Greedy(world, dice("router"))
    asked = [
        Request(n, 0, 1024, 0.0, 60.0, access_s=0.01, place=(0.5, 0.5)) for n in range(world.count)
    ]
    chosen = [greedy.choose(request, 0.0) for request in asked]
    assert len({row for row, _ in filter(None, chosen)}) == world.count


def test_a_queue_that_is_told_counts_what_is_promised_and_a_liars_does_not() -> None:
    world = World(Scenario(peers=Peers(count=20)), dice)
    world.lies_load[1] = True
    for i in (0, 1):
        world.busy_until[i] = 3.0
        world.promises(i).expect(5.0, 0.0, 9.0)
    assert [world.told_queue_s(i, 1.0) for i in (0, 1)] == [7.0, 0.0]
    assert np.isclose(world.told_queue_s(0, 9.0), 0.0)
