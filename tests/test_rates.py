"""How long a pass takes, and what is announced: learnt from what was served, forgotten in time."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.swarm.rates import PASS_S, PREFILL_ROWS, Pace, PassTimes


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


@given(st.lists(st.tuples(st.integers(1, 2000), st.floats(1e-4, 10)), max_size=50))
def test_more_rows_are_never_faster(seen: list[tuple[int, float]]) -> None:
    times = PassTimes(4, 80.0, 2560.0)
    for now, (rows, seconds) in enumerate(seen):
        times.observe(rows, seconds, float(now))
    predicted = [times.seconds(rows) for rows in range(1, 300)]
    assert predicted == sorted(predicted)


def test_the_announced_rates_follow_what_is_served_and_come_back() -> None:
    times = PassTimes(4, decode_tokens_s=80.0, prefill_tokens_s=2560.0)
    for now in range(60):
        times.observe(1, 0.2, float(now))  # four times as slow as at the start
    decode, prefill = times.announced(60.0)
    assert decode == pytest.approx(20.0, rel=0.05)
    assert prefill == 2560.0
    assert 45 < times.announced(59.0 + 300.0)[0] < 55
    assert times.announced(1e6)[0] == pytest.approx(80.0)


@given(st.sampled_from([1, 5, 14, 20, 40, 150, 300]), st.floats(0.2, 5.0))
def test_a_device_that_changed_its_pace_announces_it_whatever_the_size_of_its_passes(
    rows: int, slower: float
) -> None:
    """Who fills prompts in slices of 40 rows never sees a pass of 128; who serves many at once
    never sees one of a single token."""
    start = (4 / linear(1), 4 * PREFILL_ROWS / linear(PREFILL_ROWS))
    times = PassTimes(4, *start)
    for now in range(60):
        times.observe(rows, linear(rows) * slower, float(now))
    decode, prefill = times.announced(60.0)
    tells_of_prompts = rows >= 16
    assert decode == pytest.approx(start[0] / (1.0 if tells_of_prompts else slower), rel=0.05)
    assert prefill == pytest.approx(start[1] / (slower if tells_of_prompts else 1.0), rel=0.05)


def test_an_announced_rate_has_a_floor() -> None:
    times = PassTimes(4, decode_tokens_s=80.0, prefill_tokens_s=2560.0)
    for now in range(100):
        times.observe(1, 100.0, float(now))
        times.observe(PREFILL_ROWS, 1000.0, float(now))
    assert times.announced(100.0) == (8.0, 256.0)


def paced(
    pace: Pace, times: PassTimes, urgent: int, passes: int, *, decoding: bool, slower: float = 1.0
) -> list[tuple[int, float]]:
    """Rows and seconds of passes on the linear device, while prompts never end."""
    found = []
    for number in range(passes):
        rows = pace.rows(urgent, decoding=decoding)
        seconds = linear(urgent + rows) * slower
        if not rows:
            times.observe(urgent, seconds, 1e6 + number)
        pace.took(urgent, rows, seconds, decoding=decoding)
        found.append((rows, seconds))
    return found


@given(st.integers(0, 64))
def test_two_passes_with_a_prompt_take_less_than_thrice_one_without(urgent: int) -> None:
    times = learnt()
    found = paced(Pace(times), times, urgent, 100, decoding=True)
    alone_s = times.seconds(max(1, urgent))
    assert all(2 * seconds < 3 * alone_s for rows, seconds in found[20:] if rows)
    assert sum(rows for rows, _ in found) > 100  # and they get through
    assert any(rows == 0 for rows, _ in found) == (urgent > 0)


def test_with_nobody_waiting_a_pass_takes_its_time_and_no_more() -> None:
    times = learnt()
    late = paced(Pace(times), times, 0, 100, decoding=False)[20:]
    assert max(seconds for _, seconds in late) < 1.3 * PASS_S
    assert statistics.mean(seconds for _, seconds in late) > 0.6 * PASS_S


@pytest.mark.parametrize(("urgent", "decoding"), [(0, False), (0, True), (4, True)])
def test_one_bad_pass_is_soon_forgotten(urgent: int, decoding: bool) -> None:
    """Whatever was learnt while the machine was busy with others."""
    times = learnt()
    pace = Pace(times)
    before = paced(pace, times, urgent, 60, decoding=decoding)
    paced(pace, times, urgent, 20, decoding=decoding, slower=50.0)
    after = paced(pace, times, urgent, 400, decoding=decoding)
    usual = statistics.mean(rows for rows, _ in before[20:])
    assert statistics.mean(rows for rows, _ in after[-100:]) > 0.5 * usual


def test_a_device_that_is_slow_for_one_row_still_takes_several() -> None:
    """A row takes 300 ms, seventeen hardly more: passes of one row would waste them."""
    times = PassTimes(4, decode_tokens_s=4 / 0.3, prefill_tokens_s=4 * 128 / 2.0)
    pace = Pace(times)
    for _ in range(50):
        rows = pace.rows(0, decoding=False)
        assert rows >= 16
        pace.took(0, rows, 0.3 + rows * 0.01, decoding=False)
