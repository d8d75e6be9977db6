"""Block ranges: their words, and their algebra against plain sets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import UserError
from potluck.swarm.blocks import BlockRange, parse_blocks, replicas, uncovered

ranges = st.tuples(st.integers(0, 20), st.integers(1, 8)).map(lambda t: BlockRange(t[0], sum(t)))


@given(of=ranges, by=st.lists(ranges, max_size=6))
def test_uncovered_is_what_set_difference_says(of: BlockRange, by: list[BlockRange]) -> None:
    held = {block for one in by for block in range(one.start, one.stop)}
    told = [block for start, stop in uncovered(of, by) for block in range(start, stop)]
    assert told == [block for block in range(of.start, of.stop) if block not in held]


@given(of=ranges, by=st.lists(ranges, max_size=6))
def test_replicas_count_who_holds_each_block(of: BlockRange, by: list[BlockRange]) -> None:
    counted = replicas(of, by)
    for offset, count in enumerate(counted):
        assert count == sum(one.start <= of.start + offset < one.stop for one in by)


@given(one=ranges, other=ranges)
def test_covers_and_overlaps_agree_with_sets(one: BlockRange, other: BlockRange) -> None:
    mine, theirs = (set(range(r.start, r.stop)) for r in (one, other))
    assert one.covers(other) == (theirs <= mine)
    assert one.overlaps(other) == bool(mine & theirs)


@pytest.mark.parametrize(
    ("text", "start", "stop"), [("0:8", 0, 8), (":", 0, 12), ("4:", 4, 12), (":3", 0, 3)]
)
def test_a_range_is_read_as_python_would(text: str, start: int, stop: int) -> None:
    assert parse_blocks(text, 12) == BlockRange(start, stop)


@pytest.mark.parametrize("text", ["", "8", "3:3", "5:2", "0:13", "-1:4", "a:b", "1:2:3"])
def test_what_is_no_range_of_the_model_is_refused_with_the_models_own(text: str) -> None:
    with pytest.raises(UserError, match="0:12"):
        parse_blocks(text, 12)
