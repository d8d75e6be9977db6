"""Slots keep the least of all that they were offered, whatever the order, and nothing else."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.swarm.slots import EMPTY, LEVELS, Hashes, Slots, key_of, keys_of, ranks

SEEDS = np.array([Random(1).getrandbits(64) for _ in range(8)], dtype=np.uint64)

small_keys = st.lists(  # many peers share a network
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 5), st.integers(0, 2**64 - 1)),
    max_size=25,
)


def rank(seed: np.uint64, key: Hashes) -> tuple[int, ...]:
    return tuple(int(part) for part in ranks(np.array([seed]), key.reshape(1, LEVELS))[0])


@settings(deadline=None)
@given(small_keys, st.randoms(use_true_random=False))
def test_a_slot_keeps_the_least_rank_in_whatever_order_and_portions_it_is_offered(
    keys: list[tuple[int, int, int, int]], dice: Random
) -> None:
    """Against brute force; offered again and again, as a flood does, changes nothing."""
    slots, table = Slots(SEEDS), keys_of(keys)
    offered = [*range(len(keys)), *(dice.randrange(len(keys)) for _ in range(40 if keys else 0))]
    dice.shuffle(offered)
    while offered:
        some = offered[: dice.randint(1, 9)]
        del offered[: len(some)]
        slots.offer(np.array(some), table[some])
    for seed, kept in zip(SEEDS, slots.kept.tolist(), strict=True):
        if not keys:
            assert kept == EMPTY
            continue
        least = min(rank(seed, key) for key in table)
        assert rank(seed, table[kept]) == least


@settings(deadline=None)
@given(small_keys.filter(bool), st.sets(st.integers(0, 7)))
def test_only_the_slots_asked_are_asked(
    keys: list[tuple[int, int, int, int]], asked: set[int]
) -> None:
    slots, table = Slots(SEEDS), keys_of(keys)
    won = slots.offer(np.arange(len(keys)), table, np.array(sorted(asked), dtype=np.int64))
    assert set(won.tolist()) == asked
    assert {n for n, kept in enumerate(slots.kept.tolist()) if kept != EMPTY} == asked


def test_a_draw_is_even_over_networks_first_and_then_within_them() -> None:
    """Of 10 wide networks one has 91 of 100 peers: it is drawn once in ten.

    4000 draws: 400 are expected, and the deviation is 19; 6 of them are allowed for.
    """
    keys = [key_of(f"peer {n}", ("crowd", "crowd", "crowd")) for n in range(91)]
    keys += [key_of(f"lone {n}", (f"{n}", f"{n}", f"{n}")) for n in range(9)]
    dice = Random(5)
    slots = Slots(np.array([dice.getrandbits(64) for _ in range(4000)], dtype=np.uint64))
    slots.offer(np.arange(100), keys_of(keys))
    crowd = Counter(int(kept) < 91 for kept in slots.kept)[True]
    assert abs(crowd - 400) < 6 * 19
    within = Counter(int(kept) for kept in slots.kept if kept < 91)
    assert len(within) > 80  # 91 e^(-400/91) = 1 is missed in the mean
    assert max(within.values()) < 20  # 4.4 in the mean


def test_who_is_chosen_was_chosen_least_often_and_whoever_goes_leaves_room() -> None:
    slots = Slots(SEEDS)
    assert slots.choose() is None
    keys = keys_of([(n, n, n, n) for n in range(50)])
    slots.offer(np.arange(50), keys)
    chosen = Counter(slots.choose() for _ in range(3 * len(SEEDS)))
    assert set(chosen.values()) == {3}
    gone = int(slots.kept[2])
    held = slots.drop(gone)
    assert 2 in held and slots.kept[2] == EMPTY and gone not in slots.kept
    won = slots.offer(np.arange(50), keys)
    assert set(won.tolist()) == set(held.tolist())
    assert slots.hits[2] == 0


def test_a_slot_drawn_anew_forgets_what_it_kept_and_says_who_it_was() -> None:
    slots, keys = Slots(SEEDS), keys_of([(n, n, n, n) for n in range(50)])
    slots.offer(np.arange(50), keys)
    before = int(slots.kept[3])
    assert slots.reseed(3, 12345) == before
    assert slots.kept[3] == EMPTY
    slots.offer(np.arange(50), keys)
    least = min(range(50), key=lambda n: rank(np.uint64(12345), keys[n]))
    assert slots.kept[3] == least
