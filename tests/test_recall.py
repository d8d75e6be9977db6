"""What forwards left: bounded by what is free, taken once, the oldest gone first."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from potluck.node.recall import Recall


@dataclass(frozen=True)
class Left:
    bytes: int


def fit(beside: list[tuple[int, Left]], limit: int) -> None:
    while sum(one.bytes for _, one in beside) > limit:
        beside.pop(0)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 40), st.integers(0, 100), st.booleans()),
        max_size=30,
    )
)
def test_it_never_takes_more_than_is_free_and_gives_back_what_it_was_given_last(
    steps: list[tuple[int, int, int, bool]],
) -> None:
    """Against a list; the limit moves with every step."""
    limit, beside = 100, list[tuple[int, Left]]()
    recall = Recall(lambda: limit)
    for key, size, limit, takes in steps:
        if takes:
            wanted = next((one for name, one in beside if name == key), None)
            assert recall.take(key) is wanted
            beside = [one for one in beside if one[0] != key]
        else:
            with recall.promised(size) as may:
                assert may == (size <= limit)
                assert recall.bytes <= limit
            if may:
                fit(beside, limit - size)
                beside = [one for one in beside if one[0] != key]
                beside.append((key, left := Left(size)))
                recall.keep(key, left)
        fit(beside, limit)
        recall.make_room()
        assert recall.bytes == sum(one.bytes for _, one in beside)


def test_what_is_promised_is_room_that_nothing_else_has() -> None:
    recall = Recall(lambda: 100)
    recall.keep("old", old := Left(60))
    with recall.promised(50) as first, recall.promised(50) as second, recall.promised(1) as third:
        assert (first, second, third) == (True, True, False)
        assert recall.take("old") is None and old.bytes == 60
    assert recall.bytes == 0


def test_nothing_is_kept_of_what_would_be_nothing() -> None:
    with Recall(lambda: 100).promised(0) as may:
        assert not may
