"""Placement against brute force; and what a move may never do."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.swarm.ahead import AHEAD_EVERY_S, READY_S, is_ready
from potluck.swarm.blocks import BlockRange
from potluck.swarm.placement import (
    AGE_MIN_S,
    BELIEVED_MAX,
    EMERGENCY,
    KEEP,
    MOVE_S,
    PEERS_PER_MOVER,
    STAY_MAX_S,
    STAY_MIN_S,
    Demand,
    Holding,
    believed_rate,
    block_rates,
    choose_model,
    elect_moves,
    join_window,
    smooth_min,
    span_length,
    still_helps,
    usual_rate,
)

TOTAL = 8


@st.composite
def holdings(draw: st.DrawFn) -> list[Holding]:
    found = []
    for number in range(draw(st.integers(2, 14))):
        start = draw(st.integers(0, TOTAL - 1))
        stop = draw(st.integers(start + 1, TOTAL))
        found.append(
            Holding(
                f"peer{number}",
                BlockRange(start, stop),
                rate=draw(st.sampled_from([1.0, 3.0, 10.0])),
                age_s=draw(st.sampled_from([0.0, 700.0, 5000.0])),
                movable=draw(st.booleans()),
            )
        )
    return found


def some_arrive(found: list[Holding], dice: list[bool]) -> list[Holding]:
    """Of those that do not move, some because they still load."""
    arriving = [late and not h.movable for h, late in zip(found, dice, strict=True)]
    return [replace(h, arriving=late) for h, late in zip(found, arriving, strict=True)]


def slow_rates(found: list[Holding], most: float = math.inf) -> list[float]:
    return [
        sum(
            min(h.rate, most) / len(h.blocks)
            for h in found
            if h.blocks.start <= block < h.blocks.stop
        )
        for block in range(TOTAL)
    ]


def replicas(found: list[Holding], block: int) -> int:
    return sum(h.blocks.start <= block < h.blocks.stop for h in found)


@given(found=holdings())
def test_a_block_gets_its_share_of_each_peer_that_serves_it(found: list[Holding]) -> None:
    assert block_rates(found, TOTAL) == pytest.approx(slow_rates(found))


@given(
    rates=st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0]), min_size=1, max_size=10),
    length=st.integers(1, 12),
    peer=st.text(max_size=3),
)
def test_no_window_needs_a_newcomer_more(rates: list[float], length: int, peer: str) -> None:
    window = join_window(np.array(rates), length, peer)
    length = min(length, len(rates))
    assert len(window) == length and window.stop <= len(rates)
    neediest = min(sorted(rates[at : at + length]) for at in range(len(rates) - length + 1))
    assert sorted(rates[window.start : window.stop]) == neediest


def test_newcomers_spread_over_equally_needy_windows() -> None:
    taken = {join_window(np.zeros(20), 1, f"peer{n}").start for n in range(200)}
    assert taken == set(range(20))


@given(rates=st.lists(st.floats(0.0, 10.0), min_size=2, max_size=20))
def test_the_smooth_minimum_is_what_it_is_defined_as(rates: list[float]) -> None:
    mean = sum(rates) / len(rates) + 0.1
    soft = sum(math.exp(-8 * v / mean) for v in rates) / len(rates)
    assert smooth_min(np.array(rates), mean) == pytest.approx(-math.log(soft) / 8)
    assert smooth_min(np.array(rates), mean) >= min(rates) / mean - 1e-9


@settings(max_examples=200, deadline=None)
@given(found=holdings(), epoch=st.integers(0, 5))
def test_a_move_leaves_no_block_below_its_floor_and_wins(found: list[Holding], epoch: int) -> None:
    moves = elect_moves(found, TOTAL, epoch)
    assert len(moves) <= math.ceil(len(found) / PEERS_PER_MOVER)
    assert moves == elect_moves(list(reversed(found)), TOTAL, epoch)  # whoever computes it
    most = BELIEVED_MAX * statistics.median(holding.rate for holding in found)
    for move in moves:
        (mover,) = (h for h in found if h.peer == move.peer)
        rates = slow_rates(found, most)
        emergency = min(rates) <= EMERGENCY * sum(rates) / TOTAL
        assert mover.movable and (emergency or mover.age_s >= AGE_MIN_S)
        others = [h for h in found if h.peer != move.peer]
        after = [*others, replace(mover, blocks=move.blocks)]
        for block in range(mover.blocks.start, mover.blocks.stop):
            assert replicas(others, block) >= (1 if emergency else KEEP)
        mean = sum(rates) / TOTAL
        gain = smooth_min(np.array(slow_rates(after, most)), mean) - smooth_min(
            np.array(rates), mean
        )
        assert gain == pytest.approx(move.gain) and gain > 0
        length = len(mover.blocks)
        windows = [BlockRange(at, at + length) for at in range(TOTAL - length + 1)]
        layouts = [[*others, replace(mover, blocks=there)] for there in windows]
        ready = is_ready(mover.peer, TOTAL, length, mover.age_s)
        stay_s = min(max(mover.age_s, STAY_MIN_S), STAY_MAX_S)
        part = min(mover.rate, most) / length / mean * length / TOTAL
        worth = [
            float(smooth_min(np.array(slow_rates(one, most)), mean))
            - part * (READY_S if ready[window.start] else MOVE_S) / stay_s
            for window, one in zip(windows, layouts, strict=True)
        ]
        assert worth[move.blocks.start] == pytest.approx(max(worth))


@settings(max_examples=60, deadline=None)
@given(found=holdings(), late=st.lists(st.booleans(), min_size=14, max_size=14))
def test_when_nobody_comes_or_goes_moves_end(found: list[Holding], late: list[bool]) -> None:
    """Each move lifts a bounded score by a fixed share: 14 peers are still within 100 epochs,
    though some that load never come."""
    found = some_arrive(found, late[: len(found)])
    for epoch in range(100):
        moves = elect_moves(found, TOTAL, epoch)
        if not moves:
            break
        there = {move.peer: move.blocks for move in moves}
        found = [replace(h, blocks=there.get(h.peer, h.blocks)) for h in found]
    assert not elect_moves(found, TOTAL, 101)


def test_a_bare_block_is_served_at_once_by_a_peer_too_young_to_move_else() -> None:
    found = [Holding(f"peer{n}", BlockRange(0, 4), 1.0, age_s=1.0) for n in range(3)]
    (move,) = elect_moves(found, TOTAL, 1)
    assert move.blocks == BlockRange(4, 8)
    calm = [*found, Holding("other", BlockRange(4, 8), 2.0, age_s=1.0)]
    assert elect_moves(calm, TOTAL, 1) == ()


def spare_ones(count: int, age_s: float) -> list[Holding]:
    """Four blocks with two peers each, and the first with so many more."""
    held = [Holding(f"old{n}", BlockRange(n // 2, n // 2 + 1), 1.0, age_s) for n in range(8)]
    return held + [Holding(f"spare{n}", BlockRange(0, 1), 1.0, age_s) for n in range(count)]


def test_of_equal_peers_one_moves_that_has_the_blocks_on_its_disk() -> None:
    age_s = 2 * AHEAD_EVERY_S  # two of the four blocks
    found = spare_ones(8, age_s)
    del found[6]  # of block 3
    for epoch in range(30):
        (move,) = elect_moves(found, 4, epoch)
        assert move.blocks == BlockRange(3, 4)
        assert is_ready(move.peer, 4, 1, age_s)[3]


def test_until_a_newcomer_has_loaded_who_has_the_blocks_stands_in() -> None:
    age_s = 2 * AHEAD_EVERY_S
    for ready in (True, False):
        names = (f"{n}" for n in range(100) if is_ready(f"{n}", 4, 1, age_s)[3] == ready)
        able = [Holding(next(names), BlockRange(0, 1), 1.0, age_s) for _ in range(2)]
        rest = [replace(h, movable=False) for h in spare_ones(0, age_s)]
        late = replace(rest[7], arriving=True)
        moves = elect_moves([*rest[:7], late, *able], 4, 1)
        assert [move.blocks for move in moves] == ([BlockRange(3, 4)] if ready else [])
        assert elect_moves([*rest, *able], 4, 1) == ()  # once it is there


def test_nobody_stands_in_where_the_layout_would_be_worse_once_the_newcomer_is_there() -> None:
    found = spare_ones(0, 1e5)
    late = replace(found[7], age_s=1.0, movable=False, arriving=True)
    extra = Holding("third", BlockRange(1, 2), 1.0, 1e5)
    assert elect_moves([*found[:7], late], 4, 1) == ()
    assert elect_moves([*found[:7], late, extra], 4, 1) != ()


def test_what_was_loaded_is_switched_to_while_it_helps_now_or_in_the_end() -> None:
    *others, late, mover = spare_ones(1, 1e5)
    new = BlockRange(3, 4)
    arriving = replace(late, arriving=True)
    assert still_helps([*others, arriving], mover, new, 4)  # until it comes
    assert not still_helps([*others, late], mover, new, 4)  # it came
    assert still_helps(others, mover, new, 4)  # it comes no more


def test_a_span_is_as_long_as_memory_allows_and_at_least_one_block() -> None:
    assert span_length(32, 10_000, 900, cache_bytes=100) == 10
    assert span_length(32, 10, 900) == 1 and span_length(4, 10_000, 900) == 4


def test_the_next_peer_goes_where_demand_is_met_worst() -> None:
    def model(name: str, peers: int, offered: float) -> Demand:
        found = tuple(Holding(f"{name}{n}", BlockRange(0, 4), 10.0) for n in range(peers))
        return Demand(name, 4, found, offered)

    busy, calm = model("busy", 2, 8.0), model("calm", 2, 1.0)
    assert choose_model([busy, calm]) == "busy"
    assert choose_model([model("busy", 20, 8.0), calm]) == "calm"
    assert choose_model([busy, replace(calm, holdings=())]) == "calm"  # asked for, served by none
    assert choose_model([busy, Demand("idle", 4, (), 0.0)]) == "busy"
    twins = [model("a", 1, 1.0), model("b", 1, 1.0)]
    assert choose_model(twins, served=["a"]) == "a" and choose_model(twins, served=["b"]) == "b"


def test_a_fifth_of_liars_does_not_make_blocks_look_served() -> None:
    """A block that only a boaster serves still draws a mover."""
    claims = [1.0, 1.0, 1.1, 0.9, 1.0, 50.0]
    usual = usual_rate(claims)
    assert 0.9 <= usual <= 1.1
    assert believed_rate(50.0, usual) == BELIEVED_MAX * usual
    assert believed_rate(0.9, usual) == 0.9
    assert believed_rate(1.0, usual_rate([])) == 1.0
    found = [Holding(f"peer{n}", BlockRange(n % 2, n % 2 + 1), 1.0, 5000.0) for n in range(12)]
    honest = [*found, Holding("other", BlockRange(2, 3), 1.0, 5000.0)]
    liar = [*found, Holding("other", BlockRange(2, 3), 1000.0, 5000.0)]
    assert elect_moves(honest, 3, 1) and elect_moves(liar, 3, 1)
