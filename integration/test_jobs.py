"""Jobs over real servers: right, each line once, though its processes and nodes are killed."""

from __future__ import annotations

from .jobs import measure


def test_a_batch_is_answered_right_though_its_processes_and_nodes_are_killed() -> None:
    """The submitter, the worker, both and two nodes, in random places of 100 lines. The whole is
    bar F8."""
    found = measure(prompts=100, kills=5, seed=3)
    assert found["lines"] == found["right"] == 100 and found["errors"] == 0
    assert sorted(found["killed"]) == ["both", "peer", "peer", "submitter", "worker"]
