"""Bar 1 of issue H, its second half: no 5xx from a property-based run against the document.

python -m integration.api_schema --cases 2000 --seed 1
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # its helpers, as pytest has them

from api_schema import ask_everything


def measure(cases: int, seed: int = 1) -> tuple[int, int]:
    """How many were asked, and how many of them were answered with 5xx; prints what of what."""
    with tempfile.TemporaryDirectory() as home:
        found = ask_everything(Path(home), cases, seed=seed)
    for name, count in sorted(found.items()):
        print(f"{count:6} {name}")
    failed = sum(count for name, count in found.items() if name.rpartition(" ")[2][0] == "5")
    return found.total(), failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began_s = time.monotonic()
    total, failed = measure(given.cases, given.seed)
    print(f"{total} cases, {failed} of them 5xx, {time.monotonic() - began_s:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
