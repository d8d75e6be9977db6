"""Admission: the book balances, nobody takes all, and a refusal says when to return."""

from __future__ import annotations

import math

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
            admission.release(key)
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
    admission.release("a")
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
