"""Bar 7 of G, prompts that begin alike: what remembering them and going where they are is worth.

The simulation is `potluck simulate prefix`: routing by load alone, and by the two peers that a
prompt names; servers remember prompts for both. The goodput of a router is the most requests a
second that it has answered within the deadline, over loads of which at least 95 % were in time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from statistics import fmean
from typing import Any

from .bars_d import scenario, simulated
from .row import Row

SEEDS = (1, 2)
IN_TIME = 0.95
LOADS = (0.4, 0.55, 0.7, 0.85, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)  # of the optimum without
PLAIN_LOADS = (0.55, 0.7, 0.85)
TTFT_S = 5.0  # the scenario's deadline


@cache
def _runs(router: str, load: float, prompts: int) -> tuple[Any, ...]:
    plan = scenario("prefix", share=load, prompts=prompts)
    return tuple(simulated(plan, router, SEEDS))


def capacity(router: str, prompts: int, loads: tuple[float, ...] = LOADS) -> tuple[float, float]:
    """The most load that was answered in time, and the hit rate there."""
    best, hit = 0.0, 0.0
    for load in loads:
        runs = _runs(router, load, prompts)
        if (good := fmean(run.goodput() for run in runs)) < IN_TIME:
            break
        best, hit = load * good, fmean(run.hit for run in runs)
    return best, hit


def g7_prefixes() -> Iterator[Row]:
    plan = scenario("prefix")
    command = "potluck simulate prefix --router ours,affine --load 0.4,...,3"
    ours, by_chance = capacity("ours", plan.load.prompts)
    affine, hit = capacity("affine", plan.load.prompts)
    yield Row(
        "G7",
        f"{plan.load.prompt_share:.0%} of requests begin with one of {plan.load.prompts} prompts of"
        f" {plan.load.prompt_tokens:,} tokens: hit rate at least 80 %",
        f"{hit:.1%} (by chance, routing by load alone: {by_chance:.1%})",
        hit >= 0.8,
        command,
    )
    times = affine / ours if ours else float("inf")
    yield Row(
        "G7",
        f"at least 1.5 times the goodput of routing by load alone, {IN_TIME:.0%} of first tokens"
        f" within {TTFT_S:g} s",
        f"{times:.2f} times ({affine:.2f} and {ours:.2f} of the optimum without a cache)",
        times >= 1.5,
        command,
    )
    pairs = [
        (
            load,
            fmean(run.goodput() for run in _runs("affine", load, 0)),
            fmean(run.goodput() for run in _runs("ours", load, 0)),
        )
        for load in PLAIN_LOADS
    ]
    told = ", ".join(f"{one:.3f} and {other:.3f} at {load}" for load, one, other in pairs)
    yield Row(
        "G7",
        "no worse without sharing: what nobody shares goes as load says",
        told,
        all(one >= other - 0.005 for _, one, other in pairs),
        "potluck simulate prefix --router ours,affine, with load.prompts = 0",
    )


BARS: dict[str, Callable[[], Iterator[Row]]] = {"G7": g7_prefixes}
