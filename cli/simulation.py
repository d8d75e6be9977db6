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
from ..swarm.sim.report import (
    LAYOUT_COLUMNS,
    MEANINGS,
    REQUEST_COLUMNS,
    Cell,
    measures,
    ratio,
    summary,
)
from ..swarm.sim.run import Outcome, Simulation
from ..swarm.sim.scenario import ROUTINGS, Scenario, parse_scenario
from . import strangers
from .simulation_plot import draw, pyplot
from .tables import print_table

SEEDS_MAX = 100
PEERS_MAX = 200_000
LOAD_MAX = 2.0


def run_simulation(
    scenario: str,
    peers: int | None,
    router: str,
    load: str | None,
    seed: str | None,
    *,
    json: bool,
    plot: str | None,
) -> None:
    plan = _scenario(scenario, peers)
    routers, seeds = _routers(router), _seeds(seed or str(plan.seed))
    if plan.kind == "strangers":
        if load is not None or plot is not None or routers != ["ours"]:
            raise UserError(f"{plan.name}: lies are met by our own rules; leave --router, --load")
        raise typer.Exit(strangers.play(plan, seeds, _dice, json=json))
    plans = _loads(plan, load)
    if plot is not None:
        pyplot()  # before an hour of work, not after it
    cells = []
    for name in routers:
        for plan in plans:
            outcomes = [_run(plan, name, number, quiet=json) for number in seeds]
            cells.append(Cell(name, plan, tuple(outcomes)))
    if json:
        typer.echo(json_module.dumps(_told(cells, seeds), indent=2))
    else:
        _show(cells)
    if plot is not None:
        draw(cells, plot)


def _run(plan: Scenario, router: str, seed: int, *, quiet: bool) -> Outcome:
    began_s = time.process_time()
    simulation = Simulation(plan, router, _dice(seed))
    outcome = simulation.run()
    if not quiet:
        took_s = time.process_time() - began_s
        typer.echo(
            f"{router} seed {seed}: {simulation.ended_s:.0f} s in {took_s:.1f} s of one core, "
            f"{simulation.ended_s / took_s:.0f} times real time, trace {outcome.trace[:12]}",
            err=True,
        )
    return outcome


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


def _loads(plan: Scenario, told: str | None) -> list[Scenario]:
    if told is None:
        return [plan]
    if plan.kind == "layout":
        raise UserError(f"--load {told}: nobody asks anything in {plan.name}, a layout")
    try:
        shares = [float(share) for share in told.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share <= LOAD_MAX for share in shares):
        raise UserError(f"--load {told}: give shares of the optimum, as 0.8 or 0.5,0.8,0.9")
    return [replace(plan, load=replace(plan.load, share=share)) for share in shares]


def _told(cells: Sequence[Cell], seeds: Sequence[int]) -> dict[str, Any]:
    """What --json prints: every run, and the means. A number that is not there is null."""

    def clean(value: float) -> float | None:
        return round(value, 6) if math.isfinite(value) else None

    def facts(cell: Cell) -> dict[str, Any]:
        means = summary(cell.outcomes)
        return {
            "router": cell.router,
            "load": cell.plan.load.share,
            "mean": {key: clean(value.mean) for key, value in means.items()},
            "ci95": {key: clean(value.half) for key, value in means.items()},
            "runs": [
                {"seed": seed, "trace": outcome.trace}
                | {key: clean(value) for key, value in measures(outcome).items()}
                for seed, outcome in zip(seeds, cell.outcomes, strict=True)
            ],
        }

    plan = cells[0].plan
    return {
        "scenario": plan.name,
        "peers": plan.peers.count,
        "cells": [facts(cell) for cell in cells],
    }


def _show(cells: Sequence[Cell]) -> None:
    columns = LAYOUT_COLUMNS if cells[0].plan.kind == "layout" else REQUEST_COLUMNS
    rows = []
    for cell in cells:
        means = summary(cell.outcomes)
        rows.append((cell.router, *(str(means[column]) for column in columns)))
    print_table(("ROUTER", *(f"{column.upper()}>" for column in columns)), rows)
    for column in columns:
        typer.echo(f"  {column}: {MEANINGS[column]}")
    if cells[0].plan.kind == "requests":
        _compare(cells)


def _compare(cells: Sequence[Cell]) -> None:
    """The first router beside the others, seed by seed: they met the same worlds."""
    first = {cell.plan.load.share: cell for cell in cells if cell.router == cells[0].router}
    for cell in cells[len(first) :]:
        share = cell.plan.load.share
        words = [
            f"{name} {ratio(cell.outcomes, first[share].outcomes, name)}"
            for name in ("p50_s", "p95_s")
        ]
        typer.echo(f"{cell.router} at {share:g}: {', '.join(words)} times {cells[0].router}")
