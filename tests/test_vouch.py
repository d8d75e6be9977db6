"""A vouch and its protocol: what is believed of a statement, what its bytes are, what is stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from receipts import key

from potluck.crypto.codec import decode_any, encode
from potluck.crypto.envelope import sign
from potluck.dht.record import SKEW_MAX_S
from potluck.errors import RemoteError
from potluck.swarm.vouch import (
    DAY_S,
    DOMAIN,
    LETTER_BYTES_MAX,
    LIFE_MAX_S,
    TOLD_MAX,
    VOUCH_BYTES_MAX,
    Ask,
    Given,
    Told,
    Vouch,
    check_vouch,
    give,
    newer,
)
from potluck.swarm.vouching import (
    LIABLE_S,
    NEVER,
    STATEMENTS_MAX,
    VOUCHERS_MAX,
    Vouches,
)

NOW = 1_790_000_000.0
ALICE, BOB = key("alice"), key("bob")
GOLDEN = Path(__file__).parent / "golden" / "vouch.hex"


def word(
    voucher: str, peer: str, *, at: float = NOW, life: float = LIFE_MAX_S, revoked: bool = False
) -> Given:
    return give(key(voucher), Vouch(key(peer).peer_id, at, at + life, revoked))


def name(letter: str) -> str:
    return key(letter).peer_id


def nobody(peer: str) -> bool:
    return False


def test_the_bytes_of_each_message_are_as_written_down() -> None:
    given = word("alice", "bob", at=1000.0, life=DAY_S)
    back = word("alice", "bob", at=2000.0, revoked=True)
    told = [
        f"Vouch {given.raw.hex()}",
        f"Revocation {back.raw.hex()}",
        f"Ask {encode(Ask((ALICE.peer_id, BOB.peer_id))).hex()}",
        f"Told {encode(Told((given.raw,))).hex()}",
    ]
    assert told == GOLDEN.read_text(encoding="utf-8").splitlines()


def test_what_was_signed_is_read_and_an_answer_holds_all_that_may_stand_in_it() -> None:
    given = word("alice", "bob", revoked=True)
    assert check_vouch(given.raw, NOW) == given
    assert len(given.raw) <= VOUCH_BYTES_MAX
    assert len(encode(Told((bytes(VOUCH_BYTES_MAX),) * TOLD_MAX))) <= LETTER_BYTES_MAX


def _stretched() -> bytes:
    """As `encode` would write one that lives for too long, which no `Vouch` can."""
    body = encode(Vouch(BOB.peer_id, NOW, NOW + DAY_S))
    longer = encode(Vouch(BOB.peer_id, NOW + LIFE_MAX_S, NOW + LIFE_MAX_S + DAY_S))
    head, tail = b"expires_s\xcb", b"issued_s"
    assert head in body and tail in body
    cut = body.index(head) + len(head)
    where = longer.index(head) + len(head)
    return body[:cut] + longer[where : where + 8] + body[cut + 8 :]


FORGED: dict[str, Callable[[], bytes]] = {
    "of itself": lambda: word("alice", "alice").raw,
    "from the future": lambda: word("alice", "bob", at=NOW + 3 * SKEW_MAX_S).raw,
    "hours ahead": lambda: word("alice", "bob", at=NOW + 7200).raw,
    "a revocation from the future": lambda: word("a", "b", at=NOW + 9999, revoked=True).raw,
    "for too long": lambda: sign(ALICE, DOMAIN, _stretched()),
    "signed for another purpose": lambda: sign(
        ALICE, "record", encode(Vouch(BOB.peer_id, NOW, NOW + 1))
    ),
    "a name that is none": lambda: sign(
        ALICE, DOMAIN, encode(Vouch(BOB.peer_id, NOW, NOW + 1)).replace(b"12D3", b"12\xff3")
    ),
    "with more behind": lambda: word("alice", "bob").raw + b"\0",
    "oversized": lambda: bytes(VOUCH_BYTES_MAX + 1),
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("what", FORGED)
def test_what_no_honest_peer_signs_is_refused(what: str) -> None:
    with pytest.raises(RemoteError):
        check_vouch(FORGED[what](), NOW)


def test_any_bit_that_is_changed_is_noticed() -> None:
    raw = word("alice", "bob").raw
    for bit in range(8 * len(raw)):
        spoilt = bytearray(raw)
        spoilt[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RemoteError):
            check_vouch(bytes(spoilt), NOW)
    dice = Random(1)
    for _ in range(300):
        with pytest.raises(RemoteError):
            decode_any(dice.randbytes(dice.randrange(80)), (Ask, Told))


def test_the_newest_word_counts_and_what_was_taken_back_stays_so_when_it_is_shown_again() -> None:
    said, first = Vouches(), word("alice", "bob")
    back, again = word("alice", "bob", at=NOW + 1, revoked=True), word("alice", "bob", at=NOW + 2)
    assert said.put(first, NOW) and said.links(name("alice"), NOW) == [name("bob")]
    assert not said.put(first, NOW)
    assert said.put(back, NOW + 1) and said.links(name("alice"), NOW + 1) == []
    assert not said.put(first, NOW + 1) and said.links(name("alice"), NOW + 1) == []
    assert said.put(again, NOW + 2) and said.links(name("alice"), NOW + 2) == [name("bob")]
    assert newer(first, back) is newer(back, first) is back
    assert [one.raw for one in said.of(name("alice"))] == [again.raw]


def test_a_revocation_that_comes_first_is_kept_until_nothing_is_left_to_take_back() -> None:
    said, first = Vouches(), word("alice", "bob")
    assert said.put(word("alice", "bob", at=NOW + 1, revoked=True), NOW + 1)
    assert not said.put(first, NOW + 2)
    late = NOW + LIFE_MAX_S
    said.forget(late, [name("alice")])
    assert len(said) == 1
    said.forget(late + LIABLE_S + 2, [name("alice")])
    assert len(said) == 0
    assert not said.put(first, late + LIABLE_S + 2)  # it has run out by itself


def test_one_that_ran_out_counts_no_more_but_binds_for_a_while() -> None:
    said = Vouches()
    said.put(word("alice", "bob", life=DAY_S), NOW)
    assert said.links(name("alice"), NOW + DAY_S) == []
    for later, falls in ((0, True), (DAY_S + LIABLE_S - 1, True), (DAY_S + LIABLE_S, False)):
        assert said.fallen(name("alice"), NOW + later, name("bob").__eq__) is falls
        assert said.vouchers_of(name("bob"), NOW + later) == [name("alice")] * falls


def test_who_takes_back_answers_for_it_from_when_we_heard_whatever_date_it_bears() -> None:
    """Else whoever is about to be convicted would be let go by a word that looks old."""
    heard = NOW + 50 * DAY_S
    said = Vouches()
    said.put(word("alice", "bob"), NOW)
    said.put(word("alice", "bob", at=NOW + 1, revoked=True), heard)
    assert said.fallen(name("alice"), heard + LIABLE_S - 1, name("bob").__eq__)
    assert not said.fallen(name("alice"), heard + LIABLE_S, name("bob").__eq__)
    strange = Vouches()  # where it had never counted, its own date does
    strange.put(word("alice", "bob", at=NOW + 1, revoked=True), heard)
    assert not strange.fallen(name("alice"), heard, name("bob").__eq__)


def test_a_flood_of_one_and_of_many_stays_within_bounds_and_moves_no_word_that_binds() -> None:
    said = Vouches()
    said.put(word("alice", "liar"), NOW)
    taken = [said.put(word("alice", f"p {n}", at=NOW + n), NOW + n) for n in range(100)]
    assert sum(taken) == STATEMENTS_MAX - 1
    assert said.fallen(name("alice"), NOW, name("liar").__eq__)
    assert said.put(word("alice", "liar", at=NOW + 1, revoked=True), NOW + 1)  # it takes its place
    for n in range(VOUCHERS_MAX + 50):
        said.put(word(f"voucher {n}", "bob"), NOW)
    assert len(said._said) == VOUCHERS_MAX
    said.forget(NOW, [name("alice"), name("nobody")])
    assert set(said._said) == {name("alice")} and len(said) == STATEMENTS_MAX


def test_what_is_kept_on_disk_is_what_was_known() -> None:
    said, again = Vouches(), Vouches()
    said.put(word("alice", "bob"), NOW)
    said.put(word("alice", "bob", at=NOW + 1, revoked=True), NOW + 20)
    said.put(word("alice", "cat"), NOW)
    for one in said.keep().kept:
        again.put(check_vouch(one.raw, NOW + 21), NOW + 5 * DAY_S, ended_s=one.ended_s)
    assert again.keep() == said.keep()
    assert [one.ended_s for one in again.keep().kept] == [NOW + 20, NEVER]
