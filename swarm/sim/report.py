"""What several runs of one scenario say together: means, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .run import Outcome
from .scenario import Scenario

# Student's t, two-sided 95 %, for 1 .. 30 degrees of freedom; beyond, the normal's 1.96.
T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, and half the width of its 95 % confidence interval (nan from a single run)."""

    mean: float
    half: float

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        digits = 3 if abs(self.mean) < 10 else 1
        if math.isnan(self.half):
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ±{self.half:.{digits}f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Of independent runs, by Student's t."""
    seen = [value for value in values if not math.isnan(value)]
    if not seen:
        return Estimate(math.nan, math.nan)
    mean = sum(seen) / len(seen)
    if len(seen) == 1 or math.isinf(mean):
        return Estimate(mean, math.nan)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in seen) / (len(seen) - 1))
    t = T_95[len(seen) - 2] if len(seen) - 1 <= len(T_95) else 1.96
    return Estimate(mean, t * deviation / math.sqrt(len(seen)))


REQUEST_COLUMNS = (
    "goodput", "done", "p50_s", "p95_s", "hops", "retries", "load", "moves_h", "control_kbit_s",
    "hit",
)  # fmt: skip
LAYOUT_COLUMNS = ("flow_best", "flow_here", "flow", "flow_low", "uncovered", "moves_h", "peers")

MEANINGS = {
    "goodput": "share of requests answered within their deadline",
    "done": "share answered at all",
    "p50_s": "median seconds to an answer, of all; inf where half got none in time",
    "p95_s": "95th percentile",
    "hops": "hops of an answer",
    "retries": "hops done again, of an answer",
    "load": "offered, of the optimum of the instant (LP)",
    "hit": "share of hops that had the prompt already, of requests with a common one",
    "flow": "optimum of the layout (LP), of the bound of all layouts (peers cut at will)",
    "flow_best": "the same, of a layout made anew from the peers of the instant that serve",
    "flow_here": "... from these and those that still load: nobody can reach it",
    "flow_low": "5th percentile in time of flow",
    "uncovered": "share of time in which a block had no peer",
    "moves_h": "moves of one peer in an hour",
    "peers": "mean number that serve",
    "control_kbit_s": "control traffic of one peer, both directions",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """The runs of one router through one scenario, a seed each."""

    router: str
    plan: Scenario
    outcomes: tuple[Outcome, ...]


def measures(outcome: Outcome) -> dict[str, float]:
    """Every number of one run by its name in the table."""
    done = max(outcome.done, 1)
    return {
        "goodput": outcome.goodput(),
        "done": outcome.done / outcome.offered if outcome.offered else math.nan,
        "p50_s": outcome.latency_s(0.5),
        "p95_s": outcome.latency_s(0.95),
        "hops": outcome.hops / done if outcome.done else math.nan,
        "retries": outcome.retries / done if outcome.done else math.nan,
        "load": outcome.load,
        "hit": outcome.hit,
        "flow": outcome.flow,
        "flow_best": outcome.flow_best,
        "flow_here": outcome.flow_here,
        "flow_low": outcome.flow_low,
        "uncovered": outcome.uncovered,
        "moves_h": outcome.moves_per_hour,
        "peers": outcome.peers,
        "control_kbit_s": outcome.control_kbit_s,
    }


def summary(outcomes: Sequence[Outcome]) -> dict[str, Estimate]:
    """Of several seeds of one router."""
    runs = [measures(outcome) for outcome in outcomes]
    return {name: estimate([run[name] for run in runs]) for name in runs[0]}


def ratio(ours: Sequence[Outcome], theirs: Sequence[Outcome], name: str) -> Estimate:
    """How many times theirs ours is, seed by seed; inf where a run had no such number."""
    pairs = zip(ours, theirs, strict=True)
    return estimate([measures(a)[name] / measures(b)[name] for a, b in pairs])
