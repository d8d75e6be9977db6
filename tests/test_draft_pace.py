"""How many guesses: the best by brute force, what is known of chances and costs, and the purse."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.swarm.draft_pace import GUESSES_MAX, Line, Pace

ALONE_S = 0.2


def taught(chance: float, slope: float, alone_s: float = ALONE_S) -> Pace:
    """Steps of every width were seen, and 10,000 guesses; nothing limits the stake."""
    pace = Pace()
    for rows in (1, 33, 2, 9, 1, 17, 33):
        pace.took(rows, alone_s * (1 + slope * (rows - 1)))
    for _ in range(600):
        pace.brought(33, 33)
        pace._purse = 1e9
    for number in range(2000):
        hit = number * chance % 1 < chance
        pace.judged("said 4", int(hit), not hit)
    return pace


@given(
    st.floats(0.0, 0.99), st.floats(0.0, 1.5), st.floats(0.0, 0.5), st.integers(0, GUESSES_MAX + 5)
)
def test_the_choice_is_the_best_by_brute_force(
    chance: float, slope: float, making: float, most: int
) -> None:
    """Tokens that K guesses bring, summed over where the first wrong one may stand, over what the
    step takes by the line, and the guesses to make."""
    pace = taught(chance, slope)
    if making:
        pace.made("said 4", 1, making * ALONE_S)
    a = pace.chance("said 4")

    def rate(guesses: int) -> float:
        stands = [a**place * (1 - a) * (place + 1) for place in range(guesses)]
        tokens = sum(stands) + a**guesses * (guesses + 1)
        return tokens / (pace.line.at(1 + guesses) + making * ALONE_S * guesses)

    best = max(map(rate, range(min(most, GUESSES_MAX) + 1)))
    chosen, told = pace.plan("said 4", most)
    assert 0 <= chosen <= min(most, GUESSES_MAX)
    assert rate(chosen) == pytest.approx(best)
    assert told == pytest.approx(best)


@given(st.floats(0.001, 10.0), st.floats(0.0, 1.0), st.lists(st.integers(1, 33), min_size=12))
def test_the_line_is_found_through_steps_of_several_widths(
    alone_s: float, slope: float, widths: list[int]
) -> None:
    line = Line()
    for rows in [1, 33, *widths, 1, 33]:
        line.add(rows, alone_s * (1 + slope * rows))
    for rows in (1, 8, 33):
        assert line.at(rows) == pytest.approx(alone_s * (1 + slope * rows), rel=0.05)


def test_before_two_widths_are_known_rows_are_cheap_and_a_stall_changes_little() -> None:
    line = Line()
    for _ in range(20):
        line.add(1, 0.1)
    assert line.at(1) == pytest.approx(0.1) and 0.1 < line.at(9) < 0.15
    line.add(1, 60.0)  # the road was away
    assert line.at(1) < 0.12


def test_wider_steps_are_tried_bit_by_bit() -> None:
    pace = Pace()
    widths = []
    for _ in range(8):
        guesses = pace.choose("said 16", 40)
        widths.append(guesses)
        pace.took(1 + guesses, 0.1 + 0.0001 * guesses)
        pace.judged("said 16", guesses, False)
        pace.brought(1 + guesses, 1 + guesses)
    assert widths == [0, 1, 3, 7, 15, 31, 32, 32]


Text = Callable[[random.Random], int]  # of what was offered, how many tokens are right


def answer_s(
    steps_s: Callable[[int], float], offered: Callable[[int], tuple[str, int] | None], tokens: int
) -> tuple[float, float]:
    """Seconds of an answer of so many tokens with guesses, and without.

    offered: for the token at this place, the source of an offer and how many of it are right.
    """
    pace, spent_s, at = Pace(), 0.0, 1
    plain_s = steps_s(1) * (tokens - 1)
    while at < tokens:
        offer = offered(at)
        guesses = 0 if offer is None else pace.choose(offer[0], tokens - 1 - at)
        took_s = steps_s(1 + guesses)
        pace.took(1 + guesses, took_s)
        spent_s += took_s
        right = 0 if offer is None else offer[1]
        came = 1 + min(guesses, right)
        if offer is not None:
            pace.judged(offer[0], min(came, right), right < came)
        pace.brought(1 + guesses, came)
        at += came
    return spent_s, plain_s


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("tokens", [64, 400])
@pytest.mark.parametrize("source", ["said 1", "said 2", "said 3", "said 16", "model"])
def test_a_text_that_never_does_what_is_guessed_costs_at_most_two_percent(
    slope: float, tokens: int, source: str
) -> None:
    """Something is offered at each token, and none of it is ever right; a step takes up to a tenth
    longer or shorter, by lot."""
    dice = random.Random(f"{slope} {tokens} {source}")
    spent_s, plain_s = answer_s(
        lambda rows: ALONE_S * (1 + slope * (rows - 1)), lambda at: (source, 0), tokens
    )
    assert spent_s <= 1.02 * plain_s
    noisy = [
        answer_s(
            lambda rows: ALONE_S * (1 + slope * (rows - 1)) * dice.uniform(0.9, 1.1),
            lambda at: (source, 0),
            tokens,
        )[0]
        for _ in range(5)
    ]
    assert sum(noisy) / 5 <= 1.03 * plain_s, "of which the noise of the lots is a part"


@pytest.mark.parametrize("slope", [0.01, 0.3])
def test_a_text_that_stops_to_repeat_itself_keeps_what_it_gained(slope: float) -> None:
    """Two hundred tokens of a copy, and then two thousand that only look like one."""

    def offered(at: int) -> tuple[str, int]:
        return "said 8", max(0, 200 - at)

    spent_s, plain_s = answer_s(lambda rows: ALONE_S * (1 + slope * (rows - 1)), offered, 2200)
    assert spent_s < plain_s


@pytest.mark.parametrize(("chance", "least"), [(0.6, 1.7), (0.75, 2.4), (0.9, 4.4)])
def test_on_a_long_road_guesses_pay_as_the_formula_says(chance: float, least: float) -> None:
    """algorithms.md 9 has 2.0 to 2.3, 2.7 to 3.6 and 4.9 to 7.6 for links of 60 to 200 ms; here
    with all that it takes to learn the chance, in answers of 300 tokens."""
    dice = random.Random(4)

    def offered(at: int) -> tuple[str, int]:
        right = 0
        while dice.random() < chance:
            right += 1
        return "said 4", right

    spent_s, plain_s = answer_s(lambda rows: 0.3 + 0.002 * rows, offered, 300)
    assert plain_s / spent_s > least


def test_a_source_that_was_poor_long_ago_is_tried_again() -> None:
    pace = Pace()
    for _ in range(50):
        pace.took(1, ALONE_S)
        pace.took(2, 1.5 * ALONE_S)
        pace.judged("model", 0, True)
        pace.brought(1, 1)
    assert pace.choose("model", 8) == 0
    for _ in range(300):
        pace.took(1, ALONE_S)
        pace.brought(1, 1)
    assert pace.choose("model", 8) > 0


def test_a_sudden_fall_of_what_is_foreseen_is_told_once() -> None:
    pace = Pace()
    for _ in range(100):
        pace.brought(1, 1, foreseen=1)
        assert not pace.fell()
    told = []
    for _ in range(100):
        pace.brought(1, 1)
        told.append(pace.fell())
    assert sum(told) == 1 and told.index(True) < 40


def test_a_text_that_never_was_foreseen_has_nothing_to_fall_from() -> None:
    pace = Pace()
    for number in range(300):
        pace.brought(1, 1, foreseen=int(number % 3 == 0))
        assert not pace.fell()
