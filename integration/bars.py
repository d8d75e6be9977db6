"""Every bar that a machine can judge, measured: `make bars`, or `python -m integration.bars`.

Prints a table (bar, goal, measured, holds, command) and writes the same beside it as JSON; ends
with 1 when a bar falls short. `--only A3 A6` runs a few. What is measured is in the modules named
in the command column; each runs alone too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import sys
import time
from dataclasses import asdict
from pathlib import Path

from potluck.node.leash import leash

from . import bars_a, bars_b, bars_c, bars_d, bars_e, bars_f, bars_g, bars_g7, bars_h, weights
from .row import Row

ROOT = Path(__file__).parent.parent
MARK = "POTLUCK_BARS"  # in the environment of whatever is started: it ends with us
LETTERS = (bars_a, bars_b, bars_c, bars_d, bars_e, bars_f, bars_g, bars_g7, bars_h, weights)
BARS = {name: bar for letter in LETTERS for name, bar in letter.BARS.items()}


def run(names: list[str]) -> list[Row]:
    """Measure these bars, printing each as it comes. One that breaks falls short, by its error."""
    rows: list[Row] = []
    for name in names:
        try:
            found = list(BARS[name]())
        except Exception as error:  # one broken bar must not hide the others
            found = [Row(name, BARS[name].__name__, f"broke: {error!r}", False, "")]
        for row in found:
            mark = {True: "holds", False: "FALLS SHORT", None: "unmeasured"}[row.holds]
            print(
                f"{row.bar}  {mark:11}  {row.goal}\n    {row.measured}   [{row.command}]",
                flush=True,
            )
        rows += found
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=sorted(BARS), default=list(BARS))
    parser.add_argument("--json", type=Path, default=ROOT / "bars.json")
    asked = parser.parse_args()
    began = time.strftime("%Y-%m-%d %H:%M")
    value = secrets.token_hex(8)
    with leash(MARK, value):
        os.environ[MARK] = value
        rows = run(asked.only)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()}
    report = {"date": began, "machine": machine, "bars": [asdict(row) for row in rows]}
    asked.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    short = [row for row in rows if row.holds is False]
    held = sum(row.holds is True for row in rows)
    print(f"{held} of {len(rows)} hold; {asked.json} has the same as JSON")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
