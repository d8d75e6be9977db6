"""Admission: the book balances, nobody takes all, and a refusal says when to return."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import Refused
from potluck.swarm.admission import RETRY_LATEST_S, RETRY_SOONEST_S, Admission, AdmissionConfig
from potluck.swarm.blocks import BlockRange

actions = st.lists(
    st.tuples(
        st.sampled_from(["admit", "release"]),
        st.sampled_from(["p", "q", "r"]),
        st.integers(1, 5),
        st.integers(1, 60),
    ),
    max_size=40,
)


@given(actions=actions, page=st.sampled_from([1, 1, 7, 16]))
def test_the_book_balances_whatever_comes(
    actions: list[tuple[str, str, int, int]], page: int
) -> None:
    admission = Admission(
        AdmissionConfig(cache_tokens=300, page_tokens=page, sessions_max=6, peer_share=0.5)
    )
    held: dict[int, tuple[str, int]] = {}
    for number, (what, peer, blocks, tokens) in enumerate(actions):
        if what == "release" and held:
            key = min(held)
            del held[key]
            admission.release(key, 0.0)
        elif what == "admit":
            try:
                admission.admit(number, peer, BlockRange(0, blocks), tokens, float(number))
                held[number] = (peer, blocks * math.ceil(tokens / page) * page)
            except Refused as refusal:
                assert RETRY_SOONEST_S <= refusal.retry_after_s <= RETRY_LATEST_S
        taken = sum(size for _, size in held.values())
        assert admission.free_tokens == 300 - taken >= 0
        assert admission.sessions == len(held) <= 6
        for who in "pqr":
            theirs = [size for peer, size in held.values() if peer == who]
            assert len(theirs) <= 1 or sum(theirs) <= 150


def test_room_that_is_given_back_is_given_again() -> None:
    admission = Admission(AdmissionConfig(cache_tokens=100))
    admission.admit("a", "p", BlockRange(0, 1), 100, 0.0)
    with pytest.raises(Refused, match="full"):
        admission.admit("b", "q", BlockRange(0, 1), 1, 0.0)
    admission.release("a", 0.0)
    admission.admit("b", "q", BlockRange(0, 1), 100, 0.0)


def test_what_can_never_fit_says_how_much_there_is() -> None:
    admission = Admission(AdmissionConfig(cache_tokens=100))
    with pytest.raises(Refused, match="100"):
        admission.admit("a", "p", BlockRange(0, 2), 51, 0.0)


def test_a_lease_is_renewed_by_use() -> None:
    admission = Admission(AdmissionConfig(cache_tokens=100, lease_s=60.0))
    admission.admit("a", "p", BlockRange(0, 1), 1, 10.0)
    assert admission.expires_s("a") == 70.0
    admission.renew("a", 50.0)
    assert admission.expires_s("a") == 110.0


def test_a_leaving_server_admits_nobody() -> None:
    admission = Admission(AdmissionConfig(cache_tokens=100))
    admission.leave()
    with pytest.raises(Refused, match="leaving"):
        admission.admit("a", "p", BlockRange(0, 1), 1, 0.0)


def test_a_session_costs_whole_pages() -> None:
    admission = Admission(AdmissionConfig(cache_tokens=640, page_tokens=64))
    admission.admit("a", "p", BlockRange(0, 2), 65, 0.0)
    assert admission.free_tokens == 640 - 2 * 128
    with pytest.raises(Refused, match="full"):
        admission.admit("b", "q", BlockRange(0, 1), 385, 0.0)
    admission.admit("b", "q", BlockRange(0, 1), 384, 0.0)
    assert admission.free_tokens == 0


def full(mean_s: float, places: int, dice: Random) -> tuple[Admission, list[tuple[float, int]]]:
    """A server of one-token places that has been full for long; who ends when, and who it is."""
    admission = Admission(AdmissionConfig(cache_tokens=places))
    ends: list[tuple[float, int]] = []
    for number in range(20 * places):
        now = 0.0
        if number >= places:
            now, old = min(ends)
            ends.remove((now, old))
            admission.release(old, now)
        admission.admit(number, f"p{number}", BlockRange(0, 1), 1, now)
        ends.append((now + dice.expovariate(1 / mean_s), number))
    return admission, sorted(ends)


@pytest.mark.parametrize("mean_s", [8.0, 40.0, 200.0])
def test_whoever_comes_back_when_told_soon_finds_room_and_not_long_after_it_came(
    mean_s: float,
) -> None:
    """With eight places one ends each eighth of a holding: the hint is of that order, whatever a
    lease may last."""
    dice = Random(3)
    hints, tries = [], 0
    for _ in range(50):
        admission, ends = full(mean_s, 8, dice)
        now = max(0.0, ends[0][0] - mean_s / 8)
        while True:
            tries += 1
            for at, number in [one for one in ends if one[0] <= now]:
                admission.release(number, at)
                ends.remove((at, number))
            try:
                admission.admit("newcomer", "n", BlockRange(0, 1), 1, now)
                break
            except Refused as refusal:
                hints.append(refusal.retry_after_s)
                now += refusal.retry_after_s
    assert tries / 50 < 4
    assert mean_s / 8 / 3 < sum(hints) / len(hints) < 3 * mean_s / 8


def test_sessions_that_end_at_once_do_not_shorten_what_is_left_of_the_others() -> None:
    admission = Admission(AdmissionConfig(cache_tokens=2))
    admission.admit("held", "p", BlockRange(0, 1), 1, 0.0)
    for number in range(40):  # every fourth stays for 20 s, the others are opened in vain
        now = 20.0 * number
        admission.admit(number, "q", BlockRange(0, 1), 1, now)
        admission.release(number, now + (20.0 if number % 4 == 0 else 0.0))
    admission.admit("last", "q", BlockRange(0, 1), 1, 900.0)
    with pytest.raises(Refused) as refused:
        admission.admit("more", "r", BlockRange(0, 1), 1, 900.0)
    assert refused.value.retry_after_s == pytest.approx(20.0 / 2 / 2)  # half of 20 s, two leases


def test_before_any_session_has_ended_a_lease_is_thought_to_last_as_long_as_it_has() -> None:
    admission = Admission(AdmissionConfig(cache_tokens=1))
    admission.admit("a", "p", BlockRange(0, 1), 1, 100.0)
    for age_s in (0.0, 5.0, 1000.0):
        with pytest.raises(Refused) as refused:
            admission.admit("b", "q", BlockRange(0, 1), 1, 100.0 + age_s)
        hint_s = min(max(age_s, RETRY_SOONEST_S), RETRY_LATEST_S)
        assert refused.value.retry_after_s == hint_s


def test_a_part_is_kept_for_who_has_credit_while_one_of_them_is_there() -> None:
    there: set[str] = set()
    admission = Admission(AdmissionConfig(cache_tokens=100, peer_share=1.0), lambda: there)
    block = BlockRange(0, 1)
    admission.admit("a", "rider", block, 80, 0.0)
    admission.admit("b", "rider", block, 10, 0.0)
    there.add("giver")
    with pytest.raises(Refused, match="full") as refused:
        admission.admit("c", "rider", block, 10, 0.0)
    assert 0 < refused.value.retry_after_s <= 30
    admission.admit("d", "giver", block, 10, 0.0)
    admission.release("a", 1.0)
    admission.admit("e", "rider", block, 55, 1.0)
    with pytest.raises(Refused, match="full"):
        admission.admit("f", "other rider", block, 1, 1.0)
    admission.admit("g", "giver", block, 25, 1.0)
    for session in "bdeg":
        admission.release(session, 2.0)
    admission.admit("h", "rider", block, 100, 2.0)  # an empty cache is kept from nobody
