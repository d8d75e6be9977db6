"""Sessions come and go on one device: nobody's words change. The whole run is `churn32`."""

from __future__ import annotations

import pytest

from potluck.node.compute.native.library import why_not

from .churn32 import SESSIONS, measure

WORDS = 40  # of a talker beside a flood: how fast they come is measured elsewhere


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.skipif(why_not() is not None, reason="the compiled kernels are not here")
def test_whoever_shares_the_device_no_word_changes_and_no_page_is_lost(quantization: str) -> None:
    """Some seconds of 32 at a time, of which a third leave early or are cut off; then a flood of
    long prompts. Rates are held to nothing here: the machine may be busy with others."""
    found = measure(
        seconds=4, scripts=12, engine="native", quantization=quantization, talker_words=WORDS
    )
    assert found["sessions"] >= SESSIONS and found["cut off"]
    assert found["wrong"] == []
    assert found["refused"] == 0
    assert found["pages_used_at_the_end"] == found["pages_promised_at_the_end"] == 0
    assert found["leases_at_the_end"] == 0
    assert found["flooded"]["prompt_rows_per_s"] > 0


def test_neither_on_a_stage_of_torch() -> None:
    """Each session by itself, in the schedule's order."""
    found = measure(seconds=2, scripts=6, engine="torch", talker_words=WORDS // 4)
    assert found["wrong"] == [] and found["sessions"] > 0
    assert found["leases_at_the_end"] == 0
