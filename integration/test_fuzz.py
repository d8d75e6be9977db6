"""A hostile peer, small: the whole attack is `python -m integration.fuzz`."""

from __future__ import annotations

from .enemy import ATTACKS
from .fuzz import measure


def test_a_node_outlives_a_hostile_peer_and_serves_on() -> None:
    """Each kind of attack at least once, another seed than the bar's."""
    found = measure(units=3000, seed=2)
    assert found["alive"]
    assert found["failures"] == []
    assert found["honest_answers"] >= 3
    assert found["left"]["sessions"] == found["left"]["leases"] == 0
    assert found["memory_grown_mib"] < 64
    assert set(found["by_kind"]) == set(ATTACKS)
    assert all(told["sent"] > 0 for told in found["by_kind"].values())
    assert sum(told["sent"] for told in found["by_kind"].values()) >= 3000
    assert found["punches_over_a_relay"]["streams_left"] == 0
    assert found["punches_over_a_relay"]["honest_answers"] >= 1
