"""A checkpoint goes on over real servers that divide the model in another way."""

from __future__ import annotations

from .resumed import measure


def test_what_was_saved_under_four_stages_goes_on_under_three_with_equal_losses() -> None:
    found = measure(before=2, after=2)
    assert found["losses_resumed"] == found["losses"]  # issue F, bar 8
