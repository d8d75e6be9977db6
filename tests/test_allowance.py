"""Token buckets: nobody has more than is due to him, and nobody honest is ever short."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from potluck.dht.allowance import PEERS_REMEMBERED, Allowances, allowance

waits = st.floats(0, 10)


@given(st.lists(st.tuples(waits, st.floats(0.1, 5)), max_size=50))
def test_what_is_had_is_never_more_than_was_saved_and_came_since(
    asked: list[tuple[float, float]],
) -> None:
    one, now, had = allowance(2.0, 7.0, 0.0), 0.0, 0.0
    for wait_s, count in asked:
        now += wait_s
        holds = one.holds(now, count)
        assert one.has(now, count) == holds
        had += count if holds else 0.0
        assert had <= 7.0 + 2.0 * now + 1e-6


@given(st.lists(waits.map(lambda wait_s: wait_s + 0.5), max_size=50))
def test_who_keeps_to_the_rate_always_has_one(gaps: list[float]) -> None:
    one, now = allowance(2.0, 7.0, 0.0), 0.0
    for gap_s in gaps:
        now += gap_s
        assert one.has(now) and one.take(now, 0.0) == 0.0


def test_nobody_renews_his_by_coming_anew_and_no_more_are_remembered_than_so_many() -> None:
    each = Allowances(0.1, 3.0)
    assert [each.of("mallory", 0.0).has(0.0) for _ in range(4)] == [True, True, True, False]
    assert not each.of("mallory", 5.0).has(5.0)  # half of one came since
    for number in range(PEERS_REMEMBERED + 10):
        each.of(f"p{number}", 6.0).take(6.0)
    assert len(each) == PEERS_REMEMBERED
    each.of("late", 1000.0).take(1000.0)
    assert len(each) == 1  # who has all of his again is forgotten
