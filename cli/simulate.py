"""Try the rules on thousands of peers that are numbers."""

from __future__ import annotations

from typing import Annotated

import typer

from ..swarm.sim.lies import table
from .options import Json

LIES = "\b\nWhat peers lie about; a daemon does by potluck testnet up --liars:\n" + table()


def simulate(
    scenario: Annotated[
        str, typer.Argument(help="A TOML file, or the name of one that comes with potluck.")
    ],
    peers: Annotated[int | None, typer.Option(help="How many, instead of the file's.")] = None,
    router: Annotated[
        str,
        typer.Option(
            help="ours, affine, petals, swarm, random, greedy, po3: one or several, by comma."
        ),
    ] = "ours",
    load: Annotated[
        str | None, typer.Option(help="Shares of the optimum, instead of the file's: 0.5,0.8,0.9.")
    ] = None,
    seed: Annotated[
        str | None, typer.Option(help="7, 1,2,5 or 1..5, instead of the file's.")
    ] = None,
    json: Json = False,
    plot: Annotated[
        str | None, typer.Option(help="Draw it into this PNG (needs matplotlib).")
    ] = None,
) -> None:
    """Run a scenario on virtual time: the daemon's own rules, beside other routers.

    The same seed gives the same trace hash. For `kind = "layout"` the routers stand for who moves;
    `strangers` has peers lie in every way below, prints who was shunned when and what stayed wrong,
    and ends with 1 where a rule did not hold.

    \b
    Example:
      potluck simulate even --router ours,swarm,po3 --load 0.5,0.8,0.9 --seed 1..3 --plot out.png
      potluck simulate my.toml --peers 1000 --json
      potluck simulate strangers
    """
    from .simulation import run_simulation

    run_simulation(scenario, peers, router, load, seed, json=json, plot=plot)
