"""The law of audits against the draws themselves, and the interval that bar E1 judges it by."""

from __future__ import annotations

import math
import statistics
from random import Random

import pytest
from scipy.stats import chi2

from potluck.swarm.audit import AuditConfig, Lots, Signed, draw, draw_whole
from potluck.swarm.receipt import CHUNK_TOKENS

from .audit_law import interval_95, until_caught

RATE, CHUNKS = 0.05, 4  # as in liars.py
CONFIG = AuditConfig(RATE, canary_share=0.0)


def caught(dice: Random, often: float) -> int:
    """False chunks of one liar until a pass reaches one of them, by a client's own lots."""
    lots, false = Lots(dice.randbytes(32)), 0
    while True:
        cheats = [dice.random() < often for _ in range(CHUNKS)]
        false += sum(cheats)
        reached = 0
        for place in range(CHUNKS):
            name, stop = dice.randbytes(32), CHUNK_TOKENS * (place + 1)
            signed = Signed("p", name, place, CHUNK_TOKENS, stop)
            if draw([signed], lots, lambda peer: RATE, CONFIG):
                reached = place + 1
        if draw_whole(dice.randbytes(32), RATE, lots, CONFIG):
            reached = CHUNKS
        if any(cheats[:reached]):
            return false


@pytest.mark.parametrize("often", [1.0, 0.1])
def test_draws_catch_a_liar_after_as_many_false_chunks_as_the_law_says(often: float) -> None:
    """The mean of 600 deviates by a 25th of itself: four times that is a sixth."""
    dice = Random(1)
    found = statistics.mean(caught(dice, often) for _ in range(600))
    expected, _ = until_caught(CHUNKS, RATE, CONFIG, lambda at: often)
    assert found == pytest.approx(expected, rel=4 / math.sqrt(600))


@pytest.mark.parametrize("count", [10, 30, 100])
def test_the_interval_is_that_of_exponential_times(count: int) -> None:
    low, high = interval_95(10.0, count)
    assert low == pytest.approx(20 * count / chi2.ppf(0.975, 2 * count), rel=0.005)
    assert high == pytest.approx(20 * count / chi2.ppf(0.025, 2 * count), rel=0.005)


def test_the_interval_holds_the_law_in_95_of_100_trials_where_a_normal_one_does_not() -> None:
    """2,000 trials of 30 geometric times, as of one who always lies: a share of .95 deviates by
    .005. The normal interval is held beside it: it misses more often, and by being too low."""
    dice, p = Random(1), 1 / 13.35
    held = normal = too_low = 0
    for _ in range(2000):
        times = [math.ceil(math.log(1 - dice.random()) / math.log(1 - p)) for _ in range(30)]
        mean, half = statistics.mean(times), 1.96 * statistics.stdev(times) / math.sqrt(30)
        low, high = interval_95(mean, 30)
        held += low <= 1 / p <= high
        normal += mean - half <= 1 / p <= mean + half
        too_low += mean + half < 1 / p
    assert held / 2000 > 0.935 > normal / 2000
    assert too_low / 2000 > 0.05
