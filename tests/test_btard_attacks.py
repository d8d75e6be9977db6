"""Liars in a guarded group: whoever can be convicted is, nobody honest ever, and the rest agree."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice

import guard_liars as liars
import pytest
from guards import Member, Table


def run(table: Table) -> Table:
    """To the end, at which all honest agree, unless they lost a seat to a dispute."""
    table.run()
    members = [one for one in table.honest if one.done]
    assert members, "some honest member must come through"
    assert len({(one.done.standing, one.done.results) for one in members if one.done}) == 1
    liars_ = set(table.kinds)
    assert table.convicts() <= liars_, "nobody honest is ever convicted"
    assert not any(one.faults for one in table.honest if not liars_)
    return table


ALWAYS = [
    liars.NoNumbers,
    liars.Short,
    liars.WrongReducer,
    liars.NonsenseReducer,
    liars.ShyReducer,
    liars.LyingSums,
    liars.LyingNorms,
    liars.FalseReducer,
]


@pytest.mark.parametrize("kind", ALWAYS, ids=lambda kind: kind.__name__)
def test_what_everybody_sees_convicts_at_once(kind: type[Member]) -> None:
    table = run(Table(5, {1: kind}))
    assert all(table.convicts(one) == {1} for one in table.honest)
    done = table.honest[0].done
    assert done is not None and done.attempts == 2
    assert done.standing.members == (0, 2, 3, 4)


@pytest.mark.parametrize("phase", ["pledge", "reduced", "reveal", "sums", "settled"])
def test_two_claims_for_one_place_convict(phase: str) -> None:
    table = Table(5, {3: liars.TwoFaces})
    table.seat(3).phase = phase  # type: ignore[attr-defined]
    run(table)
    assert all(table.convicts(one) == {3} for one in table.honest)
    if phase != "sums":  # of false shares the reducers know more than one that differ
        assert all(one.convicted[0].proof for one in table.honest)


def test_a_reducer_that_shows_nothing_is_convicted_and_nothing_is_there_to_show() -> None:
    table = run(Table(5, {1: liars.ShyReducer}))
    assert all(one.convicted[0].case is None for one in table.honest)
    seen = run(Table(5, {1: liars.WrongReducer}))
    assert all(one.convicted[0].case is not None for one in seen.honest)


def until(wanted: set[int], tables: Iterator[Table]) -> list[set[int]]:
    """Whom each step convicts, until it is these: validators are drawn anew in each."""
    found: list[set[int]] = []
    for table in islice(tables, 60):
        found.append(run(table).convicts())
        if found[-1] == wanted:
            return found
    raise AssertionError(f"{wanted} escape, and only {found} are convicted")


def test_false_work_is_convicted_when_it_is_drawn_to_be_checked() -> None:
    """Two validators of five: an honest one draws the liar in two of five attempts."""
    found = until({1}, (Table(5, {1: liars.SignFlip}, seed=at, validators=2) for at in count()))
    assert set(map(frozenset, found[:-1])) <= {frozenset()}


def test_false_accusers_convict_themselves() -> None:
    kinds: dict[int, type[Member]] = {1: liars.FalseAccuser}
    until({1}, (Table(5, kinds, seed=at, validators=2) for at in count()))


def test_two_that_cover_each_other_fall_together() -> None:
    """The shares cancel, and the reducer says nothing; a validator works the cover's out again."""

    def tables() -> Iterator[Table]:
        for at in count():
            table = Table(6, {1: liars.Partner, 4: liars.Cover}, seed=at, validators=3)
            table.seat(4).partner = table.seat(1)  # type: ignore[attr-defined]
            yield table

    found = until({1, 4}, tables())
    assert all(one == set() for one in found[:-1])


def test_who_does_not_reveal_loses_its_seat_and_the_others_draw_again() -> None:
    table = run(Table(5, {2: liars.NonRevealer}))
    done = table.honest[0].done
    assert done is not None and done.attempts == 2
    assert done.standing.left == (2,) and done.standing.out_for_good == {2}
    assert table.convicts() == set()


def test_a_dispute_that_nobody_can_settle_costs_both_their_seats() -> None:
    table = Table(6, {2: liars.Withholder})
    table.seat(2).victim = table.roster[4]  # type: ignore[attr-defined]
    run(table)
    done = table.honest[0].done
    assert done is not None and done.standing.disputes == ((4, 2),)
    assert done.standing.members == (0, 1, 3, 5)
    assert table.seat(4).over is not None


@pytest.mark.parametrize("phase", ["pledge", "reduced", "reveal", "sums", "settled"])
def test_what_is_kept_from_one_member_others_tell_it(phase: str) -> None:
    table = Table(5, {2: liars.Whisperer})
    table.seat(2).victim = table.roster[4]  # type: ignore[attr-defined]
    table.seat(2).phase = phase  # type: ignore[attr-defined]
    run(table)
    assert table.outcomes() and table.seat(4).done is not None
    done = table.honest[0].done
    assert done is not None and done.attempts == 1 and done.standing.members == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("phase", ["pledge", "reduced", "reveal", "sums", "settled"])
def test_what_has_not_the_size_of_the_group_counts_as_silence(phase: str) -> None:
    table = Table(5, {2: liars.Misfit})
    table.seat(2).phase = phase  # type: ignore[attr-defined]
    run(table)
    done = table.honest[0].done
    assert done is not None and done.standing.silent == (2,) and done.attempts == 2
    assert done.standing.out_for_good == ({2} if phase in ("reveal", "sums", "settled") else set())


def test_nobody_is_blamed_where_only_the_distances_are_large() -> None:
    """The check of Delta_max: everybody judges each part, finds nothing, and the step goes on."""
    table = run(Table(4, far_most=1e-6))
    done = table.honest[0].done
    assert done is not None and done.attempts == 1 and len(done.standing.members) == 4


def test_almost_half_with_many_attacks_at_once() -> None:
    kinds: dict[int, type[Member]] = {
        0: liars.WrongReducer,
        2: liars.TwoFaces,
        5: liars.NonRevealer,
        6: liars.FalseReducer,
    }
    table = run(Table(9, kinds))
    assert all(one.done for one in table.honest)
    done = table.honest[0].done
    assert done is not None and done.standing.members == (1, 3, 4, 7, 8)
    assert table.convicts() == {0, 2, 6}


def test_between_classes_of_numerics_the_numbers_are_compared() -> None:
    """Every other member computes with another last bit; the liar is one of them."""
    odd = {seat: "other" for seat in (1, 3, 5)}

    kinds: dict[int, type[Member]] = {1: liars.Rounds, 3: liars.Rounds, 5: liars.Flips}
    for at in range(60):
        table = Table(6, kinds, seed=at, numerics=odd, tolerance=1e-4, validators=3)
        table.run()
        assert table.convicts() <= {5} and all(one.done for one in table.honest)
        if table.convicts():
            return
    raise AssertionError("the liar was never drawn")
