"""Sixty-four hosts on this machine: how fast, how fresh, how idle; and after 30 % were killed.

    python -m integration.dht_scale

The measuring is `potluck bench dht` (node/bench/directory.py); a swarm of twelve is the quick
version.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import trio

from potluck.node.bench.directory import bench_dht

SMALL: dict[str, Any] = {
    "seats": (4, 4, 3), "killed": 1, "reads": 30, "settle_s": 0.5, "idle_s": 1.0, "after_s": 2.0,
}  # fmt: skip


def measure(*, small: bool = False) -> dict[str, Any]:
    """One run; about four minutes with all 64."""
    return dict(trio.run(partial(bench_dht, **SMALL) if small else bench_dht))


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
