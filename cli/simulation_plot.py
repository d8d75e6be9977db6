"""`potluck simulate --plot`: one picture of several routers, with matplotlib.

requests at one load         who was answered by when, as a distribution
requests at several loads    p50 and p95 over the load, with 95 % intervals
layouts                      the flow, of the best layout of the same peers, as bars
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import UserError
from ..swarm.sim.report import Cell, Estimate, summary

PANELS = {"p50_s": "half are answered within", "p95_s": "19 of 20 are answered within"}
MARKERS = "os^Dvx"
HEADROOM = 1.6  # above the deadline; whatever is slower is drawn at the upper edge


def pyplot() -> Any:
    try:
        import matplotlib
        import matplotlib.pyplot
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    return matplotlib.pyplot


def draw(cells: Sequence[Cell], path: str) -> None:
    plan = cells[0].plan
    panels = 2 if plan.kind == "requests" and _loads(cells) > 1 else 1
    figure, axes = pyplot().subplots(
        1, panels, figsize=(5.5 + 3.5 * panels, 5), layout="constrained", squeeze=False
    )
    if plan.kind == "layout":
        _bars(axes[0][0], cells)
    elif panels == 1:
        _distribution(axes[0][0], cells)
    else:
        for one, name in zip(axes[0], PANELS, strict=True):
            _curves(one, cells, name)
    runs = len(cells[0].outcomes)
    seeds = "1 run" if runs == 1 else f"{runs} runs"
    figure.suptitle(f"{plan.name}: {plan.peers.count} peers, {seeds} of each router")
    for one in axes[0]:
        one.grid(alpha=0.3)
    save(figure, path, legend_of=axes[0][0] if plan.kind == "requests" else None)


def save(figure: Any, path: str, *, legend_of: Any = None) -> None:
    """Write it, with one panel's legend below all. Raises UserError where it cannot be written."""
    if legend_of is not None:
        handles, labels = legend_of.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {error}") from None


def _loads(cells: Sequence[Cell]) -> int:
    return len({cell.plan.load.share for cell in cells})


def _distribution(axes: Any, cells: Sequence[Cell]) -> None:
    load = cells[0].plan.load
    for cell in cells:
        seen = sorted(s for outcome in cell.outcomes for s in outcome.latencies_s)
        offered = sum(outcome.offered for outcome in cell.outcomes)
        shares = [(i + 1) / offered for i in range(len(seen))]
        axes.plot(seen, shares, label=cell.router, linewidth=2)
    axes.axvline(load.deadline_s, color="grey", linestyle=":", label="deadline")
    most = load.deadline_s if load.deadline_token_s == 0 else _slowest(cells)
    axes.set(
        xlabel="seconds until the answer", ylabel="share of all requests",
        xlim=(0, HEADROOM * most), ylim=(0, 1.02),
    )  # fmt: skip


def _slowest(cells: Sequence[Cell]) -> float:
    found = [outcome.latency_s(0.95) for cell in cells for outcome in cell.outcomes]
    return max((s for s in found if math.isfinite(s)), default=cells[0].plan.load.deadline_s)


def _curves(axes: Any, cells: Sequence[Cell], name: str) -> None:
    top = HEADROOM * cells[0].plan.load.deadline_s
    beyond = False
    for i, router in enumerate(dict.fromkeys(cell.router for cell in cells)):
        points = sorted(
            (cell.plan.load.share, summary(cell.outcomes)[name])
            for cell in cells
            if cell.router == router
        )
        loads = [load for load, _ in points]
        line = axes.errorbar(
            loads, [min(found.mean, top) for _, found in points],
            yerr=[_half(found, top) for _, found in points],
            label=router, marker=MARKERS[i % len(MARKERS)], linewidth=2, capsize=4,
        )  # fmt: skip
        slow = [load for load, found in points if found.mean > top]
        if slow:
            axes.plot(
                slow, [0.97 * top] * len(slow), linestyle="", marker="^", markersize=12,
                color=line[0].get_color(),
            )  # fmt: skip
        beyond = beyond or bool(slow)
    deadline_s = cells[0].plan.load.deadline_s
    axes.axhline(deadline_s, color="grey", linestyle=":", label="deadline")
    axes.set(
        xlabel="load, of the linear programme's optimum", ylabel="seconds", ylim=(0, top),
        title=PANELS[name] + (f" (▲: more than {top:g} s, or never)" if beyond else ""),
    )  # fmt: skip


def _half(found: Estimate, top: float) -> float:
    return 0.0 if math.isnan(found.half) or found.mean > top else found.half


def _bars(axes: Any, cells: Sequence[Cell]) -> None:
    found = [summary(cell.outcomes)["flow_best"] for cell in cells]
    names = [cell.router for cell in cells]
    bars = axes.bar(names, [one.mean for one in found], yerr=[_half(one, 2.0) for one in found],
                    capsize=4, width=0.6)  # fmt: skip
    axes.bar_label(bars, labels=[str(one) for one in found], padding=6)
    axes.set(ylabel="flow, of the best layout of the same peers", ylim=(0, 1.12))
