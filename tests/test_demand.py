"""What is asked of a model, and which one the next peer is for."""

from __future__ import annotations

import pytest

from potluck.swarm.blocks import BlockRange
from potluck.swarm.demand import BATCH_GAIN, HALF_S, Asked, Served, demand_of
from potluck.swarm.placement import Holding, choose_model


def test_a_steady_rate_is_told_and_fades_by_half_in_a_minute() -> None:
    asked = Asked(now=0.0)
    for second in range(1, 601):
        told = asked.rate(50 * second, float(second))
    assert told == pytest.approx(50, rel=0.01)
    assert asked.rate(30_000, 600 + HALF_S) == pytest.approx(told / 2)


def test_how_often_it_is_told_changes_nothing() -> None:
    often, seldom = Asked(0.0), Asked(0.0)
    for tenth in range(1, 3001):
        often.rate(tenth, tenth / 10)
    assert seldom.rate(3000, 300.0) == pytest.approx(often.rate(3000, 300.0))
    assert often.rate(3000, 300.0) == often.rate(3000, 299.0)  # a clock that stands


def serving(peer: str, start: int, stop: int, rate: float, asked: float) -> Served:
    return Served(Holding(peer, BlockRange(start, stop), rate), asked)


def test_what_goes_through_every_stage_is_asked_once() -> None:
    stages = [serving("a", 0, 4, 400, 20), serving("b", 4, 8, 400, 20)]
    assert demand_of("m", 8, stages).offered == pytest.approx(20)
    doubled = [*stages, serving("c", 0, 4, 400, 10), serving("d", 4, 8, 400, 10)]
    assert demand_of("m", 8, doubled).offered == pytest.approx(30)


def test_a_liar_asks_for_no_more_than_it_could_do() -> None:
    honest = [serving("a", 0, 8, 800, 20)]
    lie = serving("liar", 0, 8, 80, 1e12)
    assert demand_of("m", 8, [lie]).offered == pytest.approx(BATCH_GAIN * 10)
    assert demand_of("m", 8, honest).offered == pytest.approx(20)


def test_the_model_that_is_furthest_from_its_demand_gets_the_peer() -> None:
    calm = demand_of("calm", 8, [serving("a", 0, 8, 800, 10)])
    busy = demand_of("busy", 8, [serving("b", 0, 8, 800, 90)])
    idle_hole = demand_of("holes", 8, [serving("c", 0, 4, 800, 0)])
    assert choose_model([calm, busy, idle_hole]) == "busy"
    wanted_hole = demand_of("wanted", 8, [serving("c", 0, 4, 800, 1)])
    assert choose_model([calm, busy, wanted_hole]) == "wanted"
