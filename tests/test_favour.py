"""Whose pass it is: by credit, with a share for newcomers, and as ever where nobody has any."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.swarm.favour import COMMONS, PACE, PLACES_MAX, PURSE_S, Ages, Favour, Place
from potluck.swarm.schedule import Schedule

PASS_S = 0.01
MUCH = 1e9


def net(number: int, narrow: int = 0) -> Place:
    return "new", f"10.{number}/16", f"10.{number}.{narrow}/24"


def divide(
    favour: Favour, waiting: Mapping[str, Place], passes: int, began_s: float = 0.0
) -> dict[str, float]:
    """So many passes of 10 ms, each of one step, while all of them wait all the time."""
    schedule: Schedule[int] = Schedule(favour)
    whose: dict[int, str] = {}
    keys = itertools.count()

    def ask(name: str) -> None:
        whose[key := next(keys)] = name
        schedule.add(key, name, [32], cut=False, until_s=math.inf)

    had = dict.fromkeys(waiting, 0.0)
    for name, place in waiting.items():
        favour.place(name, place)
        ask(name)
    for number in range(passes):
        now = began_s + number * PASS_S
        (taken,) = schedule.next(32, now, steps_max=1, lead=schedule.lead(now))
        schedule.took(PASS_S, now + PASS_S)
        name = whose.pop(taken.key)
        had[name] += 1 / passes
        ask(name)
    return had


def favouring(**credit: float) -> Favour:
    favour = Favour()
    favour.fund(credit)
    return favour


def places(names: Iterable[str]) -> dict[str, Place]:
    """Each in a /16 of its own."""
    return {name: net(number) for number, name in enumerate(names)}


def test_passes_are_by_credit_and_newcomers_have_their_share() -> None:
    had = divide(favouring(a=3 * MUCH, b=MUCH), places("abcd"), 9000)
    assert had["a"] + had["b"] == pytest.approx(1 - COMMONS, abs=0.02)
    assert had["a"] == pytest.approx(3 * had["b"], rel=0.05)
    assert had["c"] == pytest.approx(had["d"], rel=0.1)


def test_without_credit_all_is_as_if_there_were_none() -> None:
    """Pass for pass, whatever the networks are."""
    waiting = {"x": net(1), "y": net(1), "z": net(2)}
    assert divide(Favour(), waiting, 600) == divide(favouring(gone=MUCH), waiting, 600)
    assert divide(Favour(), waiting, 600)["x"] == pytest.approx(1 / 3, abs=0.01)


def test_the_commons_is_even_between_networks_not_identities() -> None:
    """One honest newcomer, five Sybils in one network, two in another of the same /16."""
    waiting = {"giver": net(0), "honest": net(1)}
    waiting |= {f"a{number}": net(2) for number in range(5)}
    waiting |= {f"b{number}": net(2, 1) for number in range(2)}
    had = divide(favouring(giver=MUCH), waiting, 12_000)
    sybils = sum(had[name] for name in waiting if name[0] in "ab" and len(name) == 2)
    assert had["honest"] == pytest.approx(sybils, rel=0.1)
    assert sum(had[f"b{number}"] for number in range(2)) == pytest.approx(sybils / 2, rel=0.15)
    assert had["giver"] == pytest.approx(1 - COMMONS, abs=0.02)


@pytest.mark.parametrize("networks", [1, 2])
def test_a_contributor_gains_nothing_by_newcomers_of_its_own(networks: int) -> None:
    """Two that gave the same; one of them sends newcomers, too, from its network. (From another
    network they have that network's part of the commons, here all of it.)"""
    waiting = {"a": net(0), "b": net(1)}
    mine = {f"n{number}": net(0 if networks == 1 else 2) for number in range(5)}
    had = divide(favouring(a=MUCH, b=MUCH), waiting | mine, 12_000)
    extra = 0 if networks == 1 else COMMONS / 2
    assert had["a"] + sum(had[name] for name in mine) == pytest.approx(0.5 + extra, abs=0.01)


def test_who_was_known_yesterday_keeps_its_part_whoever_comes_today() -> None:
    waiting: dict[str, Place] = {"giver": net(0), "honest": ("a day", *net(1)[1:])}
    waiting |= {f"s{number}": ("new", f"{number}.0/16", f"{number}.0.0/24") for number in range(50)}
    had = divide(favouring(giver=MUCH), waiting, 12_000)
    assert had["honest"] == pytest.approx(sum(had[f"s{n}"] for n in range(50)), rel=0.15)


def test_who_comes_seldom_does_not_wait_for_those_who_are_always_there() -> None:
    """They had all of the device before: a contributor's passes come at once, nearly all of them;
    and a newcomer's, as many as the purse holds."""
    favour = favouring(giver=MUCH)
    riders = places(["r0", "r1", "r2", "r3"])
    divide(favour, riders, 6000)
    had = divide(favour, riders | {"giver": net(9)}, 500, 60.0)
    assert had["giver"] == pytest.approx(1)
    had = divide(favour, riders | {"giver": net(9), "newcomer": net(10)}, 500, 65.0)
    assert had["newcomer"] == pytest.approx(PACE, abs=PURSE_S / (500 * PASS_S) + 0.01)
    assert had["giver"] + had["newcomer"] == pytest.approx(1)


def test_of_those_behind_whoever_had_least_is_first() -> None:
    """Riders wait that had half of their parts; all that there is goes to one that had nothing."""
    favour = favouring(giver=MUCH, other=MUCH)
    riders, givers = places(["r0", "r1", "r2", "r3"]), {"giver": net(8), "other": net(9)}
    divide(favour, riders | givers, 6000)
    divide(favour, givers, 9000, 60.0)
    had = divide(favour, riders | givers | {"newcomer": net(10)}, 200, 150.0)
    assert had["newcomer"] == pytest.approx(PACE, abs=0.05)
    assert not any(had[rider] for rider in riders)
    had = divide(favour, riders | givers, 200, 152.0)
    assert sum(had[rider] for rider in riders) == pytest.approx(PACE, abs=0.05)


def test_fifty_networks_gain_no_turns_by_rounding() -> None:
    """Each has a turn or two of the commons: together what one has that comes in their place."""
    many = {f"s{number}": ("new", f"{number}/16", f"{number}/24") for number in range(50)}
    alone = divide(favouring(giver=MUCH), {"giver": net(0), "honest": net(1)}, 4000)["honest"]
    had = divide(favouring(giver=MUCH), {"giver": net(0), **many}, 4000)
    assert sum(had[name] for name in many) <= 1.05 * alone


def test_who_takes_a_new_name_in_the_same_network_is_no_newcomer() -> None:
    favour = favouring(giver=MUCH)
    divide(favour, places(["r0", "r1"]), 6000)
    had = divide(favour, {"giver": net(9), "new name": net(0, 7)}, 500, 60.0)
    assert had["new name"] == 0


def test_what_nobody_else_wanted_costs_nothing() -> None:
    favour = favouring(giver=100.0)
    divide(favour, {"giver": net(0)}, 500)
    assert favour.used() == {} and favour.rules
    divide(favour, {"giver": net(0), "other": net(1)}, 500, 5.0)
    assert favour.used()["giver"] == pytest.approx(100, abs=32) and not favour.rules
    assert favour.used() == {}


def test_what_was_used_meanwhile_is_not_given_again() -> None:
    """Between the answer to `used` and the next `fund` passes go on."""
    favour = favouring(giver=1000.0, other=0.0)
    divide(favour, places(["giver", "x"]), 4)
    used = favour.used()["giver"]
    divide(favour, places(["giver", "x"]), 4, 1.0)
    favour.fund({"giver": 1000.0 - used})
    divide(favour, places(["giver", "x"]), 200, 2.0)
    assert used + favour.used()["giver"] == pytest.approx(1000, abs=32)


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1e5)), max_size=60))
def test_somebody_is_always_chosen_however_long_it_was(gaps: list[tuple[int, float]]) -> None:
    favour, now = favouring(p0=1000.0), 0.0
    for count, gap_s in gaps:
        now += gap_s
        waiting = [f"p{number}" for number in range(count + 1)]
        lead = favour.lead(waiting, now)
        assert lead is None or set(lead.peers) & set(waiting)
        favour.took(dict.fromkeys(waiting if lead is None else lead.peers, 1.0), 0.05, now)


def test_what_is_remembered_is_bounded() -> None:
    favour = favouring(giver=MUCH)
    for number in range(2 * PLACES_MAX):
        favour.took({f"stranger {number}": 1.0}, 0.01, float(number) / 1000)
    assert len(favour._had) <= PLACES_MAX + 1
    ages = Ages()
    ages.age("old", 0.0)
    for number in range(2 * PLACES_MAX):
        ages.age(f"n{number}", 1.0)
    assert len(ages.keep()) <= PLACES_MAX and "old" in ages.keep()


def test_a_network_grows_old_and_is_forgotten() -> None:
    day = 86_400.0
    ages = Ages()
    seen = [ages.age("n", at_s) for at_s in (0.0, 3599.0, 3600.0, day, 7 * day, 20 * day)]
    assert seen == ["new", "new", "an hour", "a day", "a week", "a week"]
    assert Ages(ages.keep()).age("n", 21 * day) == "a week"
    assert Ages(ages.keep()).age("n", 40 * day) == "new"


def test_a_clock_that_was_ahead_makes_no_network_new_for_ever() -> None:
    ages = Ages()
    year = 365 * 86_400.0
    assert ages.age("n", year) == "new"
    assert [ages.age("n", at_s) for at_s in (0.0, 3600.0)] == ["new", "an hour"]


def test_others_ride_along_where_they_make_the_pass_hardly_longer() -> None:
    favour = favouring(giver=MUCH)
    schedule: Schedule[str] = Schedule(favour)
    for name in ("giver", "p", "q"):
        schedule.add(f"{name} token", name, [1], cut=True, until_s=math.inf)
        schedule.add(f"{name} prompt", name, [100], cut=True, until_s=math.inf)
    lead = schedule.lead(0.0)
    assert lead is not None and lead.by_credit and set(lead.peers) == {"giver"}
    assert schedule.urgent_rows(lead) == 1
    rows = Counter(
        {one.key: one.rows for one in schedule.next(41, 0.0, lead=lead, spare=lambda rows: 6)}
    )
    assert rows.pop("giver token") == 1 and rows.pop("giver prompt") == 40
    assert rows.pop("p token") == rows.pop("q token") == 1
    assert rows.total() == 4  # of their prompts
    assert {one.key for one in schedule.next(41, 0.0, lead=lead)} == {"giver prompt"}
