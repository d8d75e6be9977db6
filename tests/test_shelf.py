"""What a peer keeps for others: the newest of each, within bounds that nobody can aim at."""

import random
from collections.abc import Iterable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.crypto.digest import digest
from potluck.crypto.keys import IdentityKey
from potluck.dht.keyspace import MODELS, Slot, distance, peer_point
from potluck.dht.message import HAVE_BYTES
from potluck.dht.network import NOWHERE, PER_NETWORK, Prefixes, prefixes_of
from potluck.dht.reading import Checker, Reader, Reading
from potluck.dht.record import ModelList, Record, Stale, sign_fact
from potluck.dht.shelf import ENTRY_BYTES, PEER_PLACES_MAX, PLACE_RECORDS_MAX, Limits, Shelf
from potluck.errors import Refused, RemoteError

NOW = 1_790_000_000.0
ALICE, BOB = (IdentityKey.from_bytes(bytes([n]) * 32) for n in (1, 2))


def kept(peer: str, *, place: bytes = MODELS, seq: int = 1, size: int = 500) -> Record:
    """A record as the shelf sees it: checked before."""
    name = peer.encode() + place + bytes([seq])
    raw = name.ljust(size, b".")
    return Record("test", Slot(place, peer), 1, seq, NOW, NOW + 90, b"", raw, digest("test", name))


def at(shelf: Shelf, place: bytes = MODELS, now: float = NOW) -> set[str]:
    return {record.slot.peer for record in shelf.at(place, now)}


@given(st.permutations(range(1, 7)))
def test_only_the_newest_of_a_slot_is_kept(seqs: list[int]) -> None:
    shelf = Shelf("me", salt=b"s")
    for seq in seqs:
        shelf.put(kept("alice", seq=seq))
    (record,) = shelf.at(MODELS, NOW)
    assert record.seq == 6 and len(shelf) == 1
    assert shelf.bytes_held == 500 + ENTRY_BYTES


def test_what_has_expired_is_not_told_and_then_forgotten() -> None:
    shelf = Shelf("me", salt=b"s")
    shelf.put(kept("alice"))
    assert at(shelf, now=NOW + 89.9) and not at(shelf, now=NOW + 90)
    shelf.forget_expired(NOW + 90)
    assert len(shelf) == shelf.bytes_held == 0


def test_a_full_place_keeps_a_sample_that_differs_from_keeper_to_keeper() -> None:
    """1,000 want into 256 seats, ours is kept besides; two keepers share about a quarter."""
    peers = [f"peer{n}" for n in range(1000)]
    samples = []
    for salt in (b"one", b"two"):
        shelf = Shelf("me", salt=salt)
        shelf.put(kept("me"))
        refused = 0
        for peer in peers:
            try:
                shelf.put(kept(peer))
            except Refused:
                refused += 1
        assert refused > 0 and len(shelf) == PLACE_RECORDS_MAX + 1 and "me" in at(shelf)
        samples.append(at(shelf))
    assert 30 < len(samples[0] & samples[1]) < 110  # 256 * 256 / 1000 = 66


def test_one_peer_fills_so_many_places_and_no_more() -> None:
    shelf = Shelf("me", salt=b"s")
    for n in range(PEER_PLACES_MAX):
        shelf.put(kept("mallory", place=bytes([n]) * 32))
    with pytest.raises(Refused):
        shelf.put(kept("mallory", place=b"x" * 32))
    shelf.put(kept("mallory", place=bytes(32), seq=2))  # a newer one of an old place
    shelf.put(kept("alice", place=b"x" * 32))


def test_a_full_shelf_gives_up_what_is_farthest_from_us() -> None:
    dice = random.Random(1)
    places = sorted(
        (dice.randbytes(32) for _ in range(40)), key=lambda place: distance(place, peer_point("me"))
    )
    shelf = Shelf("me", salt=b"s", limits=Limits(bytes_max=20 * (500 + ENTRY_BYTES)))
    for n, place in enumerate(dice.sample(places, 40)):
        try:
            shelf.put(kept(f"peer{n}", place=place))
        except Refused:
            assert place in places[20:]
        assert shelf.bytes_held <= 20 * (500 + ENTRY_BYTES)
    assert all(at(shelf, place) for place in places[:20])


def test_what_the_reader_has_is_not_sent_again_and_answers_are_bounded() -> None:
    shelf = Shelf("me", salt=b"s")
    for n in range(30):
        shelf.put(kept(f"peer{n}"))
    some = list(shelf.at(MODELS, NOW, bytes_max=5200))
    assert len(some) == 10  # of 508 bytes each
    have = b"".join(record.digest[:HAVE_BYTES] for record in some)
    rest = list(shelf.at(MODELS, NOW, have=have))
    assert len(rest) == 20 and not {r.slot for r in rest} & {r.slot for r in some}


def signed(key: IdentityKey, seq: int, now: float = NOW) -> bytes:
    return sign_fact(key, ModelList(()), boot=1, seq=seq, now=now).raw


def read(answers: Iterable[list[bytes]], reader: Reader) -> list[tuple[str, int]]:
    with reader.open(MODELS) as reading:
        for raws in answers:
            reading.add(raws, NOW)
    return result(reader, reading)


def result(reader: Reader, reading: Reading) -> list[tuple[str, int]]:
    return [(record.slot.peer, record.seq) for record in reader.result(reading)]


@given(st.permutations([[1], [3, 1], [2], [], [2, 3]]))
def test_a_reading_is_the_newest_of_each_in_whatever_order(seqs: list[list[int]]) -> None:
    answers = [[signed(ALICE, seq) for seq in several] for several in seqs]
    answers[0].append(signed(BOB, 5))
    assert set(read(answers, Reader(Checker()))) == {(ALICE.peer_id, 3), (BOB.peer_id, 5)}


def test_a_reader_that_saw_a_newer_one_takes_no_older() -> None:
    reader = Reader(Checker())
    assert read([[signed(ALICE, 4)]], reader) == [(ALICE.peer_id, 4)]
    assert read([[signed(ALICE, 3), signed(BOB, 1)]], reader) == [(BOB.peer_id, 1)]
    assert read([[signed(ALICE, 4)]], reader) == [(ALICE.peer_id, 4)]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), min_size=1, max_size=12))
def test_what_comes_by_a_put_or_another_read_is_found_by_every_read_under_way(
    steps: list[tuple[int, int]],
) -> None:
    """Step (0 or 1, seq): a keeper's answer to that read; (2, seq): the signer's own put to us."""
    checker = Checker()
    reader, newest = Reader(checker), max(seq for _, seq in steps)
    with reader.open(MODELS) as first, reader.open(MODELS) as second, reader.open(bytes(32)) as far:
        for who, seq in steps:
            raw = signed(ALICE, seq)
            if who < 2:
                (first, second)[who].add([raw], NOW)
                continue
            with suppress(Stale):
                reader.admit(checker.check(raw, MODELS, NOW))
        seen = [max((n for who, n in steps if who in (me, 2)), default=0) for me in (0, 1)]
        at_first = result(reader, first)
        assert at_first == ([(ALICE.peer_id, seen[0])] if seen[0] else [])
        expected = max(seen)
        assert result(reader, second) == [(ALICE.peer_id, expected)]
        assert result(reader, far) == [] and expected == newest
    with reader.open(MODELS) as later:
        assert later.best() == []


def test_a_stale_record_is_passed_over_and_a_forged_one_tells_of_its_keeper() -> None:
    stale = signed(ALICE, 1, now=NOW - 100)
    assert read([[stale, signed(BOB, 1)]], Reader(Checker())) == [(BOB.peer_id, 1)]
    forged = bytearray(signed(ALICE, 1))
    forged[30] ^= 1
    with pytest.raises(RemoteError):
        read([[bytes(forged)]], Reader(Checker()))


def test_a_remembered_signature_does_not_stop_the_clock() -> None:
    checker, raw = Checker(), signed(ALICE, 1)
    for _ in range(2):
        assert checker.check(raw, MODELS, NOW + 89).seq == 1
    with pytest.raises(Stale):
        checker.check(raw, MODELS, NOW + 90)
    with pytest.raises(RemoteError):
        checker.check(raw, bytes(32), NOW)
    with pytest.raises(RemoteError):
        checker.check(raw, None, NOW, peer=BOB.peer_id)


def stands(*numbers: int) -> Prefixes:
    return prefixes_of(f"/ip4/{'.'.join(map(str, numbers))}/tcp/1")


def fill(shelf: Shelf, wanted: Iterable[tuple[str, Prefixes]]) -> None:
    for peer, where in wanted:
        with suppress(Refused):
            shelf.put(kept(peer), where)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32))
def test_a_crowd_of_one_network_displaces_nobody_whoever_comes_first(seed: int) -> None:
    """500 names in one /24, 300 in others: of 256 seats the crowd has its part at most."""
    crowd = [(f"liar{n}", stands(8, 8, 8, n % 250)) for n in range(500)]
    others = [(f"peer{n}", stands(20 + n % 100, n // 100, 1, 1)) for n in range(300)]
    dice, shelf = random.Random(seed), Shelf("me", salt=b"s")
    order = crowd + others
    dice.shuffle(order)
    fill(shelf, order)
    found = at(shelf)
    assert len(found) == PLACE_RECORDS_MAX
    assert sum(name.startswith("liar") for name in found) <= PER_NETWORK
    again = Shelf("me", salt=b"s")
    fill(again, reversed(order))
    assert at(again) == found  # the same, in whatever order they come


def test_a_place_is_filled_up_by_one_network_while_nobody_else_comes() -> None:
    shelf = Shelf("me", salt=b"s")
    fill(shelf, ((f"p{n}", stands(8, 8, 8, n % 250)) for n in range(400)))
    assert len(at(shelf)) == PLACE_RECORDS_MAX
    fill(shelf, ((f"home{n}", NOWHERE) for n in range(100)))  # at home: nothing is counted
    assert sum(name.startswith("home") for name in at(shelf)) == 100


def test_a_network_that_has_filled_the_shelf_gives_way_and_takes_no_more() -> None:
    """Its places are the nearest to us, so that by distance alone all others would go first."""
    size = 500 + ENTRY_BYTES
    limits = Limits(bytes_max=100 * size, peer_places_max=1000)
    shelf = Shelf("me", salt=b"s", limits=limits)
    places = sorted(
        (digest("test", bytes([n])) for n in range(150)),
        key=lambda place: distance(place, peer_point("me")),
    )
    for n, place in enumerate(places[:100]):
        shelf.put(kept(f"liar{n}", place=place), stands(8, 8, 8, n % 250))
    for n, place in enumerate(places[100:]):  # the farthest
        shelf.put(kept(f"peer{n}", place=place), stands(20 + n, 1, 1, 1))
    held = shelf.peers()
    assert sum(name.startswith("peer") for name in held) == 50
    with pytest.raises(Refused):
        shelf.put(kept("liar", place=digest("test", b"near")), stands(8, 8, 8, 8))
    assert shelf.bytes_held <= 100 * size + size


def test_a_refresh_keeps_its_seat_and_tells_where_its_signer_is_by_now() -> None:
    shelf = Shelf("me", salt=b"s")
    shelf.put(kept("alice"), stands(8, 8, 8, 8))
    shelf.put(kept("alice", seq=2))
    assert shelf._places[MODELS]["alice"].where == stands(8, 8, 8, 8)
    shelf.put(kept("alice", seq=3), stands(9, 9, 9, 9))
    assert shelf._places[MODELS]["alice"].where == stands(9, 9, 9, 9)
    shelf.drop("alice")
    assert not shelf._bytes_in and shelf.bytes_held == 0
