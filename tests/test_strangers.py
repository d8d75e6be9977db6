"""Strangers that lie, in the simulator: each is caught by the daemon's own rules, nobody honest."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from potluck.cli.main import main
from potluck.errors import UserError
from potluck.node.testnet.lies import KINDS
from potluck.swarm.sim import lies
from potluck.swarm.sim.dice import Dice
from potluck.swarm.sim.lies import ACTS, LIES, TABLE, table, told_in
from potluck.swarm.sim.scenario import Peers, Scenario, Strangers, parse_scenario
from potluck.swarm.sim.strangers import Report, run_strangers
from potluck.swarm.sim.views import VICTIMS, Flood

SMALL = Scenario(kind="strangers", seconds=200.0, peers=Peers(count=45))


def run(told: str, *, seed: int = 1, **changes: float) -> Report:
    plan = replace(SMALL, strangers=Strangers(lies=told, clients=6, chunk_s=2.0), **changes)

    def dice(purpose: str) -> Dice:
        return random.Random(f"{seed}/{purpose}")

    return run_strangers(plan, dice)


def test_every_lie_of_a_daemon_is_simulated_and_every_simulated_one_is_a_daemons() -> None:
    assert set(LIES) == set(KINDS) and len(TABLE) == len(LIES)
    assert {line.act for line in TABLE} == set(ACTS)


def test_the_table_of_the_module_is_the_one_that_is_printed() -> None:
    assert lies.__doc__ is not None
    for line in TABLE:
        told = re.search(rf"^ +(.+?)  +{line.lie}(?::P)?  +(.+?)  +(.+)$", lies.__doc__, re.M)
        assert told is not None and told.groups() == (line.words, line.act, line.by)
        assert re.search(rf"^{line.lie} .*{line.act} .*{line.by}$", table(), re.M)


@pytest.mark.parametrize("words", ["", "four_bit, random:0.5"])
def test_lies_are_told_by_commas(words: str) -> None:
    told = told_in(words)
    assert len(told) == (2 if words else len(TABLE))
    for wrong in ("lie", "random:2", "random:x", "four_bit:0"):
        with pytest.raises(UserError):
            told_in(wrong)


@pytest.fixture(scope="module")
def found() -> Report:
    return run(
        "four_bit,random:0.5,collude,false_receipt,false_accusation,equivocate,false_tally,"
        "forged_record,rolled_back_record"
    )


def test_liars_are_caught_each_by_its_own_rule_and_nobody_honest_is(found: Report) -> None:
    rows = {row.lie: row for row in found.rows}
    assert not found.honest_banned and found.liars == 18
    for lie in ("four_bit", "collude"):
        assert "audits" in rows[lie].grounds and "recomputed" in rows[lie].grounds
        assert rows[lie].shunned is not None and rows[lie].shunned > 0.5
    assert "false accusations" in rows["false_accusation"].grounds
    for lie in ("equivocate", "false_tally"):
        assert "contradiction" in rows[lie].grounds and rows[lie].shunned == 1
    for lie in ("forged_record", "rolled_back_record"):
        assert rows[lie].grounds.startswith("its score") and ", 0 believed" in rows[lie].found
        assert rows[lie].shunned == 1
    assert rows["false_receipt"].found.endswith(" 0 stayed wrong")


def test_what_stays_wrong_becomes_less(found: Report) -> None:
    assert found.wrong_first > 0.05 and found.wrong_last < found.wrong_first / 2
    assert found.audits > 0.5 * found.chunks


def test_without_their_rules_the_same_liars_are_not_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is swarm/audit.py that decides: where it finds all right, nobody is banned by audits."""
    from potluck.swarm.audit import Judged
    from potluck.swarm.sim import work

    monkeypatch.setattr(work, "judge", lambda errors, tolerance: Judged("right", 0.0, 0.0))
    blind = run("four_bit,smaller", seconds=60.0)
    assert not blind.holds and not any(row.shunned for row in blind.rows)


def test_one_seed_is_one_report() -> None:
    one = run("skip,replay", seconds=40.0)
    assert one == run("skip,replay", seconds=40.0)
    assert one.trace != run("skip,replay", seconds=40.0, seed=2).trace


def test_views_under_a_flood_of_all_or_of_a_few_are_not_captured() -> None:
    report = run_strangers(
        replace(
            SMALL,
            strangers=Strangers(
                lies="flood_views,eclipse", view_peers=120, view_slots=50, view_rounds=30
            ),
        ),
        lambda purpose: random.Random(f"3/{purpose}"),
    )
    assert report.holds and [row.liars for row in report.rows] == [36, 36]


def test_an_eclipse_is_aimed_at_its_victims() -> None:
    flood = Flood("eclipse", 100, 30, np.random.default_rng(1))
    flood.walk = 1
    flood.round(1)
    known = flood.seen[:, : flood.liars].mean(axis=1)
    assert known[:VICTIMS].min() > 0.9 > known[VICTIMS:].mean()


def test_the_shipped_scenario_has_every_lie_and_a_seed() -> None:
    file = resources.files("potluck.swarm.sim").joinpath("scenarios/strangers.toml")
    plan = parse_scenario(file.read_text("utf-8"), "strangers.toml")
    assert plan.kind == "strangers" and plan.seed == 7
    assert len(told_in(plan.strangers.lies)) == len(TABLE)


def test_the_command_prints_who_was_shunned_and_fails_where_a_rule_did_not_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    text = 'kind = "strangers"\nname = "mine"\nseconds = {}\n[peers]\ncount = 20\n[strangers]\n{}\n'
    file.write_text(text.format(61, 'lies = "equivocate,false_tally"\nclients = 2'))
    assert main(["simulate", str(file)]) == 0
    out = capsys.readouterr().out
    assert "contradiction" in out and "honest peers banned: 0" in out
    file.write_text(text.format(61, 'lies = "skip"\nclients = 1\nchunk_s = 60'))
    assert main(["simulate", str(file), "--json", "--seed", "3"]) == 1
    [told] = json.loads(capsys.readouterr().out)["runs"]
    assert told["seed"] == 3 and not told["holds"] and told["rows"][0]["lie"] == "skip"
    assert main(["simulate", str(file), "--load", "0.5"]) == 2
