"""Ten thousand peers, 30 % of them flooding liars: what honest views and samples hold.

The simulator's own views (swarm/sim/views.py, which has the stories). Without walks (`--walk 0`)
10,000 peers are captured.

    python -m integration.sampling_sim                       both, some minutes
    python -m integration.sampling_sim --story crowd --peers 3000 --slots 100
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

import numpy as np

from potluck.swarm.sim.views import LIARS, WALK, WIDE, Flood

PEERS, SLOTS, ROUNDS = 10_000, 160, 100


def measure(
    story: str, peers: int, slots: int, rounds: int, *,
    seed: int, wide: int = WIDE, walk: int = WALK, faster: float = 1.0,
) -> dict[str, Any]:  # fmt: skip
    began_s = time.process_time()
    swarm = Flood(story, peers, slots, np.random.default_rng(seed), wide, walk, faster)
    told: dict[str, Any] = {
        "story": story, "peers": peers, "liars": swarm.liars, "slots": slots, "wide": wide,
        "walk": walk, "seed": seed, "resets_a_round": round(swarm.rate, 3),
        "liars_share_of_views": {},
    }  # fmt: skip
    for number in range(1, rounds + 1):
        swarm.round(number)
        if number in (1, 2, 5) or number % 10 == 0:
            shares = swarm.shares()
            told["liars_share_of_views"][number] = {
                "mean": round(float(shares.mean()), 4), "largest": round(float(shares.max()), 4),
                "isolated": int((shares == 1).sum()),
            }  # fmt: skip
            now = told["liars_share_of_views"][number]
            print(f"{story}, round {number}: {now}", file=sys.stderr, flush=True)
    total = int(swarm.samples.sum())
    told["samples"] = total
    told["liars_share_of_samples"] = (
        round(int(swarm.samples[: swarm.liars].sum()) / total, 5) if total else None
    )
    return told | {
        "processor_s": round(time.process_time() - began_s, 1),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--story", choices=sorted(LIARS))
    parser.add_argument("--peers", type=int, default=PEERS)
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--wide", type=int, default=WIDE)
    parser.add_argument("--walk", type=int, default=WALK)
    parser.add_argument("--faster", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    for story in [asked.story] if asked.story else ["spread", "crowd"]:
        told = measure(
            story, asked.peers, asked.slots, asked.rounds,
            seed=asked.seed, wide=asked.wide, walk=asked.walk, faster=asked.faster,
        )  # fmt: skip
        print(json.dumps(told, indent=2), flush=True)


if __name__ == "__main__":
    main()
