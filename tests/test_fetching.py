"""Whom to ask for which chunk: everything comes that anybody honest has, and little comes twice."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.crypto.digest import digest
from potluck.swarm.chunk import WANT_MAX, Chunk
from potluck.swarm.fetching import (
    BACKOFF_S,
    BATCH_BYTES_MAX,
    BATCH_S,
    FAILURES_MAX,
    RETRY_LATEST_S,
    STALLED_S,
    Fetching,
    by_peer,
)

SIZE = 1000


def chunks(count: int, size: int = SIZE) -> list[Chunk]:
    return [Chunk(digest("test", number.to_bytes(2)), size) for number in range(count)]


def names(wanted: Sequence[Chunk]) -> list[bytes]:
    return [one.digest for one in wanted]


def everybody(wanted: Sequence[Chunk], *peers: str, salt: bytes = b"") -> Fetching:
    made = Fetching(wanted, salt=salt)
    for peer in peers:
        made.told(peer, names(wanted))
    return made


def bring(fetching: Fetching, peer: str, batch: Sequence[Chunk], now: float) -> None:
    for chunk in batch:
        fetching.came(peer, chunk.digest, now)


def test_a_directorys_answer_tells_who_has_which() -> None:
    one, other = names(chunks(2))
    assert by_peer({one: ["a", "b"], other: ["b"]}) == {"a": [one], "b": [one, other]}


def test_what_few_have_is_asked_for_first() -> None:
    wanted = chunks(9)
    fetching = everybody(wanted, "a", "b")
    fetching.told("c", names(wanted[:8]))  # the ninth is rarer by one
    (first,) = fetching.take("a", 0.0)
    assert first == wanted[8]


def test_nobody_is_asked_for_what_is_on_its_way() -> None:
    wanted = chunks(40)
    fetching = everybody(wanted, "a", "b", "c")
    found = [one for peer in "abc" for one in fetching.take(peer, 0.0)]
    assert len(found) == len(set(found)) == 3  # of whose rate nothing is known, one at first
    assert fetching.take("a", 0.0) == (), "one request at a time"


def test_a_peer_gets_what_it_brings_in_two_seconds_and_leaves_some_for_others() -> None:
    wanted = chunks(100)
    fetching = everybody(wanted, "a")
    (first,) = fetching.take("a", 0.0)
    fetching.came("a", first.digest, SIZE / 4500)
    batch = fetching.take("a", 1.0)
    assert len(batch) == BATCH_S * 4500 // SIZE
    bring(fetching, "a", batch, 1.0 + 1e-3)
    assert len(fetching.take("a", 2.0)) == WANT_MAX
    crowd = everybody(chunks(16), *"abcdefgh")
    for peer in "abcdefgh":
        crowd.came(peer, crowd.take(peer, 0.0)[0].digest, 1e-6)
    assert [len(crowd.take(peer, 1.0)) for peer in "abcdefgh"] == [1] * 8


def test_a_batch_has_a_bound_in_bytes() -> None:
    fetching = everybody(chunks(64, 4 << 20), "a")
    (first,) = fetching.take("a", 0.0)
    fetching.came("a", first.digest, 1e-6)
    assert sum(one.size for one in fetching.take("a", 1.0)) == BATCH_BYTES_MAX


def test_two_who_begin_together_have_something_for_each_other() -> None:
    wanted = chunks(32)
    first, second = (everybody(wanted, "a", salt=salt) for salt in (b"1", b"2"))
    orders = []
    for fetching in (first, second):
        order: list[Chunk] = []
        while batch := fetching.take("a", float(len(order))):
            bring(fetching, "a", batch, float(len(order)))
            order += batch
        orders.append(order)
    assert orders[0] != orders[1] and set(orders[0]) == set(orders[1]) == set(wanted)


def test_a_liar_is_asked_no_more_and_what_it_had_alone_is_hopeless() -> None:
    wanted = chunks(3)
    fetching = everybody(wanted, "liar")
    fetching.told("other", names(wanted[:2]))
    assert fetching.take("liar", 0.0) == (wanted[2],)
    fetching.lied("liar")
    fetching.told("liar", names(wanted))
    assert fetching.take("liar", 1e6) == () and not fetching.open("liar")
    assert fetching.hopeless() == (wanted[2],)
    assert fetching.peers == ("other",)


def test_who_breaks_off_is_asked_again_ever_later_and_at_last_not_at_all() -> None:
    fetching = everybody(chunks(5), "a")
    now = 0.0
    for failure in range(FAILURES_MAX):
        assert fetching.take("a", now) != ()
        fetching.lost("a", now)
        wait_s = BACKOFF_S * 2**failure
        if failure < FAILURES_MAX - 1:
            assert fetching.wake_s("a", now) == now + wait_s
            assert fetching.take("a", now + 0.99 * wait_s) == ()
        now += wait_s
    assert not fetching.open("a") and len(fetching.hopeless()) == 5


def test_one_chunk_in_between_forgives_all_failures() -> None:
    fetching, now = everybody(chunks(9), "a"), 0.0

    def fail() -> None:
        nonlocal now
        for _ in range(FAILURES_MAX - 1):
            now += 100.0
            assert fetching.take("a", now)
            fetching.lost("a", now)

    fail()
    now += 100.0
    fetching.came("a", fetching.take("a", now)[0].digest, now)
    fail()
    assert fetching.open("a") and len(fetching.left) == 8


@pytest.mark.parametrize(
    ("told_s", "waits_s"), [(0.0, BACKOFF_S), (7.0, 7.0), (1e6, RETRY_LATEST_S)]
)
def test_who_has_no_time_is_no_failure_and_cannot_make_us_spin_or_wait_for_ever(
    told_s: float, waits_s: float
) -> None:
    fetching = everybody(chunks(2), "a")
    for turn in range(2 * FAILURES_MAX):
        now = 1e7 * turn
        assert fetching.take("a", now)
        fetching.lost("a", now, told_s)
        assert fetching.wake_s("a", now) == now + waits_s
    assert fetching.open("a")


def test_who_falls_silent_is_overtaken_by_whoever_is_free_and_by_one_alone() -> None:
    wanted = chunks(1)
    fetching = everybody(wanted, "a", "b", "c")
    assert fetching.take("a", 0.0) == tuple(wanted)
    assert fetching.take("b", STALLED_S) == ()
    wake_s = fetching.wake_s("b", 0.0)
    assert STALLED_S <= wake_s < STALLED_S + 1
    assert fetching.take("b", wake_s) == tuple(wanted)
    assert fetching.take("c", wake_s) == ()
    fetching.came("a", wanted[0].digest, wake_s)
    fetching.came("b", wanted[0].digest, wake_s)  # in vain, and no fault
    assert not fetching.left and fetching.open("b") is False


def test_nobody_wakes_for_what_it_does_not_have() -> None:
    wanted = chunks(2)
    fetching = Fetching(wanted, salt=b"")
    fetching.told("a", names(wanted[:1]))
    fetching.told("b", names(wanted[1:]))
    assert fetching.take("a", 0.0) and fetching.take("b", 0.0)
    fetching.lacks("b", wanted[1].digest, 0.0)
    assert fetching.wake_s("b", 0.0) == float("inf")


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1 << 30),
    count=st.integers(1, 40),
    peers=st.integers(1, 7),
)
def test_everything_comes_that_an_honest_peer_has(seed: int, count: int, peers: int) -> None:
    """Peers of unequal speed, of which some lie, lack what they said they had, or break off now and
    then. What is left at the end is what no honest one has; of the rest nothing came twice unless
    its first bringer was silent for seconds."""
    dice = random.Random(seed)
    wanted = chunks(count)
    kinds = {
        f"p{n}": dice.choice(["good", "good", "lies", "lacks", "breaks"]) for n in range(peers)
    }
    has = {peer: set(dice.sample(wanted, dice.randint(0, count))) for peer in kinds}
    fetching = Fetching(wanted, salt=bytes((seed & 255,)))
    for peer, its in has.items():
        fetching.told(peer, names(list(its)))
    speeds = {peer: dice.uniform(100, 20_000) for peer in kinds}
    came: Counter[Chunk] = Counter()
    events: list[tuple[float, int, str, tuple[Chunk, ...]]] = []
    numbers = iter(range(1 << 30))

    def ask(peer: str, now: float) -> None:
        if not fetching.open(peer):
            return
        batch = fetching.take(peer, now)
        due = now + sum(one.size for one in batch) / speeds[peer]
        if not batch:
            due = min(fetching.wake_s(peer, now), now + 1.0)
        heapq.heappush(events, (due, next(numbers), peer, batch))

    for peer in kinds:
        ask(peer, 0.0)
    while events:
        now, _, peer, batch = heapq.heappop(events)
        assert now < 1e5, "it goes on for ever"
        if batch and kinds[peer] == "lies":
            fetching.lied(peer)
        elif batch and kinds[peer] == "breaks" and dice.random() < 0.3:
            fetching.lost(peer, now)
        else:
            for chunk in batch:
                if kinds[peer] == "lacks" and dice.random() < 0.5:
                    fetching.lacks(peer, chunk.digest, now)
                else:
                    came[chunk] += 1
                    fetching.came(peer, chunk.digest, now)
        if fetching.left:
            ask(peer, now)
    sure = {one for peer, its in has.items() if kinds[peer] == "good" for one in its}
    assert sure <= set(came)
    assert set(fetching.left) == set(wanted) - set(came) == set(fetching.hopeless())
    assert all(times <= 2 for times in came.values())


def test_near_peers_bring_what_they_have_and_others_what_they_have_not() -> None:
    wanted = chunks(12)
    fetching = Fetching(wanted, salt=b"", near={"near"})
    fetching.told("far", names(wanted))
    fetching.told("near", names(wanted[:8]))
    assert fetching.peers == ("near", "far")
    assert set(fetching.take("far", 0.0)) <= set(wanted[8:])
    assert set(fetching.take("near", 0.0)) <= set(wanted[:8])
    fetching.lost("far", 0.0, 0.0)
    late_s = fetching.wake_s("far", 2.0)
    assert 2.0 < late_s < float("inf"), "it is our turn when those near fall silent"
    assert fetching.take("far", late_s)
    fetching.lied("near")
    fetching.lost("far", late_s, 0.0)
    assert set(fetching.take("far", late_s + 60.0)) <= set(wanted)


@given(st.integers(1, 12), st.integers(0, 3), st.integers(0, 3), st.randoms())
def test_all_comes_that_anybody_has_be_it_near_or_far(
    count: int, near: int, far: int, dice: random.Random
) -> None:
    wanted = chunks(count)
    close = {f"near{one}" for one in range(near)}
    peers = sorted(close | {f"far{one}" for one in range(far)})
    fetching = Fetching(wanted, salt=b"", near=close)
    held: set[bytes] = set()
    for peer in peers:
        has = [name for name in names(wanted) if dice.random() < 0.6]
        held.update(has)
        fetching.told(peer, has)
    for now in range(3 * count):
        for peer in peers:
            if fetching.open(peer):
                bring(fetching, peer, fetching.take(peer, float(now)), float(now))
    assert held.isdisjoint(names(fetching.left))
