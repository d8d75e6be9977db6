"""The simulator: its yardstick against brute force, its files, and that one seed is one run."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.cli.main import main
from potluck.errors import UserError
from potluck.swarm.ahead import READY_S, is_ready
from potluck.swarm.blocks import BlockRange
from potluck.swarm.sim.dice import Dice
from potluck.swarm.sim.optimum import layout_bound, optimum
from potluck.swarm.sim.report import estimate
from potluck.swarm.sim.run import Outcome, Simulation
from potluck.swarm.sim.scenario import (
    ROUTINGS,
    Churn,
    Liars,
    Load,
    Model,
    Peers,
    Placing,
    Scenario,
    parse_scenario,
)
from potluck.swarm.sim.table import TABLES, Table, parse_table
from potluck.swarm.sim.world import Seat, World

Spans = list[tuple[int, int, float]]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, Spans]:
    total = draw(st.integers(1, 7))
    spans = []
    for _ in range(draw(st.integers(1, 8))):
        start = draw(st.integers(0, total - 1))
        rate = draw(st.sampled_from([0.3, 1.0, 2.0, 5.0]))
        spans.append((start, draw(st.integers(start + 1, total)), rate))
    return total, spans


def flow_of(total: int, spans: Spans) -> float:
    start, stop, rate = zip(*spans, strict=True)
    return optimum(np.array(start), np.array(stop), np.array(rate), total)


@settings(max_examples=200, deadline=None)
@given(layout=layouts())
def test_the_optimum_is_the_least_cut_over_every_set_of_blocks(layout: tuple[int, Spans]) -> None:
    total, spans = layout
    least = min(
        sum(rate for start, stop, rate in spans if any(start <= b < stop for b in blocks)) / size
        for size in range(1, total + 1)
        for blocks in itertools.combinations(range(total), size)
    )
    assert flow_of(total, spans) == pytest.approx(least)
    assert least <= layout_bound(np.array([rate for _, _, rate in spans]), total) + 1e-9


@settings(max_examples=20, deadline=None)
@given(layout=layouts())
def test_the_optimum_is_that_of_the_linear_programme(layout: tuple[int, Spans]) -> None:
    linprog = pytest.importorskip("scipy.optimize").linprog
    total, spans = layout
    pairs = [(i, b) for i, (start, stop, _) in enumerate(spans) for b in range(start, stop)]
    able = [[float(pair[0] == i) for pair in pairs] + [0.0] for i in range(len(spans))]
    wanted = [[-float(pair[1] == b) for pair in pairs] + [1.0] for b in range(total)]
    limits = [rate for _, _, rate in spans] + [0.0] * total
    goal = [0.0] * len(pairs) + [-1.0]
    found = linprog(goal, A_ub=able + wanted, b_ub=limits, method="highs")
    assert flow_of(total, spans) == pytest.approx(-found.fun, abs=1e-7)


SMALL = Scenario(
    seconds=8.0,
    warm_s=2.0,
    model=Model(blocks=12, row_bytes=1000),
    peers=Peers(count=24, span_min=2, span_max=6, table="even-150us"),
    load=Load(share=0.5, clients=3),
)
CHURN = Churn(kind="weibull", mean_s=60.0, away_s=10.0)


def run(scenario: Scenario, router: str = "ours", seed: int = 1) -> Outcome:
    def dice(purpose: str) -> Dice:
        return random.Random(f"{seed}/{purpose}")

    return Simulation(scenario, router, dice).run()


@pytest.mark.parametrize("router", ROUTINGS)
def test_one_seed_is_one_run_and_every_request_is_accounted_for(router: str) -> None:
    scenario = replace(SMALL, churn=CHURN)
    first = run(scenario, router)
    assert first == run(scenario, router)
    assert first.trace != run(scenario, router, seed=2).trace
    assert first.offered > 20 and first.good <= first.done <= first.offered


def test_at_half_load_without_churn_every_answer_is_in_time() -> None:
    outcome = run(SMALL)
    assert outcome.goodput() == 1.0 and outcome.retries == 0
    assert outcome.load == pytest.approx(0.5)


def test_a_request_goes_on_when_its_peers_die() -> None:
    """Lives of half a minute: many requests lose a hop, and nearly all are answered."""
    scenario = replace(
        SMALL,
        seconds=20.0,
        churn=Churn(kind="weibull", mean_s=30.0, away_s=1.0, shape=1.0),
        peers=replace(SMALL.peers, count=60),
        placing=Placing(move_s=1.0),
    )
    outcome = run(scenario)
    assert outcome.retries > 0 and outcome.done >= 0.95 * outcome.offered


def test_black_holes_cost_time_and_not_answers() -> None:
    scenario = replace(
        SMALL,
        seconds=20.0,
        liars=Liars(share=0.3, what="blackhole"),
        load=replace(SMALL.load, deadline_s=60.0),
    )
    outcome = run(scenario)
    assert outcome.done == outcome.offered and outcome.retries > 0


def test_who_is_slow_claims_what_it_would_do_and_all_others_what_they_do() -> None:
    plan = Scenario(
        name="slow", seconds=1, warm_s=0, model=Model(blocks=4),
        peers=Peers(count=60, span_min=1, span_max=2, spread=0.4),
        liars=Liars(share=0.5, what="slow", times=8.0),
    )  # fmt: skip
    world = World(plan, lambda purpose: random.Random(purpose))
    claims = [world.claim(i) / float(world.rate[i]) for i in range(world.size)]
    assert {round(claim, 6) for claim in claims} == {1.0, 8.0}
    assert 15 < claims.count(1.0) < 45


def test_a_layout_that_moves_carries_more_than_one_that_does_not() -> None:
    """After bursts; over an hour, 40 peers of one block in 8, the same lives for both."""
    scenario = Scenario(
        kind="layout",
        seconds=7200.0,
        warm_s=600.0,
        model=Model(blocks=8),
        peers=Peers(count=40, span_min=1, span_max=1, spread=0.0, table="even-150us"),
        churn=Churn(kind="spot", mean_s=7200.0, away_s=1800.0, burst_every_s=1800.0),
    )
    ours, nobody = run(scenario, "ours"), run(scenario, "random")
    assert ours.flow > nobody.flow and ours.moves_per_hour > 0 == nobody.moves_per_hour
    assert ours.flow <= 1.0 + 1e-9
    # Who still loads is no part of the one yardstick, and is of the other.
    assert 0 < ours.flow_here < ours.flow_best


def test_who_has_fetched_ahead_loads_from_its_disk_and_who_died_is_told_of_for_a_while() -> None:
    scenario = Scenario(
        kind="layout",
        model=Model(blocks=8),
        peers=Peers(count=20, span_min=1, span_max=1),
        churn=Churn(kind="spot", mean_s=7200.0),
    )
    world = World(scenario, lambda purpose: random.Random(purpose))
    for i in world.living():
        ready = is_ready(world.name(i), 8, 1, 1000.0 - float(world.born[i]))
        for block, on_disk in enumerate(ready.tolist()):
            wanted_s = READY_S if on_disk else scenario.placing.move_s
            assert world.move_s(i, BlockRange(block, block + 1), 1000.0) == wanted_s
    short = replace(
        scenario, seconds=1200.0, churn=Churn(kind="weibull", mean_s=300.0, away_s=60.0)
    )
    soon, late = (run(replace(short, placing=Placing(tell_s=tell_s))) for tell_s in (0.0, 300.0))
    assert soon.flow > late.flow


def test_a_newcomer_is_on_its_way_until_it_serves() -> None:
    scenario = Scenario(churn=Churn(kind="weibull", mean_s=600.0))
    world = World(scenario, lambda purpose: random.Random(purpose))
    newcomer = world.count
    blocks = world.join(newcomer)
    arriving = [one.peer for one in world.holdings(1.0) if one.arriving]
    assert arriving == [world.name(newcomer)]
    world.settle(newcomer, blocks)
    assert not any(one.arriving for one in world.holdings(1.0))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("seconds = ", "not TOML"),
        ("second = 3", "second is not known"),
        ("[peers]\ncuont = 3", "peers.cuont is not known"),
        ("peers = 3", "peers is a table"),
        ("[peers]\ncount = 3.5", "not a whole number"),
        ("[peers]\ncount = true", "not a whole number"),
        ("[peers]\ncount = 0", "out of range"),
        ("[churn]\nkind = 'storm'", "none of none, weibull"),
        ("[load]\nshare = nan", "out of range"),
        ("[peers]\nspan_max = 200", "within model.blocks 80"),
        ("seconds = 10\nwarm_s = 10", "leaves nothing"),
    ],
)
def test_a_bad_scenario_is_one_line_that_names_what_is_wrong(text: str, names: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_scenario(text, "my.toml")
    assert names in str(caught.value) and str(caught.value).startswith("my.toml")
    assert "\n" not in str(caught.value)


def test_the_scenarios_that_come_with_the_package_are_read() -> None:
    folder = resources.files("potluck.swarm.sim").joinpath("scenarios")
    names = set()
    for file in folder.iterdir():
        if file.name.endswith(".toml"):
            names.add(parse_scenario(file.read_text("utf-8"), file.name).name)
    assert {"even", "routing", "scale", "spot", "stages", "liars"} <= names


def test_a_table_is_drawn_between_its_rows_and_beyond() -> None:
    rows = [[1, 1, 6.0], [1, 16, 21.0], [4, 1, 20.0], [4, 16, 80.0]]
    table = parse_table(json.dumps({"name": "mine", "rows": rows}), "mine.json")
    assert table.seconds(1, 1) == pytest.approx(0.006)
    assert table.seconds(1, 6) == pytest.approx(0.011)
    assert table.seconds(1, 31) == pytest.approx(0.036)
    assert table.seconds(2, 16) == pytest.approx(0.042)
    assert table.seconds(8, 16) == pytest.approx(0.160)
    assert TABLES["cpu-int8-4096"].token_block_s(128) < TABLES["cpu-int8-4096"].token_block_s(1)
    for text in ("{}", "[", '{"name": "x", "rows": []}', '{"name": "x", "rows": [[1, 0, 2]]}'):
        with pytest.raises(UserError):
            parse_table(text, "bad.json")


def test_an_interval_is_students_and_one_run_has_none() -> None:
    """Of 1, 2, 3: deviation 1, t of two degrees 4.303, over the root of 3."""
    assert estimate([1.0, 2.0, 3.0]).half == pytest.approx(4.303 / 3**0.5)
    assert str(estimate([1.0, float("inf")])) == "inf"
    assert str(estimate([2.0])) == "2.000" and str(estimate([])) == "-"


def test_the_command_runs_a_file_and_tells_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(
        'name = "tiny"\nseconds = 2\nwarm_s = 0.5\n[model]\nblocks = 8\nrow_bytes = 0\n'
        '[peers]\nspan_max = 4\ntable = "even-150us"\n'
    )
    arguments = ["simulate", str(file), "--peers", "12", "--seed", "1..2", "--router", "ours,po3"]
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["peers"] == 12
    assert [(cell["router"], cell["load"]) for cell in told["cells"]] == [
        ("ours", 0.8),
        ("po3", 0.8),
    ]
    assert [run["seed"] for run in told["cells"][0]["runs"]] == [1, 2]
    picture = tmp_path / "out.png"
    assert main([*arguments, "--load", "0.3,0.6", "--plot", str(picture)]) == 0
    table = capsys.readouterr().out
    assert "GOODPUT" in table and "po3 at 0.6: p50_s" in table
    assert picture.read_bytes().startswith(b"\x89PNG")
    for bad in (["--router", "x"], ["--seed", "2..1"], ["--peers", "0"], ["--load", "0.8,x"]):
        assert main(["simulate", str(file), *bad]) == 2
    assert main(["simulate", "spot", "--load", "0.8"]) == 2
    assert capsys.readouterr().err.count("\n") == 5


def test_who_gets_no_answer_waits_for_ever() -> None:
    outcome = Outcome("ours", offered=4, done=3, latencies_s=[3.0, 1.0, 2.0])
    assert [outcome.latency_s(share) for share in (0.25, 0.5, 0.75)] == [1.0, 2.0, 3.0]
    assert outcome.latency_s(0.95) == float("inf")


def test_a_twin_has_the_peers_that_it_is_given_and_they_share_their_machine() -> None:
    """Two peers busy two fifths of the time; on one core that is four fifths, and a queue."""
    table = Table("measured", ((12, 1, 1.0), (12, 128, 100.0)))
    seats = [Seat(BlockRange(0, 12), table)] * 2
    plan = replace(SMALL, seconds=60.0, peers=replace(SMALL.peers, count=2))

    def twin(cores: int) -> Outcome:
        shared = replace(plan, peers=replace(plan.peers, cores=cores))

        def dice(purpose: str) -> Dice:
            return random.Random(purpose)

        return Simulation(shared, "ours", dice, seats=seats, rate=8.0).run()

    own, one, two = twin(0), twin(1), twin(2)
    assert own.load == pytest.approx(0.4) and own.latency_s(0.0) > 0.1
    assert two.latency_s(0.5) == own.latency_s(0.5)
    assert one.latency_s(0.5) > 1.2 * own.latency_s(0.5)


def test_who_is_refused_by_a_full_cache_is_served_elsewhere() -> None:
    """Room for four requests in the longest span: some hops are refused, most find another peer."""
    plan = replace(SMALL, peers=replace(SMALL.peers, cache_tokens=4 * 128 * 6))
    free, bounded = run(SMALL), run(plan)
    assert free.retries == 0 < bounded.retries
    assert bounded.done > 0.9 * bounded.offered
