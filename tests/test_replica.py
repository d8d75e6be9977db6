"""Records merge alike in whatever order, and two peers find what the other lacks."""

from __future__ import annotations

from random import Random
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from receipts import key
from testimonies import NOW, announced

from potluck.crypto.codec import decode, encode
from potluck.dht.network import prefixes_of
from potluck.dht.record import (
    CHUNK_TTL_MAX_S,
    TTL_MAX_S,
    ModelList,
    ModelName,
    Provider,
    Record,
    Stale,
    newest,
    sign_fact,
)
from potluck.errors import RemoteError
from potluck.swarm.replica import (
    GIVE_BYTES_MAX,
    NAME_BYTES,
    SLOTS_PER_PEER,
    Give,
    Listing,
    Replica,
    Summary,
    Want,
)
from potluck.swarm.testimony import check_contradiction

T = TypeVar("T")

PEERS = [key(f"peer {n}") for n in range(6)]
LATE = NOW + TTL_MAX_S

# Two of one peer and time differ in what they say only where `stop` does: a contradiction.
RECORDS = [
    announced(one, seq=seq, stop=stop, now=NOW - seq)
    for one in PEERS
    for seq in (1, 2)
    for stop in (4, 8)
]


def merged(records: list[Record], now: float = NOW) -> Replica:
    one = Replica()
    for record in records:
        try:
            one.merge(record, now)
        except Stale:
            continue
    return one


def exchange(one: Replica, other: Replica, now: float) -> int:
    """As over a stream: each message goes through the codec. How many records went over."""
    listing = other.listing(again(one.summary(now), Summary), now)
    if listing is None:
        return 0
    give, want = one.compare(again(listing, Listing), now)
    back = other.give(again(want, Want), now)
    count = 0
    for replica, told in ((other, again(give, Give)), (one, again(back, Give))):
        for raw in told.records:
            record = next(record for record in RECORDS if record.raw == raw)
            count += 1
            try:
                replica.merge(record, now)
            except Stale:
                continue
    return count


def again(message: T, kind: type[T]) -> T:
    return decode(encode(message), kind)


@settings(deadline=None)
@given(st.permutations(RECORDS), st.integers(0, len(RECORDS)))
def test_all_who_read_the_same_hold_the_same_in_whatever_order(
    records: list[Record], twice: int
) -> None:
    one = merged([*records, *records[:twice]])
    assert one.digest(NOW) == merged(RECORDS).digest(NOW)
    brute: dict[object, Record] = {}
    for record in RECORDS:
        brute[record.slot] = newest(brute.get(record.slot, record), record)
    assert {record.slot: record for record in one.live(NOW)} == brute


@settings(deadline=None)
@given(st.sets(st.integers(0, len(RECORDS) - 1)), st.sets(st.integers(0, len(RECORDS) - 1)))
def test_after_an_exchange_two_hold_what_both_held(first: set[int], second: set[int]) -> None:
    one = merged([RECORDS[n] for n in sorted(first)])
    other = merged([RECORDS[n] for n in sorted(second)])
    both = merged([RECORDS[n] for n in sorted(first | second)])
    exchange(one, other, NOW)
    assert one.live(NOW) == other.live(NOW) == both.live(NOW)
    assert exchange(one, other, NOW) == 0


def test_a_summary_differs_exactly_when_what_is_held_differs() -> None:
    one, other = merged(RECORDS), merged(RECORDS[1:])
    assert one.digest(NOW) == other.digest(NOW)  # the first is not the newest of its slot
    newer = announced(PEERS[0], seq=9)
    assert one.merge(newer, NOW).news
    assert one.digest(NOW) != other.digest(NOW)
    one.drop(PEERS[0].peer_id)
    other.drop(PEERS[0].peer_id)
    assert one.digest(NOW) == other.digest(NOW) and len(one) == len(PEERS) - 1


def test_news_is_passed_on_once_and_what_was_rolled_back_is_refused() -> None:
    one = Replica()
    first, second = announced(PEERS[0]), announced(PEERS[0], seq=2)
    told = one.merge(first, NOW)
    assert told.news and told.first
    assert not one.merge(first, NOW).news
    told = one.merge(second, NOW)
    assert told.news and not told.first
    assert one.at(second.slot.place, NOW) == [second] and one.at(b"elsewhere", NOW) == []
    with pytest.raises(Stale, match="rolled back"):
        one.merge(first, NOW)
    one.drop(PEERS[0].peer_id)
    with pytest.raises(Stale, match="rolled back"):
        one.merge(first, NOW)  # even so


def test_a_peer_that_says_two_things_at_once_is_convicted_and_all_keep_the_same_one() -> None:
    one, other = announced(PEERS[0], stop=4), announced(PEERS[0], stop=8)
    for records in ((one, other), (other, one)):
        replica = Replica()
        assert replica.merge(records[0], NOW).proof is None
        told = replica.merge(records[1], NOW)
        assert told.proof is not None
        assert check_contradiction(told.proof) == PEERS[0].peer_id
        assert replica.live(NOW) == (newest(one, other),)
        assert told.news == (records[1] is newest(one, other))


def test_what_has_expired_is_gone_from_what_is_compared() -> None:
    one = merged([announced(PEERS[0]), announced(PEERS[1], now=NOW - 10)])
    assert len(one.live(NOW + TTL_MAX_S - 10.1)) == 2
    assert one.digest(NOW + TTL_MAX_S - 10) == merged([announced(PEERS[0])]).digest(NOW)
    assert one.digest(LATE) == Replica().digest(LATE) and not len(one)


def test_chunks_are_not_gossiped_and_a_peer_has_nine_slots() -> None:
    one, peer = Replica(), PEERS[0]
    address = f"/ip4/192.0.2.7/tcp/4001/p2p/{peer.peer_id}"
    chunk = Provider(bytes(32), (address,))
    with pytest.raises(RemoteError, match="not gossiped"):
        one.merge(sign_fact(peer, chunk, boot=1, seq=1, now=NOW, ttl_s=CHUNK_TTL_MAX_S), NOW)
    listed = ModelList((ModelName("ab" * 32, "org/name", 16),))
    one.merge(sign_fact(peer, listed, boot=1, seq=1, now=NOW), NOW)
    for n in range(1, SLOTS_PER_PEER):
        one.merge(announced(peer, model=f"{n:064x}"), NOW)
    assert len(one) == SLOTS_PER_PEER
    assert one.merge(announced(peer, model=f"{1:064x}", seq=2), NOW).news


@settings(deadline=None)
@given(st.permutations(range(SLOTS_PER_PEER + 6)))
def test_of_a_peer_that_fills_too_many_slots_all_keep_the_same(order: list[int]) -> None:
    """Else whoever signs one more record than fits would keep honest registries apart."""
    records = [announced(PEERS[0], model=f"{n:064x}") for n in range(SLOTS_PER_PEER + 6)]
    one = Replica()
    for number in order:
        try:
            one.merge(records[number], NOW)
        except RemoteError as error:
            assert "more than" in str(error)
    least = sorted(record.slot.place for record in records)[:SLOTS_PER_PEER]
    assert [record.slot.place for record in one.live(NOW)] == least


def test_when_all_is_full_the_network_with_most_loses_first() -> None:
    """Sixty Sybils of one /16 do not push out three peers of three others."""
    one = Replica(records_max=32)
    for n, peer in enumerate(PEERS[:3]):
        one.merge(announced(peer), NOW, where=prefixes_of(f"/ip4/20{n}.5.5.5/tcp/1"))
    crowd = prefixes_of("/ip4/8.8.8.8/tcp/1")
    news = [one.merge(announced(key(f"sybil {n}")), NOW, where=crowd).news for n in range(60)]
    assert len(one) == 32 and all(news[:29])
    assert {peer.peer_id for peer in PEERS[:3]} <= {r.slot.peer for r in one.live(NOW)}


def test_what_is_given_fits_and_the_rest_comes_the_next_time() -> None:
    records = [announced(key(f"many {n}")) for n in range(150)]
    one, other = merged(records), Replica()
    rounds = 0
    while one.digest(NOW) != other.digest(NOW):
        listing = other.listing(one.summary(NOW), NOW)
        assert listing is not None
        give, want = one.compare(listing, NOW)
        assert not want.names and len(give.records) > 0
        assert sum(map(len, give.records)) <= GIVE_BYTES_MAX
        for raw in give.records:
            other.merge(next(record for record in records if record.raw == raw), NOW)
        rounds += 1
    total = sum(len(record.raw) for record in records)
    assert 1 < rounds <= total // (GIVE_BYTES_MAX - 1024) + 1


def test_broken_lists_cost_their_sender_and_unknown_names_give_nothing() -> None:
    one = merged(RECORDS)
    with pytest.raises(RemoteError, match="eights"):
        one.compare(Listing(b"\0", b"123"), NOW)
    with pytest.raises(RemoteError, match="eights"):
        one.give(Want(b"123"), NOW)
    dice = Random(1)
    assert one.give(Want(dice.randbytes(100 * NAME_BYTES)), NOW) == Give(())
    give, want = one.compare(Listing(bytes(range(256)), b""), NOW)
    assert len(give.records) == len(one) and not want.names
