"""What the draw of audits (swarm/audit.py) costs and finds, in numbers: by its own functions.

    python -m integration.audit_law

Sessions of so many chunks. `computed` is the share of a peer's tokens that is computed again, drawn
chunk by chunk and session by session with the daemon's own lots. A liar that cheats in each chunk
with a chance of its own, or from one chunk of a session on, is found by a pass that reaches one of
them: so many false chunks and false answers has it given until then, the session in which it is
found counted whole.

Of liars that were caught in a trial `interval_95` says what their mean tells of the law. Times
until a catch that comes with the same chance each time are as good as exponential, so that twice
their sum over their mean is chi-square, with two degrees of freedom for each. As of a normal law,
with the deviation of the trial itself, an interval of 30 misses in 7 trials of 100, and nearly
always by being too low: where all happened to be caught soon their deviation is small, too
(test_audit_law.py).

Beside it stand what was tried before and what is the least. A pass computes all from the beginning,
so that a rule under which no liar gives more than V false chunks must reach the last k chunks of a
session with the chance k / V: it computes (chunks + 1) / 2 V of all tokens. `least` is that V for
the same cost.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from functools import partial
from statistics import NormalDist
from typing import Any

from potluck.swarm.audit import AuditConfig, Lots, Signed, draw, draw_whole, look_chance
from potluck.swarm.receipt import CHUNK_TOKENS

LENGTHS = (1, 4, 8, 32, 128)  # chunks of a session
CHUNKS = 400_000  # drawn


def depths(chunks: int, rate: float, config: AuditConfig) -> list[float]:
    """With which probability a session's deepest pass reaches k chunks, for k = 0 .. chunks."""
    missed, found = 1.0, [0.0] * (chunks + 1)
    for depth in range(chunks, 0, -1):
        chance = look_chance(rate, CHUNK_TOKENS, depth * CHUNK_TOKENS, config)
        if depth == chunks and rate < 1:
            chance = 1 - (1 - chance) * (1 - rate * config.whole_share)
        found[depth] = missed * chance
        missed *= 1 - chance
    found[0] = missed
    return found


def until_caught(
    chunks: int, rate: float, config: AuditConfig, false: Callable[[int], float], seen: float = 1.0
) -> tuple[float, float]:
    """(false chunks, false answers) until it is found, on average. false: the chance that it cheats
    in a chunk, by its number from 1 on; seen: that a comparison shows it."""
    hidden, right, caught = 1.0, 1.0, 0.0
    reached = depths(chunks, rate, config)
    for depth in range(1, chunks + 1):
        hidden *= 1 - seen * false(depth)
        right *= 1 - false(depth)
        caught += reached[depth] * (1 - hidden)
    given = sum(false(depth) for depth in range(1, chunks + 1))
    return given / caught, (1 - right) / caught


def interval_95(mean: float, count: int) -> tuple[float, float]:
    """Where the law's mean lies, by the mean of so many that were caught; exact for exponential
    times but for Wilson and Hilferty's chi-square (1931), from ten on right to half a percent."""
    free = 2 * count
    z, spread = NormalDist().inv_cdf(0.975), math.sqrt(2 / (9 * free))
    most, least = (free * (1 - 2 / (9 * free) + side * spread) ** 3 for side in (z, -z))
    return free * mean / most, free * mean / least


def computed(chunks: int, rate: float, config: AuditConfig) -> float:
    """The share of tokens that is computed again, by lots that fall as a client's do."""
    dice = random.Random(1)
    lots, again, sessions = Lots(dice.randbytes(32)), 0, CHUNKS // chunks
    for _ in range(sessions):
        signed = [
            Signed("p", dice.randbytes(32), place, CHUNK_TOKENS, (place + 1) * CHUNK_TOKENS)
            for place in range(chunks)
        ]
        drawn = [one.signed.stop for one in draw(signed, lots, lambda peer: rate, config)]
        done = max(drawn, default=0) == chunks * CHUNK_TOKENS
        if draw_whole(dice.randbytes(32), rate, lots, config) and not done:
            drawn.append(chunks * CHUNK_TOKENS)
        again += sum(drawn)
    return again / (sessions * chunks * CHUNK_TOKENS)


def _from(first: int, at: int) -> float:
    return float(at >= first)


def measure(config: AuditConfig | None = None) -> dict[str, Any]:
    config = config or AuditConfig()
    rate, found = config.floor, {}
    for chunks in LENGTHS:
        begins = {
            first: until_caught(chunks, rate, config, partial(_from, first))
            for first in range(1, chunks + 1)
        }
        found[f"sessions of {chunks} chunks"] = {
            "computed": round(computed(chunks, rate, config), 4),
            "false_chunks_always": round(begins[1][0], 1),
            "false_chunks_a_tenth": round(until_caught(chunks, rate, config, lambda at: 0.1)[0], 1),
            "false_chunks_from_the_worst_on": round(max(one[0] for one in begins.values()), 1),
            "least": round((chunks + 1) / (2 * rate), 1),
            "false_answers_at_most": round(max(one[1] for one in begins.values()), 1),
            "whole_sessions_alone": {
                "false_chunks_always": round(chunks / rate, 1),
                "false_answers_at_most": round(1 / rate, 1),
            },
        }
    return {"floor": rate, "one_chunk_alone": round(1 / rate, 1), **found}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
