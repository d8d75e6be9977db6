"""How far apart honest peers may be: by their classes, and by how many blocks work went through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.swarm.audit import judge
from potluck.swarm.tolerance import ANY, EXACT, NEVER, Tolerance, Tolerances, is_exact, limit_at

PAIR = ("m", "a", "b")


def test_classes_of_our_c_are_exact_and_torchs_are_not() -> None:
    assert is_exact("none c1") and is_exact("nf4 c1 kv8") and is_exact("int8 c12")
    assert not is_exact("fp32 torch 2.13.0 GenuineIntel 6 143 AVX512 threads 2")
    assert not is_exact("nf4 fp16 bitsandbytes 0.50 torch 2.13 NVIDIA H200") and not is_exact("")


def test_a_tolerance_is_measured_for_a_pair_of_classes_or_there_is_none() -> None:
    table = Tolerances(
        {("*", "b", "a"): {1: 0.02}, ("m", "a", "b"): {1: 0.01}, ("m", "t", "t"): {1: 0.001}}
    )
    assert table.of("m", "b", "a", 1) == table.of("m", "a", "b", 1) == Tolerance(0.01)
    assert table.of("other", "a", "b", 1) == Tolerance(0.02)
    assert table.of("m", "a", "c", 1) is None
    assert table.of("m", "none c1", "none c1", 5) == EXACT
    assert table.of("m", "t", "t", 1) == Tolerance(0.001) and table.of("n", "t", "t", 1) is None


@pytest.mark.parametrize(
    "blocks, limit",
    [(1, 0.001), (2, 0.004), (3, 0.004), (4, 0.003), (6, 0.02), (7, 0.02), (8, 0.02)],
)
def test_a_limit_is_of_a_length_and_between_two_the_larger(blocks: int, limit: float) -> None:
    """A longer span's may be the smaller: what it adds grows as well."""
    table = Tolerances({PAIR: {1: 0.001, 2: 0.004, 4: 0.003, 8: 0.02}})
    assert table.of(*PAIR, blocks) == Tolerance(limit)


def test_beyond_what_was_measured_nobody_is_convicted() -> None:
    table = Tolerances({PAIR: {2: 0.004, 4: 0.003}})
    for blocks in (1, 5, 80):
        assert table.of(*PAIR, blocks) is None
        assert judge([9.0] * 32, table.of(*PAIR, blocks)).verdict == "open"


def test_what_was_measured_without_a_length_holds_for_all_that_have_none() -> None:
    table = Tolerances({PAIR: {ANY: 0.05, 2: 0.004}})
    assert table.of(*PAIR, 2) == Tolerance(0.004)
    assert table.of(*PAIR, 1) == table.of(*PAIR, 9) == Tolerance(0.05)


def test_where_honest_peers_are_as_far_apart_as_liars_there_is_no_limit() -> None:
    table = Tolerances({PAIR: {1: 0.01, 4: NEVER}})
    assert table.of(*PAIR, 1) == Tolerance(0.01)
    assert table.of(*PAIR, 2) is None and table.of(*PAIR, 4) is None


@given(
    st.dictionaries(st.integers(1, 90), st.floats(0, 2), min_size=1, max_size=8),
    st.integers(1, 90),
)
def test_no_length_has_less_than_both_of_its_neighbours(
    limits: dict[int, float], blocks: int
) -> None:
    """Nobody is convicted between two lengths who would be at neither."""
    found = limit_at(limits, blocks)
    if blocks in limits:
        assert found == limits[blocks]
    elif min(limits) < blocks < max(limits):
        near = [
            limits[max(length for length in limits if length < blocks)],
            limits[min(length for length in limits if length > blocks)],
        ]
        assert found == max(near)
    else:
        assert found is None
