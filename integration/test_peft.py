"""PEFT's own logits with our adapters, and ours with its: where PEFT is installed."""

from __future__ import annotations

import pytest

from .bars_f import LOGITS_APART_MAX

pytest.importorskip("peft", reason="a test oracle that is no dependency: pip install peft")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's, of what transformers renames
def test_adapters_go_to_peft_and_come_from_it_with_the_same_logits() -> None:
    from .peft_oracle import measure

    for found in measure():
        for how in ("native", "torch", "ours_in_peft"):
            assert found[how]["relative"] <= LOGITS_APART_MAX, (how, found)
        assert found["same_digest"] and found["adapter_itself"]["relative"] > 0.01
