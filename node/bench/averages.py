"""Which averages withstand which liars: the laboratory's table, kept in a file as it grows.

    rules x attacks x shares x deals ─▶ trials ─▶ lab.py ─▶ Found ─▶ FILE.json

A table of hours that is stopped goes on from its file: what stands there is not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..compute.average.aggregator import NAMES
from ..compute.average.lab import NONE, SPREAD, WAYS, Found, Trial, study
from ..compute.average.reading import read_text
from ..home import write_whole

DEALS = {"uneven": SPREAD, "even": None}


def trials(
    rules: Sequence[str],
    attacks: Sequence[str],
    shares: Sequence[float],
    deals: Sequence[str],
    *,
    seed: int = 1,
) -> list[Trial]:
    """Every combination; before each deal's, every rule without liars.

    Raises UserError for a name that is not there, and for a share that is not below one half.
    """
    for told, known, what in (
        (rules, NAMES, "average"),
        (attacks, WAYS, "attack"),
        (deals, DEALS, "deal"),
    ):
        for name in told:
            if name not in known:
                raise UserError(f"no {what} is called {name!r}: there are {', '.join(known)}")
    for share in shares:
        if not 0 < share < 0.5:
            raise UserError(f"a share of {share:g} liars: give one above 0 and below 0.5")
    found = []
    for deal in deals:
        spread = DEALS[deal]
        found += [Trial(rule, spread=spread, seed=seed) for rule in rules]
        found += [
            Trial(rule, attack, share, spread, seed=seed)
            for share, attack, rule in product(shares, attacks, rules)
        ]
    return found


def bench_averages(wanted: Sequence[Trial], kept: Path | None) -> Iterator[Found]:
    """Each trial's, in order; from the file where it stands there, and into it as it comes.

    Raises UserError for a file that is not a table, or cannot be written.
    """
    known = read_found(kept) if kept is not None and kept.exists() else {}
    missing = [trial for trial in wanted if trial not in known]
    if not missing:
        yield from (known[trial] for trial in wanted)
        return
    computed = study(missing, read_text())
    for trial in wanted:
        if trial not in known:
            known[trial] = next(computed)
            if kept is not None:
                write_whole(kept, told(list(known.values())))
        yield known[trial]


def read_found(path: Path) -> dict[Trial, Found]:
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
        found = [Found(**{**row, "trial": Trial(**row["trial"])}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no table of averages: {error}") from None
    return {one.trial: one for one in found}


def told(found: Sequence[Found]) -> str:
    """As JSON."""
    return json.dumps([asdict(one) for one in found], indent=1)


def worst(found: Sequence[Found], rule: str, share: float) -> Found | None:
    """The attack, and the deal, under which this average came out worst."""
    under = [
        one
        for one in found
        if one.trial.rule == rule and one.trial.share == share and one.trial.attack != NONE
    ]
    return max(under, key=lambda one: one.ratio, default=None)
