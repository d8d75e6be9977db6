"""Where a node joins and when it moves, beside others who decide at the same moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from random import Random

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.crypto.keys import IdentityKey
from potluck.dht.memory import MemoryDirectory, MemoryShelf
from potluck.dht.record import Announcement
from potluck.node.placing import (
    PASSED_EPOCHS,
    WAIT_EPOCHS,
    Elections,
    Place,
    choose_blocks,
    find_place,
    holdings_of,
    length_by_speed,
    may_switch,
)
from potluck.swarm.blocks import BlockRange, replicas
from potluck.swarm.placement import BELIEVED_MAX, Holding

MODEL = "ab" * 32
OLD_S = 1e6


def told(
    peer: str, start: int, stop: int, *, total: int = 12, rate: float = 100.0, state: str = "online"
) -> Announcement:
    return Announcement(
        model=MODEL,
        name="m",
        start=start,
        stop=stop,
        blocks=total,
        state=state,  # type: ignore[arg-type]
        device="cpu",
        dtype="float32",
        quantization="none",
        decode_tokens_s=rate,
        prefill_tokens_s=rate,
        addresses=(),
        cache_tokens_free=1,
        context_tokens_max=10,
        numerics="n",
        version="0",
        peer=peer,
    )


def held(peer: str, start: int, stop: int, rate: float = 100.0) -> Holding:
    return Holding(peer, BlockRange(start, stop), rate, OLD_S)


# ---- choosing


def test_the_first_of_all_begins_at_the_beginning() -> None:
    assert choose_blocks([], 12, 5, "me") == BlockRange(0, 5)
    assert choose_blocks([], 12, 50, "me") == BlockRange(0, 12)


@given(st.text(min_size=1, max_size=5), st.integers(1, 12))
def test_a_gap_is_filled_edge_to_edge_or_to_its_end(me: str, length: int) -> None:
    blocks = choose_blocks([held("one", 0, 3)], 12, length, me)
    if length <= 9:
        assert blocks.start >= 3
        assert (blocks.start - 3) % length == 0 or blocks.stop == 12


@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(1, 6), st.floats(1, 1e4)), max_size=12),
    st.integers(1, 12),
    st.text(min_size=1, max_size=5),
)
def test_no_other_place_would_lift_the_worst_served_block_more(
    others: list[tuple[int, int, float]], length: int, me: str
) -> None:
    holdings = [
        held(str(i), start, min(12, start + count), rate)
        for i, (start, count, rate) in enumerate(others)
    ]
    chosen = choose_blocks(holdings, 12, length, me)
    assert len(chosen) == length

    def worst_in(blocks: BlockRange) -> float:
        return min(
            sum(one.share() for one in holdings if one.blocks.start <= block < one.blocks.stop)
            for block in range(blocks.start, blocks.stop)
        )

    least = min(worst_in(BlockRange(at, at + length)) for at in range(13 - length))
    assert worst_in(chosen) <= least + 1e-6


def test_a_slow_peer_serves_fewer_blocks_only_when_none_are_missing() -> None:
    whole = [held("a", 0, 12, 1200.0), held("b", 0, 12, 1200.0)]  # 10 ms through each
    assert length_by_speed(1200.0, whole, 12, 12) == 12
    assert length_by_speed(12.0, whole, 12, 12) == 1  # 100 ms, SPAN_S
    assert length_by_speed(0.001, whole, 12, 12) == 1
    assert length_by_speed(12.0, whole[:0], 12, 12) == 12
    assert length_by_speed(12.0, [held("a", 0, 6)], 12, 12) == 12


def test_a_boast_counts_for_two_medians_and_who_leaves_for_nothing() -> None:
    found = [
        told("a", 0, 4),
        told("b", 4, 8),
        told("liar", 8, 12, rate=1e12),
        told("going", 0, 12, state="draining"),
    ]
    holdings = holdings_of(found, OLD_S)
    assert not any(one.arriving for one in holdings)
    assert holdings_of([told("new", 0, 4, state="joining")], OLD_S)[0].arriving
    assert {one.peer: one.rate for one in holdings} == {
        "a": 100,
        "b": 100,
        "liar": 100 * BELIEVED_MAX,
    }


# ---- joining


async def join(
    shelf: MemoryShelf, fit: int, places: dict[str, Place], *, total: int = 12, delay_s: float = 0.0
) -> None:
    key = IdentityKey.generate()
    directory = MemoryDirectory(key, shelf)
    me = key.peer_id

    async def say(place: Place) -> None:
        blocks = place.blocks
        await directory.announce(
            told(me, blocks.start, blocks.stop, total=total, rate=place.rate, state="joining")
        )

    async def measure(blocks: BlockRange) -> float:
        return 100.0

    places[me] = await find_place(
        directory, MODEL, total, fit, me,
        say=say, measure=measure, wall=trio.current_time, jitter_s=delay_s,
    )  # fmt: skip


@pytest.mark.parametrize("jitter", [0.0, 0.3])
async def test_newcomers_at_once_choose_different_blocks(
    autojump_clock: trio.testing.MockClock, jitter: float
) -> None:
    dice = Random(3)
    for total, fit, count in ((8, 4, 2), (12, 4, 3), (12, 3, 4), (12, 5, 3)) * 5:
        shelf = MemoryShelf()
        places: dict[str, Place] = {}
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                delay_s = dice.uniform(0, jitter)
                nursery.start_soon(partial(join, shelf, fit, places, total=total, delay_s=delay_s))
        spans = [place.blocks for place in places.values()]
        assert min(replicas(BlockRange(0, total), spans)) == 1, spans


async def test_a_newcomer_fills_the_hole_and_says_so_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    shelf = MemoryShelf()
    other = IdentityKey.generate()
    await MemoryDirectory(other, shelf).announce(told(other.peer_id, 0, 7))
    places: dict[str, Place] = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(join, shelf, 5, places)
        await trio.sleep(0.5)
        found = await MemoryDirectory(IdentityKey.generate(), shelf).find(MODEL)
        states = {one.state: (one.start, one.stop) for one in found}
        assert states == {"online": (0, 7), "joining": (7, 12)}
    assert [place.blocks for place in places.values()] == [BlockRange(7, 12)]


# ---- moving


def swarm_with_a_hole() -> list[Announcement]:
    return [told(f"p{i}", 0, 6) for i in range(4)] + [told("q", 6, 9)]


def test_all_elect_the_same_mover_and_wait_for_it() -> None:
    found = [told(f"p{i}", 0, 6) for i in range(3)]
    views = [Elections(one.peer, 12) for one in found]
    first = [view.hold(found, 100, OLD_S) for view in views]
    assert len({moves for moves in first}) == 1 and len(first[0]) == 1
    mover = first[0][0].peer
    again = [view.hold(found, 101, OLD_S) for view in views]
    assert all(moves == () for moves in again), "it is on its way: nobody follows it"
    moved = [
        replace(one, start=first[0][0].blocks.start, stop=first[0][0].blocks.stop)
        if one.peer == mover
        else one
        for one in found
    ]
    assert all(view.hold(moved, 102, OLD_S) == () for view in views)


def test_who_was_elected_and_stays_is_passed_over() -> None:
    found = swarm_with_a_hole()
    view = Elections("p0", 12)
    stubborn = view.hold(found, 0, OLD_S)[0].peer
    seen = [
        move.peer for epoch in range(1, PASSED_EPOCHS) for move in view.hold(found, epoch, OLD_S)
    ]
    assert seen and stubborn not in seen[:3]
    assert len(set(seen)) >= 3, "each has its turn"
    assert WAIT_EPOCHS > 1


@given(st.integers(0, 2**31), st.integers(4, 12))
@settings(max_examples=50, deadline=None)
def test_moves_end_and_never_uncover_a_block(seed: int, count: int) -> None:
    dice = Random(seed)
    found = []
    for number in range(count):
        start = dice.randrange(0, 9)
        found.append(told(f"p{number}", start, start + dice.randint(1, 4)))
    before = replicas(BlockRange(0, 12), spans(found))
    view = Elections("p0", 12)
    quiet = 0
    for epoch in range(200):
        moves = view.hold(found, epoch, OLD_S)
        quiet = 0 if moves else quiet + 1
        for move in moves:
            old = next(one for one in found if one.peer == move.peer)
            whence = BlockRange(old.start, old.stop)
            if may_switch(found, move.peer, whence, move.blocks, 12, OLD_S):
                continue
            found[found.index(old)] = replace(old, start=move.blocks.start, stop=move.blocks.stop)
        after = replicas(BlockRange(0, 12), spans(found))
        assert all(now > 0 for now, once in zip(after, before, strict=True) if once)
        before = tuple(max(one, other) for one, other in zip(before, after, strict=True))
        if quiet == 3:
            break
    assert quiet == 3


def spans(found: Sequence[Announcement]) -> list[BlockRange]:
    return [BlockRange(one.start, one.stop) for one in found]


def test_a_switch_is_dropped_when_others_went_or_came_meanwhile() -> None:
    found = swarm_with_a_hole()
    old, new = BlockRange(0, 6), BlockRange(6, 12)
    assert may_switch(found, "p0", old, new, 12, OLD_S) == ""
    assert "left with 0" in may_switch(found[:1] + found[4:], "p0", old, new, 12, OLD_S)
    assert "not found" in may_switch(found[1:], "p0", old, new, 12, OLD_S)
    crowded = [*found, *(told(f"new{i}", 6, 12) for i in range(6))]
    assert may_switch(crowded, "p0", old, new, 12, OLD_S) == "it would help no more"
