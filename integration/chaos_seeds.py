"""Chaos by many seeds (issue D, bar 6): `python -m integration.chaos_seeds --seeds 20 --minutes 2`.

Eight nodes, each block four times; one testnet lives through all seeds, so that what a run leaves
behind shows in the next. As root each node has a network of its own, and is cut off at times too.
With --auto the nodes choose their blocks, two of eight each, in epochs of five seconds, and a block
may be left without any node for some seconds: else nobody has a reason to move.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from potluck.cli.main import main as potluck
from potluck.node.testnet.chaos import quantile
from potluck.node.testnet.islands import why_not
from potluck.node.testnet.launcher import take_down

NODES, REPLICAS = 8, 4
# half of a cache is one client's, and the readers are one: 8,192 positions, for all 8 of 900 each
AUTO = ("--auto", "--epoch-s", "5", "--max-memory", "10", "--cache-mib", "8")
LONG_S = 2.0  # what took longer is told fault by fault


def measure(
    seeds: int = 20, minutes: float = 2.0, first: int = 1, *kinds: str,
    isolated: bool | None = None, auto: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Run them; figures as in the bar. isolated: by default, where it can be had."""
    isolated = why_not() is None if isolated is None else isolated
    with tempfile.TemporaryDirectory(prefix="potluck-chaos-") as folder:
        home = ["--home", folder]
        up = ["testnet", "up", "--nodes", str(NODES), "--replicas", str(REPLICAS), *home]
        up += AUTO if auto else ()
        how = (*kinds, *(["--uncover"] if auto else []))
        try:
            if code := potluck([*up, *(["--isolated"] if isolated else [])]):
                raise RuntimeError(f"no testnet: exit code {code}")
            runs = []
            for seed in range(first, first + seeds):
                runs.append(_one(seed, minutes, how, home))
                print(_row(runs[-1]), flush=True)
        finally:
            take_down(Path(folder), grace_s=0)
    return _summary(runs)


def _one(seed: int, minutes: float, kinds: tuple[str, ...], home: list[str]) -> dict[str, Any]:
    said = io.StringIO()
    words = ["testnet", "chaos", "--seed", str(seed), "--minutes", str(minutes), *kinds, *home]
    with contextlib.redirect_stdout(said):
        code = potluck([*words, "--json"])
    if not said.getvalue():
        raise RuntimeError(f"seed {seed} ended with {code} and said nothing")
    found: dict[str, Any] = json.loads(said.getvalue())
    return found | {"load": round(os.getloadavg()[0], 1)}


def _row(run: dict[str, Any]) -> str:
    names = ("faults", "sessions", "finished", "hops_lost", "stall_s_p50", "stall_s_p95")
    names += ("stall_s_max", "covered_s_p95", "covered_s_max", "load")
    told = "  ".join(f"{name} {run[name]}" for name in names)
    if run["moves_after"] is not None:
        told += f"  moves {run['moves']}, after the last fault {run['moves_after']}"
    failed = "".join(f"\n    BROKEN: {failure}" for failure in run["failures"])
    for made in run["made"]:
        worst_s = max(made["covered_s"] or 0.0, *made["stalls_s"], 0.0)
        if worst_s > LONG_S:
            failed += f"\n    {worst_s:.1f} s: {made}"
    return f"seed {run['seed']}: {'holds' if run['holds'] else 'BROKEN'}  {told}{failed}"


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    covered = [made["covered_s"] for run in runs for made in run["made"] if made["covered_s"]]
    kinds = sorted({made["kind"] for run in runs for made in run["made"]})
    found: dict[str, Any] = {
        "holds": all(run["holds"] for run in runs),
        "seeds": [run["seed"] for run in runs],
        "broken": {run["seed"]: run["failures"] for run in runs if run["failures"]},
        "faults": sum(run["faults"] for run in runs),
        "sessions": sum(run["sessions"] for run in runs),
        "finished": sum(run["finished"] for run in runs),
        "tokens": sum(run["tokens"] for run in runs),
        "hops_lost": sum(run["hops_lost"] for run in runs),
        "moves": sum(run["moves"] for run in runs),
        "moves_after": [run["moves_after"] for run in runs],
        "covered_s_p50": quantile(covered, 0.5),
        "covered_s_p95": quantile(covered, 0.95),
        "covered_s_max": max(covered, default=None),
        "directory_bare_s_max": max(run["directory_bare_s"] for run in runs),
        "load": [run["load"] for run in runs],
    }
    for kind in kinds:
        made = [one for run in runs for one in run["made"] if one["kind"] == kind]
        stalls = [stall_s for one in made for stall_s in one["stalls_s"]]
        found[kind] = {
            "faults": len(made),
            "sessions_hit": len(stalls),
            "stall_s_p50": quantile(stalls, 0.5),
            "stall_s_p95": quantile(stalls, 0.95),
            "stall_s_max": max(stalls, default=None),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--auto", action="store_true", help="nodes choose their blocks")
    parser.add_argument("kinds", nargs="*", help="kill, stall, ...: these alone")
    asked = parser.parse_args()
    kinds = [f"--{kind}" for kind in asked.kinds]
    found = measure(asked.seeds, asked.minutes, asked.first, *kinds, auto=asked.auto)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
