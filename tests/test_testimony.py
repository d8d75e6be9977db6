"""What one peer says against another: checked offline, and forged by nobody."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from receipts import key, opening
from testimonies import NOW, accusation, announced, chunk

from potluck.crypto.codec import decode_any, encode
from potluck.crypto.envelope import sign
from potluck.crypto.keys import IdentityKey
from potluck.dht.record import DOMAIN as RECORD
from potluck.dht.record import Record
from potluck.errors import RemoteError
from potluck.swarm.receipt import CHUNK, OPENING
from potluck.swarm.tally import accept, first_of, next_of, offer
from potluck.swarm.testimony import (
    ACCUSATION_BYTES_MAX,
    ATTESTATION_BYTES_MAX,
    ITEM_BYTES_MAX,
    ITEMS,
    TALLIES,
    Attestation,
    Contradiction,
    check_accusation,
    check_attestation,
    check_contradiction,
    contradiction_of,
    forks_of,
    sign_accusation,
    sign_attestation,
    suspect,
)

MALLORY, ALICE, BOB = key("m"), key("a"), key("b")


def lie() -> Contradiction:
    one, other = announced(MALLORY, stop=4).raw, announced(MALLORY, stop=8).raw
    return contradiction_of(RECORD, one, other)


def test_two_records_of_one_time_convict_their_signer() -> None:
    assert check_contradiction(lie()) == suspect(lie()) == MALLORY.peer_id
    assert len(encode(lie())) < 1600  # some 600 bytes for each record of a whole span


def test_two_chunks_after_the_same_one_convict_their_signer() -> None:
    forked = contradiction_of(CHUNK, chunk(MALLORY, gave=b"1"), chunk(MALLORY, gave=b"2"))
    assert check_contradiction(forked) == MALLORY.peer_id


def tally(gave: float, *, boot: int = 7, bobs: int = 7, by: IdentityKey = MALLORY) -> bytes:
    """The first of Mallory and Bob, which both signed; `by` offered it."""
    made = next_of(
        first_of(MALLORY.peer_id, BOB.peer_id), MALLORY.peer_id, boot=boot, their_boot=bobs,
        gave=gave, took=0.0, now=1.0, since=bytes(32),
    )  # fmt: skip
    return accept(BOB if by is MALLORY else MALLORY, offer(by, made))


@pytest.mark.parametrize("by", [MALLORY, BOB])
def test_two_tallies_for_one_place_convict_who_signed_both_and_nobody_else(
    by: IdentityKey,
) -> None:
    """Whoever of the two offered them. Bob signed each under a boot of its own, as a peer does
    whose disk was restored."""
    pair = tally(1.0), tally(2.0, bobs=8, by=by)
    [item] = forks_of(*pair)
    assert check_contradiction(item) == suspect(item) == MALLORY.peer_id
    assert forks_of(*reversed(pair)) == [item] and len(encode(item)) < ITEM_BYTES_MAX
    for domain in TALLIES:
        if domain != item.domain:
            with pytest.raises(RemoteError, match="does not contradict itself"):
                check_contradiction(replace(item, domain=domain))
    both = forks_of(tally(1.0), tally(2.0))
    assert {check_contradiction(one) for one in both} == {MALLORY.peer_id, BOB.peer_id}


def test_tallies_that_do_not_contradict_each_other_prove_nothing() -> None:
    one = tally(1.0)
    assert forks_of(one, one) == forks_of(one, tally(1.0, by=BOB)) == []
    assert forks_of(one, tally(2.0, boot=8, bobs=8)) == []
    for other in (tally(1.0, by=BOB), tally(2.0, boot=8, bobs=8), b"\xc1", one[:-1]):
        for domain in TALLIES:
            with pytest.raises(RemoteError):
                check_contradiction(contradiction_of(domain, one, other))
    half = offer(MALLORY, next_of(first_of(MALLORY.peer_id, BOB.peer_id), MALLORY.peer_id, boot=7,
                                  gave=2.0, took=0.0, now=1.0, since=bytes(32)))  # fmt: skip
    with pytest.raises(RemoteError):
        forks_of(one, half)  # what Bob never signed


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (announced(MALLORY), announced(MALLORY)),
        (announced(MALLORY), announced(MALLORY, seq=2, stop=4)),
        (announced(MALLORY), announced(MALLORY, boot=8, stop=4)),
        (announced(MALLORY), announced(MALLORY, model="cd" * 32)),
        (announced(MALLORY), announced(ALICE, stop=4)),
    ],
    ids=["the same", "another seq", "another boot", "another place", "another peer"],
)
def test_records_that_do_not_contradict_each_other_prove_nothing(
    one: Record, other: Record
) -> None:
    with pytest.raises(RemoteError):
        check_contradiction(contradiction_of(RECORD, one.raw, other.raw))


def test_one_statement_signed_twice_is_no_contradiction() -> None:
    """Whatever a signature's own bytes: what counts is what was said."""
    with pytest.raises(RemoteError):
        check_contradiction(contradiction_of(CHUNK, chunk(MALLORY), chunk(MALLORY)))


def test_a_contradiction_has_one_form_and_a_known_kind() -> None:
    item = lie()
    for other in (
        Contradiction(item.domain, item.other, item.one),
        replace(item, domain=CHUNK),
        replace(item, domain="answer"),
    ):
        with pytest.raises(RemoteError):
            check_contradiction(other)
    assert decode_any(encode(item), ITEMS, max_bytes=ITEM_BYTES_MAX) == item


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**31), st.integers(0, 7))
def test_no_changed_bit_of_a_contradiction_convicts_anybody(place: int, bit: int) -> None:
    raw = bytearray(encode(lie()))
    raw[place % len(raw)] ^= 1 << bit
    with pytest.raises(RemoteError):
        check_contradiction(decode_any(bytes(raw), ITEMS, max_bytes=ITEM_BYTES_MAX))


def test_an_accusation_is_what_the_accused_signed_and_the_accuser_answers_for() -> None:
    told = accusation(MALLORY)
    case = check_accusation(sign_accusation(ALICE, told))
    assert (case.accuser, case.told) == (ALICE.peer_id, told)
    assert case.id != check_accusation(sign_accusation(BOB, replace(told, error=0.2))).id
    assert len(sign_accusation(ALICE, told).raw) < ACCUSATION_BYTES_MAX


@pytest.mark.parametrize(
    "change",
    [
        {"accused": BOB.peer_id},
        {"chunk": chunk(BOB)},
        {"opening": sign(BOB, OPENING, encode(opening(0, 2)))},
        {"chunk": sign(MALLORY, CHUNK, b"")},
        {"chunk": sign(MALLORY, RECORD, b"")},
    ],
)
def test_nobody_is_accused_of_what_it_did_not_sign(change: dict[str, object]) -> None:
    told = replace(accusation(MALLORY), **change)  # type: ignore[arg-type]
    with pytest.raises(RemoteError):
        check_accusation(sign_accusation(ALICE, told))


def test_nobody_accuses_itself() -> None:
    with pytest.raises(RemoteError, match="itself"):
        check_accusation(sign_accusation(MALLORY, accusation(MALLORY)))


def test_an_attestation_names_its_signer() -> None:
    told = Attestation(bytes(32), "right", NOW)
    item = sign_attestation(ALICE, told)
    assert check_attestation(item) == (ALICE.peer_id, told)
    assert len(item.raw) <= ATTESTATION_BYTES_MAX
    raw = bytearray(item.raw)
    raw[Random(1).randrange(len(raw))] ^= 1
    with pytest.raises(RemoteError):
        check_attestation(replace(item, raw=bytes(raw)))
