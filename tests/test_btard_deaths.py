"""Deaths and numerics in a guarded group: who is out of it, for how long, and that unblamed."""

from __future__ import annotations

from typing import Any

import guard_liars as liars
import pytest
from guards import Member, Table

from potluck.swarm.machine import Fired, SetTimer
from potluck.swarm.run.btard_events import Effect, Event


@pytest.mark.parametrize(
    ("phase", "for_good"), [("pledge", False), ("reduced", False), ("reveal", True), ("sums", True)]
)
def test_whoever_dies_is_left_out_and_after_the_coin_for_good(phase: str, for_good: bool) -> None:
    """After a pledge its result is missed, and after the result's digest the result itself, which
    tell nothing of the coin; after its secret what it has to say when it knows who is checked."""
    table = Table(5, {2: liars.DiesAfter})
    table.seat(2).phase = phase  # type: ignore[attr-defined]
    table.run()
    assert len(table.outcomes()) == 1 and table.convicts() == set()
    done = table.honest[0].done
    assert done is not None and done.standing.silent == (2,)
    assert done.standing.out_for_good == ({2} if for_good else frozenset())


class ComesBack(Member):
    """Begins the step at `AT_S`."""

    AT_S = 12.0

    def __init__(self, *made: Any) -> None:
        super().__init__(*made)
        start, handle = self.guard.start, self.guard.handle

        def handled(event: Event, now: float) -> list[Effect]:
            return start(now) if event == Fired("begin") else handle(event, now)

        self.guard.start = lambda now: [SetTimer("begin", self.AT_S)]  # type: ignore[method-assign]
        self.guard.handle = handled  # type: ignore[method-assign]


def test_who_comes_back_while_it_is_waited_for_asks_for_what_it_missed() -> None:
    """Nothing of what was said before reached it: the echo in what comes next says what to ask."""

    def road(frm: str, to: str, effect: Effect) -> bool:
        return table.now >= ComesBack.AT_S or to != table.roster[2]

    table = Table(5, {2: ComesBack}, road=road)
    table.run()
    for seat in range(5):
        done = table.seat(seat).done
        assert done is not None and done.attempts == 1 and not done.standing.silent


def test_two_deaths_of_five_are_one_new_attempt() -> None:
    table = Table(5, {1: liars.DiesAfter, 4: liars.DiesAfter})
    table.run()
    done = table.honest[0].done
    assert done is not None and done.standing.members == (0, 2, 3) and done.attempts == 2


def test_fewer_than_half_do_not_go_on() -> None:
    table = Table(4, {1: liars.DiesAfter, 2: liars.DiesAfter, 3: liars.DiesAfter})
    table.run()
    assert table.seat(0).over is not None and table.seat(0).done is None


def test_a_false_share_shown_to_one_reducer_alone_convicts_its_teller_and_not_the_reducer() -> None:
    table = Table(5, {2: liars.Framer})
    table.seat(2).victim = 4  # type: ignore[attr-defined]
    table.run()
    assert all(table.convicts(one) == {2} for one in table.honest)
    assert all(one.done for one in table.honest)


def test_where_no_limit_between_two_classes_is_known_nobody_is_convicted_by_one() -> None:
    """Each of five rounds otherwise; nobody can check anybody, and nobody is accused."""
    kinds: dict[int, type[Member]] = {1: liars.Rounds, 3: liars.Rounds}
    for seed in range(4):
        table = Table(
            5, kinds, seed=seed, numerics={1: "other", 3: "third"}, tolerance=0.0, validators=2
        )
        table.run()
        done = table.honest[0].done
        assert table.convicts() == set()
        assert done is not None and done.attempts == 1


def test_what_most_cannot_settle_costs_both_their_seats_and_convicts_nobody() -> None:
    """One step in thirteen draws the one to check the other."""
    odd = {1: "other", 3: "other"}
    for seed in range(100):
        table = Table(
            5,
            {1: liars.Cheats, 3: liars.Rounds},
            seed=seed,
            numerics=odd,
            tolerance=1e-4,
            validators=2,
        )
        table.run()
        assert table.convicts() == set()
        done = table.honest[0].done
        assert done is not None and done.standing.disputes in ((), ((3, 1),))
        if done.standing.disputes:
            return
    raise AssertionError("it was never drawn")
