"""What goes to the device next: tokens first, prompts by peer, nobody for ever."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.swarm.schedule import DEBT_MAX, PROMPT_EVERY, QUANTUM, URGENT_ROWS, Schedule

FOREVER = math.inf


def filled(*steps: tuple[str, str, int], cut: bool = True) -> Schedule:
    """Steps of (key, peer, rows) that wait."""
    schedule = Schedule()
    for key, peer, rows in steps:
        schedule.add(key, peer, [rows], cut=cut, until_s=FOREVER)
    return schedule


def taken(schedule: Schedule, rows: int, **how: int) -> list[tuple[object, int]]:
    return [(one.key, one.rows) for one in schedule.next(rows, 0.0, **how)]


def test_tokens_go_before_prompts_and_share_their_pass() -> None:
    schedule = filled(("long", "p", 1000), ("one", "q", 1), ("two", "r", 1))
    assert taken(schedule, 66) == [("one", 1), ("two", 1), ("long", 64)]
    assert taken(schedule, 64) == [("long", 64)]


def test_tokens_are_taken_peer_by_peer() -> None:
    schedule = filled(*((f"p{i}", "p", 1) for i in range(3)), ("q0", "q", 1), ("r0", "r", 1))
    assert [key for key, _ in taken(schedule, 10)] == ["p0", "q0", "r0", "p1", "p2"]


def test_one_peer_with_eight_prompts_gets_no_more_than_one_with_one() -> None:
    schedule = filled(*((f"p{i}", "p", 4096) for i in range(8)), ("q", "q", 4096))
    rows = Counter(
        str(key)[0] for _ in range(40) for key, rows in taken(schedule, 100) for _ in range(rows)
    )
    assert abs(rows["p"] - rows["q"]) <= 2 * QUANTUM
    assert rows["p"] + rows["q"] == 4000


def test_tokens_are_paid_from_the_same_account() -> None:
    """While p decodes two tokens a pass, its prompt waits for as much as q's gets first."""
    schedule = filled(("P", "p", 4096), ("Q", "q", 4096))
    rows: Counter[object] = Counter()
    for number in range(50):
        for token in range(2):
            schedule.add((number, token), "p", [1], cut=True, until_s=FOREVER)
        rows.update(dict(taken(schedule, 34)))
    assert rows["P"] + rows["Q"] == 50 * 32
    assert rows["Q"] - rows["P"] == pytest.approx(50 * 2 * 2, abs=2 * QUANTUM)


def test_among_tokens_alone_every_few_passes_a_prompt_has_its_turn() -> None:
    """As on a device that takes one step after another."""
    schedule = filled(("long", "p", 640))
    kinds = []
    for number in range(40):
        for extra in range(2):
            schedule.add((number, extra), "q", [1], cut=True, until_s=FOREVER)
        kinds += [key for key, _ in taken(schedule, 64, steps_max=1)]
    assert kinds.count("long") == 40 // PROMPT_EVERY


def test_a_budget_that_tokens_use_up_lets_a_prompt_through_all_the_same() -> None:
    schedule = filled(("long", "p", 100))
    for number in range(2 * PROMPT_EVERY):
        for extra in range(5):
            schedule.add((number, extra), "q", [1], cut=True, until_s=FOREVER)
        schedule.next(5, 0.0)
    assert taken(schedule, 1000) == [("long", 98)]


def test_pieces_that_must_not_be_cut_go_whole() -> None:
    schedule = Schedule()
    schedule.add("a", "p", [20, 1, 1, 7, 100, 2], cut=False, until_s=FOREVER)
    assert taken(schedule, 25) == [("a", 22)]
    assert taken(schedule, 25) == [("a", 7)]  # the next piece is too long for what is left
    assert taken(schedule, 25) == [("a", 100)]
    assert schedule.next(25, 0.0)[0].last
    assert len(schedule) == 0


def test_what_nobody_wants_any_more_is_dropped() -> None:
    schedule = Schedule()
    schedule.add("old token", "p", [1], cut=True, until_s=5.0)
    schedule.add("old prompt", "p", [50], cut=True, until_s=5.0)
    schedule.add("new prompt", "p", [50], cut=True, until_s=9.0)
    assert [one.key for one in schedule.next(100, 6.0)] == ["new prompt"]
    assert schedule.expired() == ["old token", "old prompt"]
    assert len(schedule) == 0


def test_what_was_begun_is_finished_however_late_it_gets() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", "p", [90], cut=True, until_s=5.0)
    assert [one.rows for one in schedule.next(40, 4.0)] == [40]
    assert [one.rows for one in schedule.next(60, 50.0)] == [50]
    assert schedule.expired() == []


@st.composite
def crowds(draw: st.DrawFn) -> list[list[tuple[str, list[int]]]]:
    """What arrives before each pass: (peer, pieces)."""
    step = st.tuples(
        st.sampled_from(["p", "q", "r", "s"]),
        st.lists(st.integers(1, 90), min_size=1, max_size=4),
    )
    return draw(st.lists(st.lists(step, max_size=4), min_size=1, max_size=25))


@given(
    crowd=crowds(),
    cut=st.booleans(),
    budget=st.integers(1, 200),
    steps_max=st.sampled_from([None, 1, 3]),
)
def test_every_row_is_taken_once_and_in_order(
    crowd: list[list[tuple[str, list[int]]]], cut: bool, budget: int, steps_max: int | None
) -> None:
    schedule, left, arrived, number = Schedule(), {}, {}, 0
    passes = 0
    while crowd or left:
        for peer, sizes in crowd.pop(0) if crowd else []:
            schedule.add(number, peer, sizes, cut=cut, until_s=FOREVER)
            left[number], arrived[number] = list(sizes), passes
            number += 1
        assert len(schedule) == len(left)
        urgent = schedule.urgent_rows()
        chosen = schedule.next(budget, 0.0, steps_max=steps_max)
        assert bool(chosen) == bool(left), "a pass is empty only when nothing waits"
        assert len({one.key for one in chosen}) == len(chosen) <= (steps_max or 10_000)
        prompts = sum(one.rows for one in chosen if sum(left[one.key]) > URGENT_ROWS)
        if cut:
            assert prompts <= max(1, budget)
        for one in chosen:
            pieces = left[one.key]
            take = one.rows
            while take:
                size = min(take, pieces[0])
                assert cut or size == pieces[0]
                pieces[0] -= size
                take -= size
                if not pieces[0]:
                    pieces.pop(0)
            assert one.last == (not pieces)
            if not pieces:
                del left[one.key]
        assert urgent >= 0
        passes += 1
        assert passes < 20_000


@given(flood=st.integers(1, 6), budget=st.integers(1, 64), strangers=st.booleans())
def test_nobody_waits_for_ever(flood: int, budget: int, strangers: bool) -> None:
    """A prompt of 100 rows among prompts and tokens that never end, from one peer or from ever new
    ones: it is through when every peer there had its turns, and tokens at most three of four
    passes."""
    schedule = filled(("mine", "me", 100))
    passes = 0
    while True:
        for number in range(flood):
            peer = f"{passes}-{number}" if strangers else "them"
            schedule.add((passes, number), peer, [40], cut=True, until_s=passes + 30.0)
            schedule.add((passes, number, "t"), peer, [1], cut=True, until_s=FOREVER)
        chosen = schedule.next(budget, float(passes))
        passes += 1
        if any(one.key == "mine" and one.last for one in chosen):
            break
        assert passes < PROMPT_EVERY * (100 + DEBT_MAX) * (flood + 1)


def test_what_is_dropped_is_gone_and_its_peer_goes_on() -> None:
    schedule = filled(("a", "p", 100), ("b", "p", 100), ("c", "p", 1))
    schedule.drop("a")
    schedule.drop("a")
    schedule.drop("c")
    assert taken(schedule, 1000) == [("b", 100)]
    assert len(schedule) == 0 and not schedule.prompts_wait
