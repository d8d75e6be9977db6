"""Whose place a newcomer gets: the order in which connections give way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from potluck.node.net.worth import CROWD, IDLE_TICKS, QUIET_TICKS, Standing, least_worth


def standing(network: str = "a", since: float = 0.0, **more: Any) -> Standing:
    return replace(Standing(network, since, 0, 0, True), **more)


def test_of_all_places_an_idle_one_is_given_up_first() -> None:
    quiet = standing(quiet_ticks=QUIET_TICKS)
    idle = standing(has_streams=False, idle_ticks=IDLE_TICKS, quiet_ticks=IDLE_TICKS)
    idler = replace(idle, idle_ticks=2 * IDLE_TICKS)
    assert least_worth([quiet, idle, idler, standing()], "x") == 2


def test_then_the_newest_silent_one_of_the_greatest_crowd() -> None:
    one = standing("b", since=9.0, quiet_ticks=QUIET_TICKS)
    crowd = [standing("a", since=float(at), quiet_ticks=QUIET_TICKS) for at in range(3)]
    assert least_worth([one, *crowd, standing("a", since=10.0)], "x") == 3


def test_who_is_busy_leaves_only_as_one_of_a_crowd_and_for_a_stranger() -> None:
    crowd = [standing("a", since=float(at)) for at in range(CROWD + 1)]
    assert least_worth([*crowd, standing("b", since=99.0)], "b") == CROWD
    assert least_worth([*crowd, standing("b")], "a") is None
    assert least_worth([*crowd[1:], standing("b")], "b") is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50), st.booleans()), max_size=9))
def test_who_is_kept_or_used_never_leaves(told: list[tuple[str, int, bool]]) -> None:
    all_ = [
        standing(network, since=float(at), idle_ticks=ticks, quiet_ticks=ticks, stays=stays)
        for at, (network, ticks, stays) in enumerate(told)
    ]
    found = least_worth(all_, "x")
    assert found is None or not all_[found].stays
