"""Real processes, real kills: the words stay the same. The whole sweep is `make bars`."""

from __future__ import annotations

from .failover import sweep


async def test_a_kill_in_any_stage_or_in_prefill_changes_no_word() -> None:
    """Token 0 and 16 of each stage, two stages at once, and each stage in prefill; greedy here,
    sampled in the whole sweep and in the client's test."""
    found = await sweep(16, ["greedy"])
    assert found["different"] == []
    assert found["runs"] >= 10 and found["hops_lost"] >= found["runs"]
