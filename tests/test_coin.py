"""One number that nobody chooses, whatever is revealed, in whatever order, and by whom not."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b

from hypothesis import given
from hypothesis import strategies as st

from potluck.swarm.run.coin import Secret, Toss, batch_seed, commitment, direction_seed, elect

PLACE = b"here"
words = st.binary(min_size=32, max_size=32)
secrets = st.builds(Secret, words, words)
crowds = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), secrets, min_size=1)


def tossed(found: dict[str, Secret], place: bytes = PLACE) -> Toss:
    toss = Toss(place, list(found))
    for peer, secret in found.items():
        toss.commit(peer, commitment(place, peer, secret))
    return toss


def number(found: dict[str, Secret], place: bytes = PLACE) -> bytes:
    toss = tossed(found, place)
    assert all(toss.reveal(peer, secret) for peer, secret in found.items())
    drawn = toss.number()
    assert drawn is not None
    return drawn


@given(crowds, st.randoms(use_true_random=False))
def test_the_number_is_the_same_in_whatever_order_it_is_revealed(
    found: dict[str, Secret], dice: st.DataObject
) -> None:
    peers = list(found)
    dice.shuffle(peers)  # type: ignore[attr-defined]
    assert number({peer: found[peer] for peer in peers}) == number(found)


@given(crowds, words)
def test_no_other_secret_opens_a_commitment(found: dict[str, Secret], other: bytes) -> None:
    toss, peer = tossed(found), min(found)
    if other not in (found[peer].value, found[peer].salt):
        assert not toss.reveal(peer, Secret(other, found[peer].salt))
        assert not toss.reveal(peer, Secret(found[peer].value, other))
    assert peer in toss.missing() and toss.number() is None


@given(secrets)
def test_a_copied_commitment_opens_for_nobody_else(secret: Secret) -> None:
    toss = Toss(PLACE, ["honest", "thief"])
    copied = commitment(PLACE, "honest", secret)
    toss.commit("honest", copied)
    toss.commit("thief", copied)
    assert toss.reveal("honest", secret)
    assert not toss.reveal("thief", secret)


@given(crowds, words, words)
def test_any_one_value_moves_the_number(
    found: dict[str, Secret], value: bytes, salt: bytes
) -> None:
    """XOR with the others' is one to one: while a single value is random, so is the number."""
    peer = min(found)
    changed = {**found, peer: Secret(value, salt)}
    assert (number(changed) == number(found)) == (value == found[peer].value)


@given(crowds)
def test_nothing_is_revealed_before_all_have_committed(found: dict[str, Secret]) -> None:
    toss = Toss(PLACE, [*found, "late"])
    for peer, secret in found.items():
        toss.commit(peer, commitment(PLACE, peer, secret))
        assert not toss.reveal(peer, secret)
    assert toss.number() is None


@given(crowds, secrets)
def test_who_does_not_reveal_is_known_and_the_draw_goes_on_in_another_place(
    found: dict[str, Secret], silent: Secret
) -> None:
    toss = tossed({**found, "silent": silent})
    assert all(toss.reveal(peer, secret) for peer, secret in found.items())
    assert toss.missing() == ("silent",)
    assert toss.number() is None
    assert number(found, b"again") != number(found)


@given(st.sets(st.text("abcdefgh", min_size=1, max_size=3)), words, st.integers(0, 8))
def test_nobody_checks_itself_or_has_two_parts(found: set[str], coin: bytes, pairs: int) -> None:
    elected = elect(coin, sorted(found), pairs)
    seats = [peer for pair in elected for peer in pair]
    assert len(elected) == min(pairs, len(found) // 2)
    assert len(set(seats)) == len(seats) and set(seats) <= found
    assert elect(coin, sorted(found, reverse=True), pairs) == elected


def test_each_pair_is_drawn_as_often_as_any_other() -> None:
    """4 members, 12 ordered pairs, 6,000 draws: 500 each, whose deviation is 21.4; five of them."""
    members = ["a", "b", "c", "d"]
    coins = (blake2b(bytes((at // 256, at % 256)), digest_size=32).digest() for at in range(6000))
    drawn = Counter(elect(coin, members, 1)[0] for coin in coins)
    assert len(drawn) == 12
    assert all(abs(count - 500) < 5 * 21.4 for count in drawn.values())


@given(words)
def test_seeds_of_different_peers_and_parts_differ(coin: bytes) -> None:
    found = [batch_seed(coin, peer) for peer in "abc"] + [direction_seed(coin, at) for at in (0, 1)]
    assert len(set(found)) == len(found)
