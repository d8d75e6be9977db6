"""Who is banned: on proof by anybody, on accusations only by whom they can convince."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from receipts import key
from testimonies import NOW, accusation, announced

from potluck.crypto.keys import IdentityKey
from potluck.dht.record import DOMAIN as RECORD
from potluck.errors import RemoteError
from potluck.swarm.banned import STRANGER, Acquaintance, Ban
from potluck.swarm.evidence import (
    ATTESTERS_MIN,
    BAN_S,
    BANNED_MAX,
    CASES_MAX,
    CASES_PER_ACCUSER,
    KEEP_S,
    KNOWN_MIN_S,
    PASSED_MAX,
    SETTLE_S,
    TRUST_MIN,
    TRUST_SUM_MIN,
    Attest,
    Blame,
    Effect,
    Evidence,
    Heard,
    Pass,
    Received,
    Recompute,
    Recomputed,
    Standing,
)
from potluck.swarm.machine import Fired, SetTimer
from potluck.swarm.receipt import Opening
from potluck.swarm.testimony import (
    Attestation,
    SignedAccusation,
    SignedAttestation,
    Verdict,
    check_accusation,
    contradiction_of,
    sign_accusation,
    sign_attestation,
)

ME, MALLORY, ALICE = key("me"), key("m"), key("a")
OTHERS = [key(f"other {n}") for n in range(12)]
WEEK = KNOWN_MIN_S


def trusted(*peers: IdentityKey, trust: float = 0.8) -> dict[str, Standing]:
    return {one.peer_id: Standing(trust, f"{n}.0/16", WEEK) for n, one in enumerate(peers)}


def machine(known: Mapping[str, Standing] | None = None) -> Evidence:
    return Evidence(ME.peer_id, lambda peer, _: (known or {}).get(peer))


def nobody_known(peer: str, opening: Opening) -> Standing | None:
    return None


def accused(by: IdentityKey = ALICE, *, now: float = NOW, gave: bytes = b"gave") -> Received:
    return Received(sign_accusation(by, accusation(MALLORY, now=now, gave=gave)))


def id_of(event: Received) -> bytes:
    assert isinstance(event.item, SignedAccusation)
    return check_accusation(event.item).id


def says(who: IdentityKey, event: Received, verdict: Verdict, now: float = NOW) -> Received:
    return Received(sign_attestation(who, Attestation(id_of(event), verdict, now)))


def settle(one: Evidence, event: Received) -> list[Effect]:
    return one.handle(Fired(("settle", id_of(event))), NOW + SETTLE_S)


def of(kind: type[Effect], effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, kind)]


# ---- class A


def test_a_proof_bans_for_ever_and_is_passed_on_once() -> None:
    item = contradiction_of(RECORD, announced(MALLORY).raw, announced(MALLORY, stop=4).raw)
    one = machine()
    ban = Ban(MALLORY.peer_id, math.inf, "contradiction", item)
    assert one.handle(Received(item), NOW) == [ban, Pass(item)]
    assert one.banned(MALLORY.peer_id, NOW + 1e9)
    again = contradiction_of(RECORD, announced(MALLORY).raw, announced(MALLORY, stop=2).raw)
    assert one.handle(Received(again), NOW) == []
    other = machine()
    other.restore(one.bans(NOW), NOW)
    assert other.banned(MALLORY.peer_id, NOW + 1e9)


def test_what_proves_nothing_bans_nobody_and_costs_its_sender() -> None:
    one = machine()
    honest = contradiction_of(RECORD, announced(ALICE).raw, announced(ALICE, seq=2).raw)
    with pytest.raises(RemoteError):
        one.handle(Received(honest), NOW)
    assert not one.bans(NOW)


# ---- class B


def test_an_accusation_is_passed_on_and_computed_again_by_whoever_can() -> None:
    one, event = machine(), accused()
    passed, timer, compute = one.handle(event, NOW)
    assert passed == Pass(event.item)
    assert timer == SetTimer(("settle", id_of(event)), NOW + SETTLE_S)
    assert isinstance(compute, Recompute) and compute.case.told.accused == MALLORY.peer_id
    assert one.handle(event, NOW) == []


def test_our_own_finding_decides_whatever_others_say() -> None:
    known = trusted(*OTHERS)
    for verdict, banned in (("wrong", True), ("right", False)):
        one, event = machine(known), accused()
        one.handle(event, NOW)
        for other in OTHERS[:6]:
            one.handle(says(other, event, "right" if verdict == "wrong" else "wrong"), NOW)
        effects = one.handle(Recomputed(id_of(event), verdict), NOW)  # type: ignore[arg-type]
        assert Attest(Attestation(id_of(event), verdict, NOW)) in effects  # type: ignore[arg-type]
        assert one.banned(MALLORY.peer_id, NOW) == banned
        assert {Blame(other.peer_id) for other in OTHERS[:6]} <= set(of(Blame, effects))
        assert not of(Ban, settle(one, event))


def test_who_sees_less_is_not_blamed_for_it() -> None:
    """Of another class than the accused's: theirs, or ours. Before our own finding, and after."""
    known = trusted(ME, *OTHERS)
    coarse = {one: replace(known[one], alike=False) for one in known}
    them, us = OTHERS[0].peer_id, ME.peer_id
    for who, blamed in (((), True), ((them,), False), ((us,), False)):
        for early in (True, False):
            one, event = machine(known | {name: coarse[name] for name in who}), accused()
            one.handle(event, NOW)
            said = says(OTHERS[0], event, "right" if early else "wrong")
            found = Recomputed(id_of(event), "wrong" if early else "right")
            effects = [
                effect
                for what in ((said, found) if early else (found, said))
                for effect in one.handle(what, NOW)
            ]
            assert (Blame(them) in effects) == blamed


def test_what_others_found_is_hearsay_until_it_is_settled() -> None:
    """Of those who serve the blocks in its class; of nobody else, and nothing once we know."""
    coarse = OTHERS[2].peer_id
    known = trusted(ALICE, *OTHERS[:3])
    known[coarse] = replace(known[coarse], alike=False)
    one, event = machine(known), accused()
    peer, by = MALLORY.peer_id, OTHERS[0].peer_id
    assert of(Heard, one.handle(event, NOW)) == [Heard(peer, ALICE.peer_id, "wrong")]
    assert Heard(peer, by, "right") in one.handle(says(OTHERS[0], event, "right"), NOW)
    for number in (2, 5):  # of another class; a stranger
        assert not of(Heard, one.handle(says(OTHERS[number], event, "wrong"), NOW))
    settled = of(Heard, one.handle(Recomputed(id_of(event), "right"), NOW))
    assert {Heard(peer, ALICE.peer_id, None), Heard(peer, by, None)} <= set(settled)
    assert not of(Heard, one.handle(says(OTHERS[1], event, "wrong"), NOW))
    assert not of(Heard, machine().handle(accused(), NOW)), "a stranger accuses"


def test_a_ban_of_class_b_ends() -> None:
    one, event = machine(), accused()
    one.handle(event, NOW)
    one.handle(Recomputed(id_of(event), "wrong"), NOW)
    assert one.banned(MALLORY.peer_id, NOW + BAN_S - 1)
    assert not one.banned(MALLORY.peer_id, NOW + BAN_S) and one.bans(NOW + BAN_S) == ()


def test_nothing_sure_decides_nothing() -> None:
    one, event = machine(), accused()
    one.handle(event, NOW)
    assert one.handle(Recomputed(id_of(event), None), NOW) == []
    assert one.handle(Recomputed(bytes(32), "wrong"), NOW) == []


def test_the_second_refuted_accusation_bans_its_accuser_and_one_counts_but_once() -> None:
    one, first = machine(), accused()
    one.handle(first, NOW)
    assert one.handle(Recomputed(id_of(first), "right"), NOW)[1:] == [Blame(ALICE.peer_id)]
    assert one.handle(first, NOW) == []
    assert one.handle(Recomputed(id_of(first), "right"), NOW) == []
    second = accused(gave=b"other")
    one.handle(second, NOW)
    (ban,) = of(Ban, one.handle(Recomputed(id_of(second), "right"), NOW))
    assert isinstance(ban, Ban) and (ban.peer, ban.grounds) == (ALICE.peer_id, "false accusations")
    assert not one.banned(MALLORY.peer_id, NOW)


voice = st.tuples(
    st.integers(0, 11),
    st.sampled_from(["wrong", "right"]),
    st.sampled_from([0.3, 0.5, 0.7, 0.9]),
    st.integers(0, 4),  # networks
    st.sampled_from([WEEK - 1, WEEK]),
    st.booleans(),  # whether it serves the blocks
)


@settings(deadline=None, max_examples=60)
@given(st.lists(voice, max_size=12, unique_by=lambda item: item[0]))
def test_others_are_believed_by_the_rule_and_no_sooner(
    voices: list[tuple[int, Verdict, float, int, float, bool]],
) -> None:
    """Against the rule, written out plainly."""
    known = {
        OTHERS[n].peer_id: Standing(trust, f"{network}", known_s)
        for n, _, trust, network, known_s, is_known in voices
        if is_known
    }
    one, event = machine(known), accused()
    one.handle(event, NOW)
    effects: list[Effect] = []
    for n, verdict, *_ in voices:
        effects += one.handle(says(OTHERS[n], event, verdict), NOW)
    assert not of(Ban, effects)  # others have the time to object
    effects = settle(one, event)

    def side(wanted: str) -> tuple[int, float]:
        best: dict[int, float] = {}
        for _, verdict, trust, network, known_s, is_known in voices:
            if verdict == wanted and is_known and trust >= TRUST_MIN and known_s >= WEEK:
                best[network] = max(best.get(network, 0), trust)
        return len(best), sum(best.values())

    def wins(wanted: str, other: str) -> bool:
        count, trust = side(wanted)
        enough = count >= ATTESTERS_MIN and trust >= TRUST_SUM_MIN
        return enough and not any(v == other and is_known for _, v, *_, is_known in voices)

    assert one.banned(MALLORY.peer_id, NOW) == wins("wrong", "right")
    assert (Blame(ALICE.peer_id) in effects) == wins("right", "wrong")


def test_voices_that_come_late_are_still_heard() -> None:
    one, event = machine(trusted(*OTHERS)), accused()
    one.handle(event, NOW)
    assert settle(one, event) == []
    for other in OTHERS[:2]:
        assert not of(Ban, one.handle(says(other, event, "wrong"), NOW + SETTLE_S))
    assert of(Ban, one.handle(says(OTHERS[2], event, "wrong"), NOW + SETTLE_S))


def test_the_first_word_of_an_attester_counts_and_the_accused_has_none() -> None:
    one, event = machine(trusted(*OTHERS, MALLORY, ALICE)), accused()
    one.handle(event, NOW)
    assert one.handle(says(MALLORY, event, "right"), NOW) == []
    assert one.handle(says(ALICE, event, "right"), NOW) == []
    assert one.handle(says(OTHERS[0], event, "right"), NOW) != []
    assert one.handle(says(OTHERS[0], event, "wrong"), NOW) == []


def test_we_do_not_ban_ourselves_whoever_says_so() -> None:
    known = trusted(*OTHERS)
    one = Evidence(MALLORY.peer_id, lambda peer, _: known.get(peer))
    event = accused()
    assert not of(Recompute, one.handle(event, NOW))
    for other in OTHERS:
        one.handle(says(other, event, "wrong"), NOW)
    assert not of(Ban, settle(one, event)) and not one.bans(NOW)
    item = contradiction_of(RECORD, announced(MALLORY).raw, announced(MALLORY, stop=4).raw)
    assert one.handle(Received(item), NOW) == []


# ---- limits


def test_an_accuser_has_so_many_cases_and_all_have_so_many() -> None:
    one = machine()
    for n in range(2 * CASES_PER_ACCUSER):
        one.handle(accused(gave=bytes([n])), NOW)
    assert one.open_cases() == CASES_PER_ACCUSER


def test_when_all_is_full_the_accuser_that_is_trusted_least_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert CASES_MAX == 512
    monkeypatch.setattr("potluck.swarm.evidence.CASES_MAX", 5)
    one = machine(trusted(ALICE))
    for n, stranger in enumerate(OTHERS):
        effects = one.handle(accused(stranger), NOW)
        assert bool(effects) == (n < 5)
    assert one.handle(accused(ALICE), NOW) != []
    assert one.open_cases() == 5


def test_strangers_words_are_passed_on_so_often_and_count_for_nothing() -> None:
    one, event = machine(), accused()
    one.handle(event, NOW)
    strangers = [key(f"stranger {n}") for n in range(PASSED_MAX + 5)]
    passed = [len(one.handle(says(other, event, "wrong"), NOW)) for other in strangers]
    assert passed == [1] * PASSED_MAX + [0] * 5
    assert len(one.handle(says(OTHERS[0], event, "right"), NOW)) == 1  # the other side has room
    assert settle(one, event) == []


def test_what_is_old_is_not_opened_and_what_is_of_the_future_costs_its_sender() -> None:
    one = machine()
    assert one.handle(accused(), NOW + KEEP_S) == []
    with pytest.raises(RemoteError, match="future"):
        one.handle(accused(now=NOW + 100), NOW)
    one.handle(accused(), NOW)
    assert one.open_cases() == 1
    one.handle(accused(now=NOW + KEEP_S, gave=b"new"), NOW + KEEP_S)
    assert one.open_cases() == 1  # the first is forgotten


def test_bans_are_bounded_and_those_of_strangers_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert BANNED_MAX == 16_384
    monkeypatch.setattr("potluck.swarm.evidence.BANNED_MAX", 3)
    met = {MALLORY.peer_id: Acquaintance(1.0)}
    one, event = Evidence(ME.peer_id, nobody_known, lambda peer: met.get(peer, STRANGER)), accused()
    one.handle(event, NOW)
    one.handle(Recomputed(id_of(event), "wrong"), NOW)
    for other in OTHERS[:4]:
        records = announced(other).raw, announced(other, stop=4).raw
        one.handle(Received(contradiction_of(RECORD, *records)), NOW)
    left = [MALLORY.peer_id, *(other.peer_id for other in OTHERS[2:4])]
    assert [ban.peer for ban in one.bans(NOW)] == left


@settings(deadline=None, max_examples=100)
@given(st.randoms(use_true_random=False))
def test_no_item_with_a_changed_bit_has_any_effect(dice: Random) -> None:
    event = accused()
    assert isinstance(event.item, SignedAccusation)
    for raw in (event.item.raw, sign_attestation(ALICE, Attestation(bytes(32), "right", NOW)).raw):
        changed = bytearray(raw)
        changed[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
        for kind in (SignedAccusation, SignedAttestation):
            one = machine()
            with pytest.raises(RemoteError):
                one.handle(Received(replace(kind(b""), raw=bytes(changed))), NOW)
            assert not one.open_cases()


def test_only_those_who_serve_the_blocks_in_question_have_a_voice() -> None:
    known = trusted(*OTHERS[:4])
    asked: list[tuple[int, int]] = []

    def standing(peer: str, opening: Opening) -> Standing | None:
        asked.append((opening.start, opening.stop))
        return known.get(peer)

    one, event = Evidence(ME.peer_id, standing), accused()
    one.handle(event, NOW)
    for other in OTHERS[4:]:
        one.handle(says(other, event, "wrong"), NOW)
    assert settle(one, event) == [] and set(asked) == {(0, 2)}


def test_the_accusers_own_word_does_not_save_it() -> None:
    one, event = machine(trusted(ALICE, *OTHERS)), accused()
    one.handle(event, NOW)
    for other in OTHERS[:ATTESTERS_MIN]:
        one.handle(says(other, event, "right"), NOW)
    assert of(Blame, settle(one, event)) == [Blame(ALICE.peer_id)]
