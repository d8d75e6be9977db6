"""How long a pass takes, and what is announced: learnt from what was served, forgotten in time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.swarm.rates import PASS_S, PREFILL_ROWS, PassTimes, pass_seconds


def linear(rows: int) -> float:
    """A device that reads its weights in 10 ms and takes 0.5 ms for each row."""
    return 0.010 + rows * 0.0005


def learnt() -> PassTimes:
    times = PassTimes(4, decode_tokens_s=4 / 0.05, prefill_tokens_s=4 * 128 / 0.2)
    for now in range(200):
        for power in range(9):
            times.observe(1 << power, linear(1 << power), float(now))
    return times


def test_the_first_guess_is_what_was_measured_at_the_start() -> None:
    times = PassTimes(4, decode_tokens_s=80.0, prefill_tokens_s=2560.0)
    assert times.seconds(1) == pytest.approx(0.05)
    assert times.seconds(128) == pytest.approx(0.2)
    assert 0.05 < times.seconds(64) < 0.2
    assert times.seconds(256) == pytest.approx(0.4)
    assert times.announced(0.0) == (80.0, 2560.0)


@given(st.integers(1, 256))
def test_what_was_observed_is_predicted(rows: int) -> None:
    assert learnt().seconds(rows) == pytest.approx(linear(rows), rel=0.01)


@given(
    st.lists(st.tuples(st.integers(1, 2000), st.floats(1e-4, 10)), max_size=50),
    st.floats(1e-4, 20),
)
def test_more_rows_are_never_faster_and_the_budget_is_the_most_that_fits(
    seen: list[tuple[int, float]], within_s: float
) -> None:
    times = PassTimes(4, 80.0, 2560.0)
    for now, (rows, seconds) in enumerate(seen):
        times.observe(rows, seconds, float(now))
    predicted = [times.seconds(rows) for rows in range(1, 300)]
    assert predicted == sorted(predicted)
    rows = times.rows_within(within_s)
    assert rows == 1 or times.seconds(rows) <= within_s
    assert rows == 4096 or times.seconds(rows + 1) > within_s


def test_the_announced_rates_follow_what_is_served_and_come_back() -> None:
    times = PassTimes(4, decode_tokens_s=80.0, prefill_tokens_s=2560.0)
    for now in range(60):
        times.observe(1, 0.2, float(now))  # four times as slow as at the start
    decode, prefill = times.announced(60.0)
    assert decode == pytest.approx(20.0, rel=0.05)
    assert prefill == 2560.0
    assert 45 < times.announced(59.0 + 300.0)[0] < 55
    assert times.announced(1e6)[0] == pytest.approx(80.0)


def test_an_announced_rate_has_a_floor() -> None:
    times = PassTimes(4, decode_tokens_s=80.0, prefill_tokens_s=2560.0)
    for now in range(100):
        times.observe(1, 100.0, float(now))
        times.observe(PREFILL_ROWS, 1000.0, float(now))
    assert times.announced(100.0) == (8.0, 256.0)


@given(st.integers(0, 64))
def test_two_passes_with_a_prompt_take_less_than_thrice_one_without(urgent: int) -> None:
    times = learnt()
    with_prompts = pass_seconds(times, urgent, decoding=True)
    assert 2 * with_prompts < 3 * times.seconds(max(1, urgent))
    assert with_prompts > times.seconds(max(1, urgent))
    assert pass_seconds(times, 0, decoding=False) == PASS_S
