"""What `potluck simulate` does: read a scenario, run it for each router and seed, show the result.

Dice are made here, one set for each purpose and seed, so that every router meets the same world.
"""

from __future__ import annotations

import json as json_module
import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import typer

from ..errors import UserError
from ..swarm.sim.dice import Dice
from ..swarm.sim.report import LAYOUT_COLUMNS, MEANINGS, REQUEST_COLUMNS, measures, summary
from ..swarm.sim.run import Outcome, Simulation
from ..swarm.sim.scenario import ROUTINGS, Scenario, parse_scenario
from .tables import print_table

SEEDS_MAX = 100
PEERS_MAX = 200_000


def run_simulation(
    scenario: str, peers: int | None, router: str, seed: str, *, json: bool, plot: str | None
) -> None:
    plan = _scenario(scenario, peers)
    routers, seeds = _routers(router), _seeds(seed)
    if plot is not None:
        _matplotlib()  # before an hour of work, not after it
    found: dict[str, list[Outcome]] = {name: [] for name in routers}
    for name in routers:
        for number in seeds:
            began_s = time.perf_counter()
            simulation = Simulation(plan, name, _dice(number))
            found[name].append(simulation.run())
            if not json:
                took_s = time.perf_counter() - began_s
                typer.echo(
                    f"{name} seed {number}: {simulation.ended_s:.0f} s in {took_s:.1f} s, "
                    f"{simulation.ended_s / took_s:.0f} times real time, "
                    f"trace {found[name][-1].trace[:12]}",
                    err=True,
                )
    if json:
        typer.echo(json_module.dumps(_told(plan, seeds, found), indent=2))
    else:
        _show(plan, found)
    if plot is not None:
        _draw(plan, found, plot)


def _dice(seed: int) -> Any:
    def dice(purpose: str) -> Dice:
        return random.Random(f"{seed}/{purpose}")

    return dice


def _scenario(named: str, peers: int | None) -> Scenario:
    path = Path(named)
    if path.suffix != ".toml" and not path.exists():
        shipped = resources.files("potluck.swarm.sim").joinpath("scenarios")
        file = shipped.joinpath(f"{named}.toml")
        if not file.is_file():
            names = sorted(
                item.name.removesuffix(".toml")
                for item in shipped.iterdir()
                if item.name.endswith(".toml")
            )
            raise UserError(f"no scenario {named}: give a TOML file, or one of {', '.join(names)}")
        text = file.read_text("utf-8")
    else:
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {named}: {error}") from None
    plan = parse_scenario(text, named)
    if peers is not None:
        if not 1 <= peers <= PEERS_MAX:
            raise UserError(f"--peers {peers}: give 1 to {PEERS_MAX}")
        plan = replace(plan, peers=replace(plan.peers, count=peers))
    return plan


def _routers(told: str) -> list[str]:
    names = [name.strip() for name in told.split(",")]
    for name in names:
        if name not in ROUTINGS:
            raise UserError(f"--router {name} is none of {', '.join(ROUTINGS)}")
    return list(dict.fromkeys(names))


def _seeds(told: str) -> list[int]:
    try:
        first, dots, last = told.partition("..")
        seeds = (
            list(range(int(first), int(last) + 1)) if dots else [int(s) for s in told.split(",")]
        )
    except ValueError:
        seeds = []
    if not 1 <= len(seeds) <= SEEDS_MAX:
        raise UserError(f"--seed {told}: give 7, 1,2,5 or 1..5, at most {SEEDS_MAX}")
    return seeds


def _told(plan: Scenario, seeds: Sequence[int], found: dict[str, list[Outcome]]) -> dict[str, Any]:
    """What --json prints: every run, and the means. A number that is not there is null."""

    def clean(value: float) -> float | None:
        return round(value, 6) if math.isfinite(value) else None

    return {
        "scenario": plan.name,
        "peers": plan.peers.count,
        "routers": {
            name: {
                "mean": {key: clean(value.mean) for key, value in summary(outcomes).items()},
                "ci95": {key: clean(value.half) for key, value in summary(outcomes).items()},
                "runs": [
                    {"seed": seed, "trace": outcome.trace}
                    | {key: clean(value) for key, value in measures(outcome).items()}
                    for seed, outcome in zip(seeds, outcomes, strict=True)
                ],
            }
            for name, outcomes in found.items()
        },
    }


def _columns(plan: Scenario) -> tuple[str, ...]:
    return LAYOUT_COLUMNS if plan.kind == "layout" else REQUEST_COLUMNS


def _show(plan: Scenario, found: dict[str, list[Outcome]]) -> None:
    columns = _columns(plan)
    rows = []
    for name, outcomes in found.items():
        means = summary(outcomes)
        rows.append((name, *(str(means[column]) for column in columns)))
    print_table(("ROUTER", *(f"{column.upper()}>" for column in columns)), rows)
    for column in columns:
        typer.echo(f"  {column}: {MEANINGS[column]}")


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.pyplot
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    return matplotlib.pyplot


def _draw(plan: Scenario, found: dict[str, list[Outcome]], path: str) -> None:
    """Latencies as a distribution where there are requests, else the shares as bars."""
    plot = _matplotlib()
    figure, axes = plot.subplots(figsize=(9, 5), layout="constrained")
    if plan.kind == "requests":
        for name, outcomes in found.items():
            seen = sorted(s for outcome in outcomes for s in outcome.latencies_s)
            offered = sum(outcome.offered for outcome in outcomes)
            axes.plot(seen, [(i + 1) / offered for i in range(len(seen))], label=name)
        axes.set(xlabel="seconds to an answer", ylabel="share of all requests", ylim=(0, 1))
        axes.axvline(plan.load.deadline_s, color="grey", linestyle=":", label="deadline")
        axes.legend()
    else:
        names = list(found)
        means = [summary(found[name])["flow_best"] for name in names]
        half = [0.0 if math.isnan(mean.half) else mean.half for mean in means]
        axes.bar(names, [mean.mean for mean in means], yerr=half, capsize=4)
        axes.set(ylabel="flow, of the best layout of the same peers", ylim=(0, 1.05))
    axes.set_title(f"{plan.name}: {plan.peers.count} peers")
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from None
