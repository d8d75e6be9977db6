"""What `potluck bench average` does: run the trials, show them as they come, draw them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from ..errors import UserError
from ..node.bench.averages import DEALS, bench_averages, told, trials
from ..node.compute.average.aggregator import NAMES
from ..node.compute.average.lab import NONE, SHARES, WAYS, Found
from .averaging_plot import draw
from .simulation_plot import pyplot
from .tables import print_table


def run_averaging(
    rules: str,
    attacks: str,
    shares: str,
    deals: str,
    *,
    full: bool,
    seed: int,
    json: bool,
    keep: Path | None,
    plot: str | None,
) -> None:
    if plot is not None:
        pyplot()  # before an hour of work, not after it
    wanted = (
        trials(NAMES, WAYS, SHARES, list(DEALS), seed=seed)
        if full
        else trials(_names(rules), _names(attacks), _shares(shares), _names(deals), seed=seed)
    )
    found = []
    for one in bench_averages(wanted, keep):
        found.append(one)
        if not json:
            typer.echo(f"{len(found)} of {len(wanted)}: {_line(one)}", err=True)
    if json:
        typer.echo(told(found))
    else:
        _show(found)
    if plot is not None:
        draw(found, plot)


def deal_of(one: Found) -> str:
    return next(name for name, spread in DEALS.items() if spread == one.trial.spread)


def _line(one: Found) -> str:
    trial = one.trial
    under = f"{trial.attack}, {trial.share:.0%} liars" if trial.attack != NONE else "no liars"
    return f"{trial.rule}, {deal_of(one)}, {under}: {one.ratio:.4f} in {one.spent_s:.0f} s"


def _show(found: Sequence[Found]) -> None:
    """A line for each attack, a column for each average: the worst peer's loss over the clean."""
    names = list(dict.fromkeys(one.trial.rule for one in found))
    lines: dict[tuple[str, float, str], dict[str, float]] = {}
    for one in found:
        key = (deal_of(one), one.trial.share, one.trial.attack)
        lines.setdefault(key, {})[one.trial.rule] = one.ratio
    print_table(
        ("TEXT", "LIARS>", "ATTACK", *(f"{name.upper()}>" for name in names)),
        [
            (deal, f"{share:.0%}", attack, *(f"{by[name]:.4f}" for name in names))
            for (deal, share, attack), by in lines.items()
        ],
    )
    typer.echo("the worst honest peer's loss on held-out text, over plain averaging without liars")


def _names(told: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in told.split(",")))


def _shares(told: str) -> list[float]:
    try:
        return [float(share) for share in _names(told)]
    except ValueError:
        raise UserError(f"--shares {told}: give numbers such as 0.1,0.2") from None
