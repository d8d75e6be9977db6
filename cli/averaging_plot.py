"""`potluck bench average --plot`: a panel for each share of liars and deal of the text.

Across: attacks. Up: how much worse than the clean run the worst honest peer came out, in percent;
what is no worse is drawn at the lower edge, what is beyond the upper edge at that.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from ..errors import UserError
from ..node.bench.averages import DEALS
from ..node.compute.average.lab import NONE, Found
from .simulation_plot import pyplot, save

PERCENT_LEAST, PERCENT_MOST = 0.1, 100.0
MARKERS = "os^Dvx*P"


def draw(found: Sequence[Found], path: str) -> None:
    """Raises UserError where nothing can be drawn, or the file cannot be written."""
    shares = sorted({one.trial.share for one in found if one.trial.attack != NONE})
    deals = [name for name, spread in DEALS.items() if _of(found, spread)]
    attacks = list(dict.fromkeys(one.trial.attack for one in found if one.trial.attack != NONE))
    rules = list(dict.fromkeys(one.trial.rule for one in found))
    if not attacks:
        raise UserError("nothing to draw: no trial had liars")
    figure, axes = pyplot().subplots(
        len(deals),
        len(shares),
        figsize=(3 + 0.35 * len(attacks) * len(shares), 1 + 3.5 * len(deals)),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for (row, deal), (column, share) in product(enumerate(deals), enumerate(shares)):
        panel = axes[row][column]
        for marker, rule in zip(MARKERS, rules, strict=False):
            points = {
                one.trial.attack: min(max(100 * (one.ratio - 1), PERCENT_LEAST), PERCENT_MOST)
                for one in _of(found, DEALS[deal])
                if one.trial.rule == rule and one.trial.share == share
            }
            places = [attacks.index(name) for name in points]
            panel.plot(places, list(points.values()), marker, label=rule, alpha=0.8)
        panel.axhline(1.0, color="grey", linestyle=":")
        panel.axhline(2.0, color="grey", linestyle="--")
        panel.set(
            yscale="log",
            ylim=(0.8 * PERCENT_LEAST, 1.25 * PERCENT_MOST),
            title=f"{share:.0%} liars, {deal} text",
        )
        panel.set_xticks(range(len(attacks)), attacks, rotation=60, ha="right")
        panel.grid(alpha=0.3)
    axes[0][0].set_ylabel("% above the clean run")
    save(figure, path, legend_of=axes[0][0])


def _of(found: Sequence[Found], spread: float | None) -> list[Found]:
    return [one for one in found if one.trial.spread == spread]
