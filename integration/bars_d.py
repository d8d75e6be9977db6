"""The bars of D, routing and churn: how each is measured, and when it holds.

Those of the simulator alone (1, 2, 3) are read off its own table: `potluck simulate`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from random import Random
from statistics import fmean

import trio

from .row import Row

LIARS_SEEDS = (1, 2)


def d4_liars() -> Iterator[Row]:
    """The shipped scenario, with its liars and with the same peers telling the truth."""
    from potluck.swarm.sim.run import Simulation
    from potluck.swarm.sim.scenario import Scenario, parse_scenario

    def goodput(scenario: Scenario, seed: int) -> float:
        run = Simulation(scenario, "ours", lambda purpose: Random(f"{seed}/{purpose}"))
        return run.run().goodput()

    file = resources.files("potluck.swarm.sim").joinpath("scenarios", "liars.toml")
    lying = parse_scenario(file.read_text("utf-8"), "liars.toml")
    honest = replace(lying, liars=replace(lying.liars, share=0.0))
    before = fmean(goodput(honest, seed) for seed in LIARS_SEEDS)
    after = fmean(goodput(lying, seed) for seed in LIARS_SEEDS)
    yield Row(
        "D4",
        "20 % of peers lying about rate and load lower goodput by less than 5 %",
        f"{before:.3f} to {after:.3f}, {1 - after / before:.1%} less; {len(LIARS_SEEDS)} seeds",
        after > 0.95 * before,
        "potluck simulate liars --router ours",
    )


def d7_drain() -> Iterator[Row]:
    from .test_drain import DELAY_MAX_S, SESSIONS, measure

    with tempfile.TemporaryDirectory(prefix="potluck-drain-") as folder:
        found = trio.run(measure, Path(folder))
    yield Row(
        "D7",
        "a peer with 20 live sessions drains: no token later than 1 s, none computed again",
        f"{found['moved']} moved, {found['hops_lost']} hops lost, {found['different']} texts "
        f"differ; longest wait {found['delay_max_s']} s (calm {found['calm_delay_max_s']} s)",
        found["on_the_leaving_peer"] == SESSIONS
        and not found["hops_lost"]
        and not found["different"]
        and found["delay_max_s"] <= DELAY_MAX_S,
        "python -m integration.test_drain",
    )


def d8_fairness() -> Iterator[Row]:
    from .fairness import measure

    found = measure()
    command = "python -m integration.fairness"
    least = min(one["greedy_over_fair_min"] for one in found["shares"])
    most = max(one["greedy_over_fair_max"] for one in found["shares"])
    yield Row(
        "D8",
        "ten times another's load gets within 10 % of its fair share in any 60 s",
        f"{least:.2f} to {most:.2f} of it, {len(found['shares'])} runs",
        least >= 0.9 and most <= 1.1,
        command,
    )
    ratio = max(one["p95_over_median"] for one in found["newcomers"])
    yield Row(
        "D8",
        "a newcomer's p95 to the first token at 90 % load below 3 times the median",
        f"{ratio:.2f} times, the worst of {len(found['newcomers'])} runs",
        ratio < 3,
        command,
    )


BARS: dict[str, Callable[[], Iterator[Row]]] = {
    "D4": d4_liars,
    "D7": d7_drain,
    "D8": d8_fairness,
}
