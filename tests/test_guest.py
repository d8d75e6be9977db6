"""A guest's manners: a rule begins at once, ends late, and asks for nothing where nobody tells."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import UserError
from potluck.swarm.guest import (
    BUSY,
    COOLER_C,
    IDLE_S,
    QUIET_S,
    URGENT,
    Guest,
    Manners,
    Rule,
    Signals,
)
from potluck.swarm.hours import DAY_MIN, WEEK_MIN, Hours, opens_in, parse_hours

NOON = 12 * 60  # of Monday
CALM = Signals(NOON, idle_s=1e6, battery=False, busy=0.0, celsius=40.0, watts=20.0)
STRICT = Manners(
    hours=(parse_hours("08:00-20:00"),),
    programs=frozenset(("steam",)),
    celsius=80.0,
    watts=200.0,
)
TROUBLE: dict[Rule, Signals] = {
    "asked": replace(CALM, asked_s=math.inf),
    "hours": replace(CALM, minute=21 * 60),
    "user": replace(CALM, idle_s=5.0),
    "battery": replace(CALM, battery=True),
    "program": replace(CALM, programs=frozenset(("steam",))),
    "gpu": replace(CALM, foreign=("blender",)),
    "heat": replace(CALM, celsius=81.0),
    "power": replace(CALM, watts=201.0),
    "busy": replace(CALM, busy=0.51),
}


def rules(guest: Guest, seen: Signals, now: float, wall_s: float = 0.0) -> list[Rule]:
    return [one.rule for one in guest.handle(seen, now, wall_s).reasons]


@pytest.mark.parametrize("rule", TROUBLE)
def test_each_rule_begins_at_once_and_ends_when_it_was_quiet_for_its_time(rule: Rule) -> None:
    guest = Guest(STRICT, on_gpu=True)
    assert rules(guest, CALM, 0.0) == []
    decision = guest.handle(TROUBLE[rule], 1.0)
    assert [one.rule for one in decision.reasons] == [rule] and decision.told
    assert decision.urgent == (rule in URGENT)
    quiet_s = QUIET_S[rule]
    if quiet_s:
        assert rules(guest, CALM, 1.0 + quiet_s / 2) == [rule]
        assert rules(guest, TROUBLE[rule], 1.0 + quiet_s * 0.9) == [rule]  # it began anew
        assert rules(guest, CALM, 1.0 + quiet_s * 1.8) == [rule]
    assert rules(guest, CALM, 2.0 + quiet_s * 1.9) == []


@pytest.mark.parametrize("rule", TROUBLE)
def test_a_machine_that_does_not_tell_asks_for_nothing(rule: Rule) -> None:
    """Nor does one whose owner does not mind."""
    guest = Guest(STRICT, on_gpu=True)
    assert rules(guest, Signals(NOON), 0.0) == []
    lax = Guest(Manners(while_active=True, on_battery=True, busy=0.0, share_gpu=True), on_gpu=True)
    assert rules(lax, TROUBLE[rule], 0.0) == (["asked"] if rule == "asked" else [])


def test_the_defaults_are_those_of_boinc() -> None:
    assert (IDLE_S, BUSY) == (180.0, 0.25)
    manners = Manners()
    on_gpu, on_processor = Guest(manners, on_gpu=True), Guest(manners)
    here = replace(CALM, idle_s=179.0)
    assert rules(on_gpu, here, 0.0) == ["user"] and rules(on_processor, here, 0.0) == []
    assert rules(on_gpu, replace(CALM, idle_s=181.0), 1.0) == []
    assert rules(on_processor, TROUBLE["battery"], 2.0) == ["battery"]
    for guest in (Guest(manners), Guest(manners)):  # 25 % while somebody is there, else 50 %
        assert rules(guest, replace(here, busy=0.24), 0.0) == []
        assert rules(guest, replace(CALM, busy=0.26), 0.0) == []
        assert rules(guest, replace(CALM, idle_s=None, busy=0.49), 0.0) == []
        assert rules(guest, replace(here, busy=0.26), 0.0) == ["busy"]


def test_who_was_too_hot_has_to_be_cooler_than_the_limit_for_a_while() -> None:
    guest = Guest(Manners(celsius=80.0))
    assert rules(guest, replace(CALM, celsius=80.0), 0.0) == []
    assert rules(guest, replace(CALM, celsius=80.5), 1.0) == ["heat"]
    warm = replace(CALM, celsius=80.0 - COOLER_C + 1)
    assert rules(guest, warm, 1000.0) == ["heat"]  # however long
    cool = replace(CALM, celsius=80.0 - COOLER_C)
    assert rules(guest, cool, 1001.0) == ["heat"]
    assert rules(guest, cool, 1000.0 + QUIET_S["heat"]) == []
    assert rules(guest, warm, 1200.0) == []


def test_a_rest_that_was_asked_for_tells_how_long_it_lasts_and_ends_to_the_second() -> None:
    guest = Guest(Manners())
    seen = replace(CALM, asked_s=1000.0, asked_why="a film")
    (reason,) = guest.handle(seen, 0.0, 900.0).reasons
    assert reason.told == "a film" and reason.more_s == 100.0
    assert rules(guest, seen, 99.0, 999.0) == ["asked"] and rules(guest, seen, 100.0, 1000.0) == []


def test_two_reasons_are_both_told_and_the_last_ends_the_rest() -> None:
    guest = Guest(Manners(), on_gpu=True)
    both = replace(CALM, battery=True, idle_s=1.0)
    decision = guest.handle(both, 0.0)
    assert decision.told == "somebody uses this machine; on battery" and decision.urgent
    assert rules(guest, replace(both, battery=False), 60.0) == ["user"]
    assert rules(guest, CALM, 61.0) == []


SIGNALS = st.builds(
    Signals,
    minute=st.integers(0, WEEK_MIN - 1),
    idle_s=st.none() | st.floats(0, 1e4),
    battery=st.none() | st.booleans(),
    busy=st.none() | st.floats(0, 1),
    foreign=st.sampled_from(((), ("blender",))),
    celsius=st.none() | st.floats(20, 100),
)


@given(st.lists(st.tuples(st.floats(0.1, 100), SIGNALS), max_size=30))
def test_it_never_serves_while_a_rule_holds_and_never_flaps(
    steps: list[tuple[float, Signals]],
) -> None:
    """A fresh guest, which remembers nothing, shows which rules hold at this moment; each of those
    is told, and one that is not told any more was quiet for its time."""
    guest, now = Guest(STRICT, on_gpu=True), 0.0
    last: dict[Rule, float] = {}
    for step_s, seen in steps:
        now += step_s
        told = set(rules(guest, seen, now))
        holding = set(rules(Guest(STRICT, on_gpu=True), seen, now))
        assert holding <= told
        last |= dict.fromkeys(holding, now)
        for rule, last_s in last.items():
            if rule not in told:
                assert now - last_s >= QUIET_S[rule]
        assert told <= set(last)


# ---- hours


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("22:00-07:00", [(0, 22 * 60), (1, 0), (1, 419), (0, 419)], [(0, 420), (6, 1319)]),
        ("8-9:30", [(3, 480), (3, 569)], [(3, 479), (3, 570)]),
        ("mon-fri 18:00-24:00", [(0, 1080), (4, 1439)], [(5, 1080), (4, 1079), (5, 0)]),
        ("sun 22:00-06:00", [(6, 1320), (0, 359)], [(0, 360), (0, 1320), (6, 359)]),
        ("sat,sun 0:00-24:00", [(5, 0), (6, 1439)], [(0, 0), (4, 1439)]),
        ("fri-mon 12:00-13:00", [(4, 720), (0, 720), (6, 720)], [(1, 720), (3, 720)]),
    ],
)
def test_hours_are_those_of_their_days_and_go_over_midnight(
    text: str, inside: list[tuple[int, int]], outside: list[tuple[int, int]]
) -> None:
    hours = parse_hours(text)
    assert all(hours.holds(day * DAY_MIN + minute) for day, minute in inside)
    assert not any(hours.holds(day * DAY_MIN + minute) for day, minute in outside)


@pytest.mark.parametrize(
    "text",
    ["", "22:00", "22:00-22:00", "25:00-26:00", "7:5-8:00", "mon", "mun 8-9", "24:00-8:00",
     "8-9-10", "x 8-9", "8:00-8:60", "-8:00-9:00", "８-９"],
)  # fmt: skip
def test_what_names_no_hours_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="names no hours"):
        parse_hours(text)


@given(
    st.frozensets(st.integers(0, 6), min_size=1),
    st.integers(0, DAY_MIN - 1),
    st.integers(1, DAY_MIN),
    st.integers(0, WEEK_MIN - 1),
)
def test_the_next_opening_is_the_first_minute_that_is_open(
    days: frozenset[int], start: int, length: int, minute: int
) -> None:
    hours = (Hours(days, start, length, ""),)
    wait = opens_in(hours, minute)
    assert hours[0].holds((minute + wait) % WEEK_MIN)
    assert not any(
        hours[0].holds((minute + past) % WEEK_MIN) for past in range(max(0, wait - 60), wait)
    )
