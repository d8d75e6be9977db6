"""Audits: which work is drawn, what a difference means, and who is believed."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from itertools import accumulate
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from receipts import session

from potluck.swarm.audit import (
    ARBITERS_MAX,
    CERTAIN,
    TRUST_MOST,
    AuditConfig,
    Canaries,
    Dispute,
    Known,
    Lots,
    Signed,
    choose_auditor,
    draw,
    draw_whole,
    judge,
    limit_from,
    look_chance,
    rate,
    signed_by,
)
from potluck.swarm.tolerance import EXACT, Tolerance

CONFIG = AuditConfig()
LOTS = Lots(b"k" * 32)


def signed(number: int, peer: str = "p") -> Signed:
    return Signed(peer, number.to_bytes(32), number, 32, 32)


# ---- which


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_the_rate_is_boincs_with_a_floor(valid: int, trust: float) -> None:
    found = rate(valid, trust, CONFIG)
    assert CONFIG.floor <= found <= 1
    if valid < 10:
        assert found == 1
    else:
        assert found == max(0.02, 5 / valid) + (0.05 if trust < 0.8 else 0)
    assert rate(valid + 1, trust, CONFIG) <= found


def test_lots_fall_evenly_always_the_same_and_differently_for_each_key() -> None:
    names = [number.to_bytes(32) for number in range(4000)]
    mine = [LOTS.draw("chunk", name) for name in names]
    assert mine == [Lots(b"k" * 32).draw("chunk", name) for name in names]
    assert all(0 <= lot < 1 for lot in mine)
    for limit in (0.02, 0.05, 0.5):  # four deviations of a binomial
        drawn = sum(lot < limit for lot in mine)
        assert abs(drawn - 4000 * limit) < 4 * math.sqrt(4000 * limit)
    theirs = [Lots(b"l" * 32).draw("chunk", name) for name in names]
    other = [LOTS.draw("way", name) for name in names]
    for foreign in (theirs, other):
        both = sum(a < 0.5 and b < 0.5 for a, b in zip(mine, foreign, strict=True))
        assert abs(both - 1000) < 4 * math.sqrt(750)


def test_the_drawn_are_of_their_rate_and_of_the_known_a_fifth_are_canaries() -> None:
    chunks = [signed(number, "old" if number % 2 else "new") for number in range(8000)]
    drawn = draw(chunks, LOTS, lambda peer: 1.0 if peer == "new" else 0.2, CONFIG, canaries=True)
    assert sum(one.signed.peer == "new" for one in drawn) == 4000
    old = [one for one in drawn if one.signed.peer == "old"]
    assert abs(len(old) - 400) < 4 * math.sqrt(400)  # half the rate: they begin their sessions
    assert abs(sum(one.canary for one in old) / len(old) - 0.2) < 0.08  # four deviations
    assert not any(one.canary for one in drawn if one.signed.peer == "new")
    assert not any(one.canary for one in draw(chunks, LOTS, lambda _: 1.0, CONFIG))


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=80), st.floats(0.001, 0.999))
def test_of_a_known_peers_tokens_its_rate_is_computed_again_in_sessions_of_any_length(
    chunks: list[int], share: float
) -> None:
    """A look computes all tokens up to its chunk, one at a whole session all of them."""
    looks = sum(
        look_chance(share, tokens, stop, CONFIG) * stop
        for tokens, stop in zip(chunks, accumulate(chunks), strict=True)
    )
    wholes = share * CONFIG.whole_share * sum(chunks)
    assert looks + wholes == pytest.approx(share * sum(chunks))
    assert look_chance(1.0, chunks[-1], sum(chunks), CONFIG) == 1, "of a stranger, each chunk"


def test_whole_sessions_are_drawn_by_half_the_rate_and_all_of_a_stranger() -> None:
    openings = [number.to_bytes(32) for number in range(8000)]
    for share, drawn in ((0.2, 800), (0.02, 80)):
        count = sum(draw_whole(name, share, LOTS, CONFIG) for name in openings)
        assert abs(count - drawn) < 4 * math.sqrt(drawn)
    assert all(draw_whole(name, 1.0, LOTS, CONFIG) for name in openings)


def test_chunks_are_drawn_by_the_names_of_their_receipts() -> None:
    (stage,) = session("a", [32, 32, 5])
    found = signed_by(stage.account, 1)
    assert [(one.place, one.tokens, one.stop) for one in found] == [(1, 32, 64), (2, 5, 69)]
    assert [one.name for one in found] == stage.account.names[2:]
    assert stage.account.chunks[2].prev == found[0].name


def test_an_auditor_is_drawn_from_our_own_sample_and_never_the_accused() -> None:
    peers = [f"p{i}" for i in range(5)]
    chosen = [
        choose_auditor(peers, LOTS, number.to_bytes(32), avoid=["p0"]) for number in range(400)
    ]
    assert set(chosen) == {"p1", "p2", "p3", "p4"}
    assert min(chosen.count(peer) for peer in peers[1:]) > 60  # of 100 each; four deviations
    assert choose_auditor(["p0"], LOTS, bytes(32), avoid=["p0"]) is None
    again = [choose_auditor(peers, LOTS, bytes(32), avoid=[], turn=turn) for turn in range(40)]
    assert len(set(again)) > 1


def test_neither_many_names_in_one_network_nor_many_networks_of_few_drive_out_the_honest() -> None:
    """Of 600 draws, each give or take 12: five honest peers beside a hundred names in a /24 are
    asked in 5 / 6 of one half and 5 / 105 of the other, 264; forty of one /24 beside twenty liars
    who say that they are of twenty /8s, in 1 / 21 and 40 / 60, 214."""
    apart = {f"honest {n}": (f"{n}/8", f"{n}.1/16", f"{n}.1.1/24") for n in range(5)}
    crowd = {f"name {n}": ("9/8", "9.9/16", "9.9.9/24") for n in range(100)}
    campus = {f"honest {n}": ("9/8", "9.9/16", "9.9.9/24") for n in range(40)}
    claimed = {f"name {n}": (f"{n + 20}/8", f"{n}/16", f"{n}/24") for n in range(20)}
    for honest, liars, asked in ((apart, crowd, 264), (campus, claimed, 214)):
        places = honest | liars
        found = [
            choose_auditor(places, LOTS, number.to_bytes(32), avoid=[], place_of=places.__getitem__)
            for number in range(600)
        ]
        assert sum(one in honest for one in found) == pytest.approx(asked, abs=50)
    alone = {f"name {n}": ("none", "none", "none") for n in range(9)}
    assert choose_auditor(alone, LOTS, bytes(32), avoid=[], place_of=alone.__getitem__) == (
        choose_auditor(alone, LOTS, bytes(32), avoid=[])
    )


# ---- what it means


@given(st.lists(st.floats(0, 1), min_size=16, max_size=64), st.floats(1e-6, 0.2))
def test_the_rule_is_a_median_and_a_worst(errors: list[float], limit: float) -> None:
    ordered = sorted(errors)
    half = len(ordered) // 2
    middle = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
    right = middle <= limit and ordered[-1] <= 4 * limit
    assert judge(errors, Tolerance(limit)).verdict == ("right" if right else "wrong")


def test_in_an_exact_class_one_bit_is_too_much() -> None:
    assert judge([0.0] * 32, EXACT).verdict == "right"
    assert judge([0.0] * 31 + [1e-9], EXACT).verdict == "wrong"
    assert judge([1e-9], EXACT).verdict == "wrong"


def test_what_cannot_be_judged_is_left_open() -> None:
    assert judge([0.5] * 15, Tolerance(0.03)).verdict == "open"
    assert judge([0.01] * 3, Tolerance(0.03)).verdict == "right"
    assert judge([], EXACT).verdict == "open"
    assert judge([9.0] * 32, None).verdict == "open"
    assert judge([math.nan] * 32, Tolerance(0.03)).verdict == "wrong"
    assert judge([0.0] * 31 + [math.nan], EXACT).verdict == "wrong"


def test_a_limit_is_twice_what_nearly_all_of_the_honest_need() -> None:
    assert limit_from([[number / 1000] * 32 for number in range(1000)]) == pytest.approx(2 * 0.999)
    assert limit_from([[0.0] * 32] * 50) == 0.0
    assert limit_from([[0.0] * 31 + [0.4]]) == pytest.approx(2 * 0.1)


@example(honest=[[0.0] * 15 + [5e-324]])
@given(
    honest=st.lists(st.lists(st.floats(0, 0.4), min_size=16, max_size=40), min_size=1, max_size=30)
)
def test_no_chunk_that_a_limit_was_made_of_is_wrong(honest: list[list[float]]) -> None:
    """Nor any that is twice as far off: fewer than a thousand are all needed."""
    limit = limit_from(honest)
    for chunk in honest:
        assert judge(chunk, Tolerance(limit)).verdict == "right"
        assert judge([2 * error for error in chunk], Tolerance(limit)).verdict == "right"


# ---- who is believed


def posterior(answers: dict[str, str], chance: dict[str, float]) -> dict[str, float]:
    """By every assignment of honest and lying to the peers: the honest gave one answer, the liars
    another. What remains are the assignments that may be; of each answer, whether it is right."""
    weights: dict[str, float] = {}
    peers = sorted(answers)
    for honest in itertools.product((True, False), repeat=len(peers)):
        told = {answers[peer] for peer, good in zip(peers, honest, strict=True) if good}
        lies = {answers[peer] for peer, good in zip(peers, honest, strict=True) if not good}
        if len(told) > 1 or told & lies:
            continue
        key = told.pop() if told else "none"
        weight = math.prod(
            chance[peer] if good else 1 - chance[peer]
            for peer, good in zip(peers, honest, strict=True)
        )
        weights[key] = weights.get(key, 0.0) + weight
    total = sum(weights.values())
    return {key: weight / total for key, weight in weights.items()}


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.floats(0.02, 0.98)), min_size=2, max_size=7))
def test_the_believed_are_as_bayes_has_it(told: list[tuple[str, float]]) -> None:
    answers = {f"p{i}": answer for i, (answer, _) in enumerate(told)}
    chance = {f"p{i}": min(trust, TRUST_MOST) for i, (_, trust) in enumerate(told)}
    dispute = Dispute("p0", "p1")
    for peer in list(answers)[2:]:
        dispute.add(peer)
    for one, other in itertools.combinations(answers, 2):
        if answers[one] == answers[other]:
            dispute.agree(one, other)
    found = dispute.outcome(chance.__getitem__)
    if len(set(answers.values())) == 1:
        assert (found.right, found.wrong, found.ask) == (tuple(answers), (), False)
        return
    beliefs = posterior(answers, chance)
    sure = [answer for answer in beliefs if answer != "none" and beliefs[answer] > CERTAIN + 1e-9]
    if sure:
        assert set(found.right) == {peer for peer in answers if answers[peer] == sure[0]}
        assert set(found.wrong) == set(answers) - set(found.right)
    elif all(belief < CERTAIN - 1e-9 for key, belief in beliefs.items() if key != "none"):
        assert (found.right, found.wrong) == ((), ())
        assert found.ask == (len(answers) < 2 + ARBITERS_MAX)
        counts = Counter(answers.values()).most_common()
        most = counts[0][0] if counts[0][1] > counts[1][1] else ""
        assert set(found.doubted) == {peer for peer in answers if answers[peer] != most}


def test_strangers_that_agree_convict_nobody() -> None:
    """Seven Sybils against one honest peer, none of them known."""
    dispute = Dispute("honest", "s0")
    for number in range(1, 7):
        dispute.add(f"s{number}")
        dispute.agree("s0", f"s{number}")
    assert dispute.outcome(lambda _: 0.5).wrong == ()
    assert not dispute.outcome(lambda _: 0.5).ask


def test_known_peers_convict_a_liar_and_a_false_accuser() -> None:
    trust = 0.93
    liar = Dispute("liar", "a0")
    accuser = Dispute("honest", "liar")
    for dispute, first in ((liar, "a0"), (accuser, "honest")):
        asked = 0
        while dispute.outcome(lambda _: trust).ask:
            asked += 1
            dispute.add(f"a{asked}")
            dispute.agree(first, f"a{asked}")
        found = dispute.outcome(lambda _: trust)
        assert found.wrong == ("liar",) and first in found.right
        assert asked <= 4


def test_our_own_computation_decides_at_once() -> None:
    dispute = Dispute("liar", "us")
    assert dispute.outcome(lambda _: 0.9, ours="us").wrong == ("liar",)
    assert dispute.outcome(lambda _: 0.9).ask


# ---- canaries


def test_known_answers_are_the_newest_and_all_are_asked_of_others() -> None:
    canaries = Canaries(most=4)
    dropped = [
        canaries.learn("m", "0:2", "none c1", Known(number.to_bytes(32), ("a", f"p{number}")))
        for number in range(6)
    ]
    assert dropped == [()] * 4 + [((0).to_bytes(32),), ((1).to_bytes(32),)]
    dice = Random(1)

    def picked(peer: str) -> set[bytes]:
        found = [
            canaries.pick("m", "0:2", "none c1", LOTS, dice.randbytes(32), peer) for _ in range(100)
        ]
        return {one.name for one in found if one}

    assert picked("b") == {number.to_bytes(32) for number in range(2, 6)}
    assert picked("p3") == {number.to_bytes(32) for number in (2, 4, 5)}
    assert picked("a") == set()
    assert canaries.pick("m", "2:4", "none c1", LOTS, bytes(32), "b") is None


def test_of_many_models_and_spans_the_newest_have_known_answers() -> None:
    canaries = Canaries(most=2, lines=2)
    dropped = [
        canaries.learn(model, "0:2", "none c1", Known(name, ("a",)))
        for model, name in (("m", b"1"), ("n", b"2"), ("m", b"3"), ("o", b"4"))
    ]
    assert dropped == [(), (), (), (b"2",)]
    assert canaries.pick("n", "0:2", "none c1", LOTS, bytes(32), "b") is None
