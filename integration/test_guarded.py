"""A guarded group over real hosts: a liar is convicted, and the others stay equal and learn."""

from __future__ import annotations

from .guarded import measure
from .guarded_draws import measure as drawn


def test_a_liar_is_convicted_over_real_hosts_and_nobody_else() -> None:
    """Of four, an honest one draws the liar in a quarter of the attempts: forty escape it with
    probability 1e-5, and the coins of these seeds are always the same."""
    found = measure(peers=4, liars=1, steps=40, windows=20)
    assert found["convicted_by_all"] == 1
    assert found["honest_convicted"] == found["honest_without_outcome"] == 0
    assert found["states"] == 1 and found["drawn_and_not_convicted"] == 0


def test_liars_that_stand_together_are_convicted_whenever_they_are_drawn() -> None:
    """Two of five, who find one another innocent. An attempt comes to nothing when somebody honest
    has drawn one of them, and only then (guarded_draws.py)."""
    found = drawn(peers=5, liars=2, groups=6)
    assert found["convicted"] == 12 and found["honest_convicted"] == 0
    assert found["foreseen"] == 5.33 and found["bound"] == 6.67
