"""Records that nobody may believe, once each: more rounds are `python -m integration.records`."""

from __future__ import annotations

from .records import measure


def test_no_reader_takes_a_record_that_it_should_not() -> None:
    found = measure(rounds=1, processes=1)
    assert found["taken_which"] == []
    assert found["robbed_which"] == []
    assert found["hostile"] >= 50
