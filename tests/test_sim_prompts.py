"""Prompts that begin alike, in the simulator: who goes where they are computes less."""

from __future__ import annotations

import random
from dataclasses import replace
from importlib import resources

import pytest

from potluck.errors import UserError
from potluck.swarm.sim.dice import Dice
from potluck.swarm.sim.run import Outcome, Simulation
from potluck.swarm.sim.scenario import Scenario, parse_scenario


def plan(share: float, prompts: int) -> Scenario:
    """The shipped one, cut short."""
    file = resources.files("potluck.swarm.sim").joinpath("scenarios", "prefix.toml")
    whole = parse_scenario(file.read_text("utf-8"), "prefix.toml")
    load = replace(whole.load, share=share, prompts=prompts, ramp_s=5.0)
    return replace(whole, seconds=40.0, warm_s=20.0, load=load)


def run(scenario: Scenario, router: str) -> Outcome:
    def dice(purpose: str) -> Dice:
        return random.Random(f"1/{purpose}")

    return Simulation(scenario, router, dice).run()


def test_who_goes_where_prompts_are_answers_what_load_alone_cannot() -> None:
    """At 1.3 times what the peers can compute without remembering anything."""
    scenario = plan(1.3, 24)
    affine, ours = run(scenario, "affine"), run(scenario, "ours")
    assert affine.hit > 0.6 > ours.hit
    assert affine.goodput() > 0.9 > 0.6 > ours.goodput()


def test_where_nobody_shares_both_are_one() -> None:
    scenario = plan(0.7, 0)
    affine, ours = run(scenario, "affine"), run(scenario, "ours")
    assert affine.trace == ours.trace and affine.offered > 100


def test_a_prompt_is_shorter_than_its_request() -> None:
    with pytest.raises(UserError, match="must be more than the 1500 of a prompt"):
        parse_scenario("[load]\nprompts = 3\ntokens = 1500\n", "x.toml")
