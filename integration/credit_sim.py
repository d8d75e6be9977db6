"""Bar E7 in simulation: Sybils, splitting, free riders, against the rules' own objects.

    python -m integration.credit_sim [--seeds 10]

The simulator's own device (swarm/sim/shares.py, which has `sybils` and `split`). With the lane, its
batches and its pace: integration/fairness.py.

    riders     a contributor's requests come by chance (512 tokens of prompt: four turns; then 16
               turns more), against ten free riders that ask again at once: its p95 time to first
               token, in times of what it is with nobody else there; riders that stay, and riders
               that take another name in another network for each request
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
from collections import deque
from collections.abc import Iterator
from typing import Any

from potluck.swarm.favour import COMMONS, WINDOW_S, Favour
from potluck.swarm.sim.shares import GIVEN, PASS_S, Device, peer, place, split, sybils

PROMPT_TURNS, DECODE_TURNS = 4, 16
RIDERS = 10


def first_token_s(
    seed: int,
    load: float,
    riders: int,
    hours: float = 0.25,
    *,
    fresh: bool = False,
    commons: float = COMMONS,
    window_s: float = WINDOW_S,
) -> list[float]:
    """A contributor's times to first token. load: of the device, by its own requests. fresh: each
    request of a rider comes under a name, and from a network, never seen before."""
    dice = random.Random(seed)
    mine = peer("contributor")
    favour = Favour(commons, window_s)
    favour.fund({mine: GIVEN})
    favour.place(mine, place(1))
    device = Device(favour)
    names = _names(favour)
    queue: deque[tuple[float, int]] = deque()  # (asked at, turns that were had)
    every_s = PASS_S * (PROMPT_TURNS + DECODE_TURNS) / load
    arrives_s = dice.expovariate(1 / every_s)
    waits: list[float] = []
    asking = False
    for _ in range(riders):
        device.ask(next(names))
    turns_of: dict[str, int] = {}
    while device.now < hours * 3600:
        while arrives_s <= device.now:
            queue.append((arrives_s, 0))
            arrives_s += dice.expovariate(1 / every_s)
        if queue and not asking:
            device.ask(mine)
            asking = True
        whose = device.turn()
        if whose is None:
            device.now = arrives_s  # an idle device begins at once
        elif whose == mine:
            asking = False
            asked_s, had = queue.popleft()
            if had + 1 == PROMPT_TURNS:
                waits.append(device.now - asked_s)
            if had + 1 < PROMPT_TURNS + DECODE_TURNS:
                queue.appendleft((asked_s, had + 1))
        else:
            had = turns_of[whose] = turns_of.get(whose, 0) + 1
            device.ask(next(names) if fresh and had % (PROMPT_TURNS + DECODE_TURNS) == 0 else whose)
    return waits


def _names(favour: Favour) -> Iterator[str]:
    """Of riders, each from a /16 of its own."""
    for number in itertools.count():
        name = f"rider {number}"
        favour.place(name, place(200 + number))
        yield name


def riders(seeds: int, *, fresh: bool = False, **how: float) -> dict[str, Any]:
    found = {}
    for load in (0.3, 0.5, 0.6, 0.7, 0.8):
        alone, among = (
            [
                statistics.quantiles(first_token_s(seed, load, count, fresh=fresh, **how), n=20)[-1]
                for seed in range(seeds)
            ]
            for count in (0, RIDERS)
        )
        ratios = [b / a for a, b in zip(alone, among, strict=True)]
        found[f"load {load}"] = {
            "p95_alone_s": round(statistics.mean(alone), 3),
            "p95_among_riders_s": round(statistics.mean(among), 3),
            "ratio": round(statistics.mean(among) / statistics.mean(alone), 3),
            "worst_seed": round(max(ratios), 3),
        }
    return found


def measure(seeds: int = 10) -> dict[str, Any]:
    return {
        "sybils": sybils(),
        "split": split(),
        "riders": riders(seeds),
        "fresh_riders": riders(seeds, fresh=True),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    print(json.dumps(measure(parser.parse_args().seeds), indent=2))
