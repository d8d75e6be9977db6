"""Reputation: earned by audits alone, lost quickly, fading, and never above what we saw."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.crypto.codec import decode, encode
from potluck.swarm.reputation import (
    CONVICTED_S,
    HEARSAY_MOST,
    HOUR_S,
    WORDS_MAX,
    Book,
    Reputation,
    lower_of,
    mean_of,
)


def known(audits: int, *, wrong: int = 0, now: float = 0.0) -> Reputation:
    book = Reputation()
    for _ in range(audits):
        book.audited("p", right=True, weight=1, now=now)
    for _ in range(wrong):
        book.audited("p", right=False, weight=1, now=now)
    return book


def test_a_stranger_is_one_half_and_costs_double() -> None:
    book = Reputation()
    assert book.mean("p", 0.0) == 0.5
    assert book.trust("p", 0.0) == pytest.approx(0.5 - math.sqrt(0.25 / 3))
    assert book.cost_factor("p", 0.0) == 2 and not book.banned("p", 0.0)
    assert book.valid("p") == 0


@given(st.floats(0, 500), st.floats(0, 500), st.floats(0.01, 50))
def test_more_evidence_never_turns_the_wrong_way(good: float, bad: float, more: float) -> None:
    assert 0 <= lower_of(good, bad) <= mean_of(good, bad) <= 1
    assert mean_of(good + more, bad) > mean_of(good, bad) > mean_of(good, bad + more)
    assert lower_of(good, bad + more) <= lower_of(good, bad) + 1e-12
    if good >= bad:
        assert lower_of(good + more, bad) >= lower_of(good, bad) - 1e-12


def test_trust_is_earned_and_one_wrong_costs_ten() -> None:
    assert [round(known(n).trust("p", 0), 2) for n in (1, 10, 50)] == [0.43, 0.84, 0.96]
    assert known(50).cost_factor("p", 0) < 1.05
    fallen = known(10, wrong=1)
    assert fallen.mean("p", 0) == 0.5 and fallen.valid("p") == 0
    assert fallen.cost_factor("p", 0) == math.inf


@given(st.integers(1, 200), st.floats(0, 1000))
def test_evidence_fades_by_the_hour(audits: int, hours: float) -> None:
    book = known(audits)
    good = audits * 0.98**hours
    assert book.mean("p", hours * HOUR_S) == pytest.approx(mean_of(good, 0))
    assert book.mean("p", -5.0) == pytest.approx(mean_of(audits, 0))  # a clock set back


def test_a_conviction_bans_for_a_month_and_a_contradiction_for_good() -> None:
    book = known(100)
    book.convict("p", 0.0)
    assert book.banned("p", CONVICTED_S - 1) and not book.banned("p", CONVICTED_S)
    assert book.cost_factor("p", 1.0) == math.inf and book.valid("p") == 0
    book.convict("q", 0.0, for_good=True)
    book.convict("q", 0.0)
    assert book.banned("q", 1e10) and book.banned_peers(1e10) == ("q",)


def test_what_others_say_counts_little_and_only_from_whom_we_saw() -> None:
    book, words = Reputation(), []
    book.heard("p", "stranger", right=False, now=0)
    assert book.credence("p", 0) == book.trust("p", 0)
    for number in range(50):
        for _ in range(100):
            book.audited(f"known{number}", right=True, weight=1, now=0)
        book.heard("p", f"known{number}", right=False, now=0)
        words.append(book.credence("p", 0))
    assert words == sorted(words, reverse=True) and words[0] < book.trust("p", 0)
    assert words[-1] == pytest.approx(lower_of(0, HEARSAY_MOST))
    book.heard("p", "p", right=True, now=0)
    assert book.credence("p", 0) == pytest.approx(words[-1])
    assert book.valid("p") == 0  # so that all of its work is audited still


def test_hearsay_bars_nobody_convicts_nobody_and_makes_nobody_a_witness() -> None:
    """However many say it: it costs a stranger nothing, and who earned trust the tenth of it."""
    book = known(60)
    for number in range(50):
        witness = f"known{number}"
        for _ in range(100):
            book.audited(witness, right=True, weight=1, now=0)
        book.heard("p", witness, right=False, now=0)
        book.heard("q", witness, right=False, now=0)
        book.heard("r", witness, right=True, now=0)
    assert book.cost_factor("q", 0) == book.cost_factor("stranger", 0)
    assert book.cost_factor("p", 0) < 1.4
    assert book.mean("q", 0) == book.mean("r", 0) == 0.5
    assert book.trust("r", 0) == book.trust("stranger", 0)
    assert book.cost_factor("r", 0) < book.cost_factor("stranger", 0) and book.valid("r") == 0
    assert "r" not in book.earned(0)


def test_the_banned_are_not_listened_to_and_words_fade_and_are_taken_back() -> None:
    book = Reputation()
    for _ in range(20):
        book.audited("liar", right=True, weight=1, now=0)
    book.heard("p", "liar", right=False, now=0)
    first = book.credence("p", 0)
    day_s = 24 * 3600.0
    assert first < book.credence("p", day_s) < book.trust("p", 0)
    book.words.take_back("p", "liar")
    assert book.credence("p", 0) == book.trust("p", 0)
    book.heard("p", "liar", right=False, now=0)
    book.convict("liar", 0.0)
    assert book.credence("p", 0) == book.trust("p", 0)


def test_a_flood_of_words_forgets_the_oldest() -> None:
    book = Reputation()
    book.audited("known", right=True, weight=1, now=0)
    for number in range(WORDS_MAX + 7):
        book.heard(f"p{number}", "known", right=False, now=0)
    assert not book.words.of("p6") and book.words.of("p7")
    assert sum(bool(book.words.of(f"p{number}")) for number in range(WORDS_MAX + 7)) == WORDS_MAX


def test_a_dispute_left_open_is_a_small_doubt() -> None:
    book = Reputation()
    for _ in range(10):
        book.doubted("p", weight=1, now=0)
    assert book.mean("p", 0) == pytest.approx(mean_of(0, 5))
    assert not book.banned("p", 0)


def test_the_book_survives_a_restart() -> None:
    book = known(20)
    book.convict("q", 5.0)
    book.convict("r", 5.0, for_good=True)
    again = Reputation(decode(encode(book.keep(10.0)), Book))
    for peer in "pqrs":
        assert again.mean(peer, 99.0) == pytest.approx(book.mean(peer, 99.0))
        assert again.banned(peer, 99.0) == book.banned(peer, 99.0)
        assert again.valid(peer) == book.valid(peer)


def test_a_flood_of_bans_of_strangers_costs_nobody_his_score(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("potluck.swarm.reputation.PEERS_MAX", 30)
    monkeypatch.setattr("potluck.swarm.reputation.STRANGERS_MAX", 10)
    book = known(20)
    book.audited("liar", right=True, weight=1.0, now=0.0)
    book.convict("liar", 1.0, for_good=True)
    for number in range(200):
        book.convict(f"flood {number}", 2.0 + number, for_good=True)
        assert len(book._scores) <= 40
    for _ in range(2):  # as often as it is written
        book = Reputation(decode(encode(book.keep(300.0)), Book))
    assert book.mean("p", 300.0) > 0.5 and book.banned("liar", 300.0)
    assert book.banned_peers(300.0) == (
        "flood 190",
        *(f"flood {n}" for n in range(191, 200)),
        "liar",
    )
