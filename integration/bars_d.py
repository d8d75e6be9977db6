"""The bars of D, routing and churn: how each is measured, and when it holds.

Those of simulations (1 to 4) are `potluck simulate`'s own runs; 5 to 7 are real daemons, 8 a real
lane in virtual time.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import trio

from .row import Row

ROOT = Path(__file__).parent.parent
LIARS_SEEDS = (1, 2)
ROUTING_SEEDS = (1, 2, 3)
LAYOUT_SEEDS = tuple(range(1, 11))
LOADS = (0.8, 0.9)
AUTO_SEEDS = 5
PROPERTIES = ("routing", "placement", "placing")


def scenario(name: str, **load: Any) -> Any:
    """A scenario that is shipped, with some of its load changed."""
    from potluck.swarm.sim.scenario import parse_scenario

    file = resources.files("potluck.swarm.sim").joinpath("scenarios", f"{name}.toml")
    plan = parse_scenario(file.read_text("utf-8"), f"{name}.toml")
    return replace(plan, load=replace(plan.load, **load))


def dice_of(seed: int) -> Callable[[str], Random]:
    """Those that `potluck simulate` throws."""
    return lambda purpose: Random(f"{seed}/{purpose}")


def simulated(plan: Any, router: str, seeds: Sequence[int]) -> list[Any]:
    """Outcomes, a seed each."""
    from potluck.swarm.sim.run import Simulation

    return [Simulation(plan, router, dice_of(seed)).run() for seed in seeds]


def d1_scale() -> Iterator[Row]:
    from potluck.swarm.sim.run import Simulation

    plan = scenario("scale")
    began_s = time.process_time()
    run = Simulation(plan, "ours", dice_of(1))
    ours = run.run()
    times = run.ended_s / (time.process_time() - began_s)
    (greedy,) = simulated(plan, "greedy", (1,))
    command = "potluck simulate scale --router ours,greedy"
    ratio = ours.latency_s(0.95) / greedy.latency_s(0.95)
    yield Row(
        "D1",
        f"{plan.peers.count:,} peers, load 0.8: at least 0.95 answered within their deadline",
        f"{ours.goodput():.4f} of {ours.offered:,}",
        ours.goodput() >= 0.95,
        command,
    )
    yield Row(
        "D1",
        "p95 at most 1.2 times the oracle's (greedy)",
        f"{ratio:.3f} times ({ours.latency_s(0.95):.1f} s)",
        ratio <= 1.2,
        command,
    )
    yield Row(
        "D1",
        "control traffic at most 50 kbit/s a peer",
        f"{ours.control_kbit_s:.1f} kbit/s",
        ours.control_kbit_s <= 50,
        command,
    )
    yield Row(
        "D1",
        "at least 20 times faster than real time on one core",
        f"{times:.1f} times, by processor time",
        times >= 20,
        command,
    )


def d2_layouts() -> Iterator[Row]:
    """spot: peers of two stages; stages: of one each, which is hard for everybody."""
    from potluck.swarm.sim.report import summary

    for name in ("spot", "stages"):
        plan, names = scenario(name), ("ours", "petals", "swarm")
        command = f"potluck simulate {name} --router {','.join(names)} --seed 1..10"
        found = {router: summary(simulated(plan, router, LAYOUT_SEEDS)) for router in names}
        ours = found["ours"]
        told = ", ".join(f"{router} {one['flow_best']}" for router, one in found.items())
        yield Row(
            "D2",
            f"{name}: flow of the layout at least 0.958 of one made anew (SWARM's figure)",
            f"{told}; {len(LAYOUT_SEEDS)} seeds, 95 %",
            ours["flow_best"].mean >= 0.958,
            command,
        )
        yield Row(
            "D2",
            f"{name}: at most 0.3 moves a peer and hour",
            str(ours["moves_h"]),
            ours["moves_h"].mean <= 0.3,
            command,
        )


def d3_routers() -> Iterator[Row]:
    from potluck.swarm.sim.report import ratio

    for load in LOADS:
        plan = scenario("even", share=load)
        names = ("ours", "swarm", "po3", "petals")
        found = {router: simulated(plan, router, ROUTING_SEEDS) for router in names}
        for what in ("p50_s", "p95_s"):
            times = {name: ratio(found[name], found["ours"], what) for name in names[1:]}
            yield Row(
                "D3",
                f"load {load}, {what[:3]}: SWARM's wiring takes 1.5 times ours, power of three 1",
                ", ".join(f"{name} {one}" for name, one in times.items())
                + f" times; {len(ROUTING_SEEDS)} seeds",
                times["swarm"].mean >= 1.5 and times["po3"].mean >= 1,
                f"potluck simulate even --router {','.join(names)} --load {load} --seed 1..3",
            )


def d4_liars() -> Iterator[Row]:
    """The shipped scenario, with its liars and with the same peers telling the truth."""
    lying = scenario("liars")
    honest = replace(lying, liars=replace(lying.liars, share=0.0))
    before, after = (
        fmean(one.goodput() for one in simulated(plan, "ours", LIARS_SEEDS))
        for plan in (honest, lying)
    )
    yield Row(
        "D4",
        "20 % of peers lying about rate and load lower goodput by less than 5 %",
        f"{before:.3f} to {after:.3f}, {1 - after / before:.1%} less; {len(LIARS_SEEDS)} seeds",
        after > 0.95 * before,
        "potluck simulate liars --router ours",
    )


def d5_calibration() -> Iterator[Row]:
    from .calibration import AGREE_WITHIN, measure

    found = measure(nodes=16, replicas=4, seconds=120.0, share=0.5, seed=1)
    for name in ("p50_s", "goodput"):
        yield Row(
            "D5",
            f"16 daemons and their simulated twin: {name} within {AGREE_WITHIN:.0%}",
            f"{found['testnet'][name]} and {found['twin'][name]}, {found['apart'][name]:.1%} "
            f"apart, {found['requests']} requests",
            found["apart"][name] <= AGREE_WITHIN,
            "python -m integration.calibration",
        )


def d6_chaos() -> Iterator[Row]:
    from potluck.node.testnet.chaos import REST_EPOCHS

    from .chaos_seeds import measure

    found = measure()
    command = "python -m integration.chaos_seeds"
    yield Row(
        "D6",
        "chaos, 20 seeds of 2 minutes: each session ends with the undisturbed text",
        f"{found['finished']} of {found['sessions']} sessions, {found['faults']} faults, broken: "
        f"{found['broken'] or 'none'}",
        found["holds"] and found["finished"] == found["sessions"],
        command,
    )
    yield Row(
        "D6",
        "blocks are covered again within 5 s (p95)",
        f"p95 {found['covered_s_p95']} s, longest {found['covered_s_max']} s",
        found["covered_s_p95"] is not None and found["covered_s_p95"] <= 5,
        command,
    )
    kinds = ("kill", "leave", "join")  # whatever changes who is there
    found = measure(AUTO_SEEDS, 2.0, 1, *(f"--{kind}" for kind in kinds), auto=True)
    late = sum(sum(after[REST_EPOCHS:]) for after in found["moves_after"])
    yield Row(
        "D6",
        f"where nodes choose their blocks and some are left bare, moves end within {REST_EPOCHS} "
        "epochs of the last fault",
        f"{late} of {found['moves']} moves were later, {AUTO_SEEDS} seeds; broken: "
        f"{found['broken'] or 'none'}",
        found["holds"] and found["moves"] > 0 and not late,
        f"{command} --auto --seeds {AUTO_SEEDS} {' '.join(kinds)}",
    )


def d7_drain() -> Iterator[Row]:
    from .test_drain import DELAY_MAX_S, SESSIONS, measure

    with tempfile.TemporaryDirectory(prefix="potluck-drain-") as folder:
        found = trio.run(measure, Path(folder))
    yield Row(
        "D7",
        "a peer with 20 live sessions drains: no token later than 1 s, none computed again",
        f"{found['moved']} moved, {found['hops_lost']} hops lost, {found['different']} texts "
        f"differ; longest wait {found['delay_max_s']} s (calm {found['calm_delay_max_s']} s)",
        found["on_the_leaving_peer"] == SESSIONS
        and not found["hops_lost"]
        and not found["different"]
        and found["delay_max_s"] <= DELAY_MAX_S,
        "python -m integration.test_drain",
    )


@cache
def fairness() -> dict[str, Any]:
    """Measured once, for D8 and E7."""
    from .fairness import measure

    return measure()


def d8_fairness() -> Iterator[Row]:
    found = fairness()
    command = "python -m integration.fairness"
    least = min(one["greedy_over_fair_min"] for one in found["shares"])
    most = max(one["greedy_over_fair_max"] for one in found["shares"])
    yield Row(
        "D8",
        "ten times another's load gets within 10 % of its fair share in any 60 s",
        f"{least:.2f} to {most:.2f} of it, {len(found['shares'])} runs",
        least >= 0.9 and most <= 1.1,
        command,
    )
    ratio = max(one["p95_over_median"] for one in found["newcomers"])
    yield Row(
        "D8",
        "a newcomer's p95 to the first token at 90 % load below 3 times the median",
        f"{ratio:.2f} times, the worst of {len(found['newcomers'])} runs",
        ratio < 3,
        command,
    )


def d9_rules() -> Iterator[Row]:
    """Against brute force, and by the import contracts."""
    tools = Path(sys.executable).parent
    tests = [f"tests/test_{name}.py" for name in PROPERTIES]
    for goal, words in (
        ("routing and placement equal brute force's", ["pytest", *tests]),
        ("swarm/ imports neither trio, torch, sockets, time nor random", ["lint-imports"]),
    ):
        done = subprocess.run(
            [tools / words[0], *words[1:]], cwd=ROOT, capture_output=True, text=True
        )
        said = [line for line in done.stdout.splitlines() if line.strip()]
        yield Row("D9", goal, said[-1] if said else "nothing", not done.returncode, " ".join(words))


BARS: dict[str, Callable[[], Iterator[Row]]] = {
    "D1": d1_scale,
    "D2": d2_layouts,
    "D3": d3_routers,
    "D4": d4_liars,
    "D5": d5_calibration,
    "D6": d6_chaos,
    "D7": d7_drain,
    "D8": d8_fairness,
    "D9": d9_rules,
}
