"""What a scenario of kind "strangers" came to, as a table: one line for each lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..swarm.sim.dice import DiceOf
from ..swarm.sim.scenario import Scenario
from ..swarm.sim.strangers import Report, Row, run_strangers
from .edge import DONE, FAILED
from .options import note, print_json, say
from .tables import print_table


def play(plan: Scenario, seeds: Sequence[int], dice_of: Any, *, json: bool) -> int:
    """dice_of: the dice of a seed. The exit code: FAILED where a rule did not hold."""
    reports: list[tuple[int, Report]] = []
    for seed in seeds:
        dice: DiceOf = dice_of(seed)
        reports.append((seed, run_strangers(plan, dice, lambda act: note(f"playing {act}"))))
        if not json:
            show(seed, reports[-1][1])
    if json:
        told = [{"seed": seed, "holds": one.holds} | asdict(one) for seed, one in reports]
        print_json({"scenario": plan.name, "runs": told})
    return DONE if all(one.holds for _, one in reports) else FAILED


def show(seed: int, report: Report) -> None:
    print_table(
        ("LIE", "PEERS>", "SHUNNED>", "FIRST>", "LAST>", "BY", "WHAT CAME OF IT"),
        [_line(row) for row in report.rows],
    )
    say(
        f"\n  {report.liars} of {report.liars + report.honest} peers lie; honest peers banned: "
        f"{report.honest_banned}."
    )
    if report.chunks:
        say(
            f"  {report.chunks} chunks, {report.audits} audits ({report.canaries} by a known "
            f"answer); {report.wrong} stayed wrong: {report.wrong_first:.1%} in the first tenth of "
            f"the time, {report.wrong_last:.1%} in its second half."
        )
    say(f"  seed {seed}, trace {report.trace[:12]}")
    for row in report.rows:
        if not row.holds:
            say(f"  NOT HELD: {row.lie}: {row.found}")


def _line(row: Row) -> tuple[str, ...]:
    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.0f} s"

    shunned = "-" if row.shunned is None else f"{row.shunned:.0%}"
    return (
        row.lie, str(row.liars), shunned, seconds(row.first_s), seconds(row.last_s),
        row.grounds or "-", row.found,
    )  # fmt: skip
