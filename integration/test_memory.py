"""What a node costs: the bar with room for a machine that does other things as well."""

from __future__ import annotations

from .memory import MEMORY_MAX_MIB, READY_MAX_S, measure


def test_a_node_is_one_small_process_that_is_soon_ready() -> None:
    found = measure(starts=2, explain=False)
    assert found["processes"] == 1
    assert found["pss_mib"] <= MEMORY_MAX_MIB
    assert found["ready_cpu_s"] <= READY_MAX_S  # the time by the wall is the neighbours' as well
