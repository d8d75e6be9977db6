"""Tallies: both sign, sums only grow, and whoever signs two for one place is convicted."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from receipts import key

from potluck.errors import RemoteError
from potluck.swarm.tally import (
    TALLY_BYTES_MAX,
    Tally,
    accept,
    contradiction,
    first_of,
    follows,
    next_of,
    offer,
    read_offer,
    read_tally,
)

ALICE, BOB, EVE = key("alice"), key("bob"), key("eve")
A, B = ALICE.peer_id, BOB.peer_id


def chain(steps: list[tuple[bool, float, float]]) -> list[Tally]:
    """Alice or Bob offers, so much given and taken since."""
    found = [first_of(A, B)]
    for number, (by_alice, gave, took) in enumerate(steps):
        found.append(
            next_of(
                found[-1], A if by_alice else B, boot=7, gave=gave, took=took,
                now=float(number), since=bytes(32),
            )
        )  # fmt: skip
    return found


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e6), st.floats(0, 1e6)), max_size=8))
def test_sums_are_what_was_given_by_whom(steps: list[tuple[bool, float, float]]) -> None:
    found = chain(steps)
    alice = sum(gave if mine else took for mine, gave, took in steps)
    assert found[-1].gave(A) == pytest.approx(alice)
    for last, tally in itertools.pairwise(found):
        assert follows(tally, last) and not follows(last, tally)
        assert read_tally(accept(BOB, offer(ALICE, tally))) == tally
        assert read_tally(accept(ALICE, offer(BOB, tally))) == tally


def test_a_tally_is_small() -> None:
    tally = next_of(
        first_of(A, B), A, boot=2**32 - 1, gave=1e17, took=1e17, now=1.8e9, since=bytes(32)
    )
    raw = accept(BOB, offer(ALICE, replace(tally, seq=2**32 - 1)))
    assert len(raw) <= 560 <= TALLY_BYTES_MAX


def test_nobody_boasts_alone_or_for_others() -> None:
    tally = chain([(True, 100.0, 0.0)])[-1]
    mine = offer(ALICE, tally)
    assert read_offer(mine) == (A, tally)
    for bad in (mine, accept(ALICE, mine), accept(EVE, mine), accept(BOB, offer(EVE, tally))):
        with pytest.raises(RemoteError):
            read_tally(bad)
    with pytest.raises(RemoteError):
        read_offer(offer(EVE, tally))


def test_what_does_not_follow_is_seen() -> None:
    first, one, two = chain([(True, 5.0, 1.0), (False, 2.0, 0.0)])
    assert not follows(two, first)
    assert not follows(replace(one, low_gave=0.0, high_gave=0.0, seq=2), one)
    assert not follows(replace(two, prev=bytes(32)), one)
    assert not follows(two, replace(one, low_boot=9, high_boot=9))


def test_two_of_one_place_convict_whoever_signed_both_in_one_boot() -> None:
    one, two = chain([(True, 5.0, 1.0)])[-1], chain([(True, 9.0, 0.0)])[-1]
    assert set(contradiction(one, two)) >= {A}
    assert contradiction(one, one) == ()
    later = chain([(True, 5.0, 1.0), (True, 1.0, 1.0)])[-1]
    assert contradiction(one, later) == ()


def test_a_restored_disk_is_no_contradiction_whatever_the_other_does() -> None:
    """Alice's disk is of yesterday; Bob lets her sign the same place again, to have her banned.
    Her boot is another by then, his is the same."""
    last = chain([(True, 5.0, 1.0)])[-1]
    once = next_of(last, A, boot=7, gave=1.0, took=0.0, now=9.0, since=bytes(32))
    once = next_of(last, B, boot=3, gave=0.0, took=1.0, now=9.0, since=bytes(32))
    again = next_of(last, A, boot=8, gave=2.0, took=0.0, now=10.0, since=bytes(32))
    mine = "low_boot" if again.peers[0] == A else "high_boot"
    theirs = "high_boot" if mine == "low_boot" else "low_boot"
    once, again = (replace(tally, **{theirs: 3}) for tally in (once, again))
    assert contradiction(once, again) == (B,)
