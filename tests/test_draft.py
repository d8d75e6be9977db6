"""What was said before, found by n-grams; and which classes of numbers allow guesses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.swarm.draft import ANY_ROWS, LONGEST, PLACES_MAX, SHORT_ROWS, LookUp, rows_alike

texts = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def read(ids: list[int]) -> LookUp:
    text = LookUp()
    text.read(ids)
    return text


def matches(ids: list[int]) -> dict[int, int]:
    """By brute force: each place where something followed the last tokens, and how many of them."""
    found = {}
    for place in range(1, len(ids)):
        length = 0
        while length < place and ids[place - 1 - length] == ids[-1 - length]:
            length += 1
        if length:
            found[place] = length
    return found


@given(texts, st.integers(1, 40))
def test_what_followed_the_longest_match_is_offered(ids: list[int], most: int) -> None:
    """Among the latest of the longest n-gram that was said before; it is one that brute force finds
    too, and as long in tokens as any of up to three."""
    offer, found = read(ids).offer(most), matches(ids)
    assert (offer is None) == (not found)
    if offer is None:
        return
    assert len(offer.tokens) == most
    longest = max(found.values())
    places = [one for one, length in found.items() if min(length, LONGEST) == min(longest, LONGEST)]
    circles = [
        tuple(ids[place + number % (len(ids) - place)] for number in range(most))
        for place in places[-PLACES_MAX:]
    ]
    assert offer.tokens in circles
    if len(places) <= PLACES_MAX:
        best = max(place for place in places if min(found[place], 16) == min(longest, 16))
        assert offer.tokens == circles[places.index(best)]


@given(texts, st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_a_text_read_bit_by_bit_is_the_same_text(ids: list[int], sizes: list[int]) -> None:
    text, at = LookUp(), 0
    for size in sizes * len(ids):
        text.read(ids[at : at + size])
        at += size
    assert len(text) == len(ids)
    assert text.offer(8) == read(ids).offer(8)


def test_a_text_that_goes_in_circles_is_guessed_to_go_on_so() -> None:
    offer = read([7, 1, 2, 1, 2, 1, 2]).offer(5)
    assert offer is not None and offer.tokens == (1, 2, 1, 2, 1)


def test_longer_matches_are_other_sources_than_short_ones() -> None:
    ids = list(range(20))
    sources = [read([*ids, *ids[4 : 4 + length]]).offer(1) for length in (1, 2, 3, 7, 12)]
    assert [one.source for one in sources if one] == [
        "said 1", "said 2", "said 3", "said 4", "said 8",
    ]  # fmt: skip


def test_nothing_is_offered_where_nothing_may_follow_or_nothing_was_read() -> None:
    assert read([1, 1, 1]).offer(0) is None
    assert LookUp().offer(3) is None


@pytest.mark.parametrize(
    ("numerics", "rows"),
    [
        ("none c1", ANY_ROWS),
        ("int8 c1 kv8", ANY_ROWS),
        ("fp32 torch 2.13.0 GenuineIntel 6 85 AVX512 threads 2 tiles1", ANY_ROWS),
        ("bf16 torch 2.13.0+cu130 NVIDIA H200 tiles1s", SHORT_ROWS),
        ("fp32 torch 2.13.0 GenuineIntel 6 85 AVX512 threads 2", 1),
        ("mixed-0123456789abcdef0123456789abcdef", 1),
        ("", 1),
        ("cuda tiles", 1),
    ],
)
def test_only_classes_whose_rows_do_not_feel_their_neighbours_allow_guesses(
    numerics: str, rows: int
) -> None:
    assert rows_alike(numerics) == rows
