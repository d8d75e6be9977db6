"""A guarded group over real hosts: a liar is convicted, and the others stay equal and learn."""

from __future__ import annotations

from .guarded import measure


def test_a_liar_is_convicted_over_real_hosts_and_nobody_else() -> None:
    """Of four, an honest one draws the liar in a quarter of the attempts: forty escape it with
    probability 1e-5, and the coins of these seeds are always the same."""
    found = measure(peers=4, liars=1, steps=40, windows=20)
    assert found["convicted_by_all"] == 1
    assert found["honest_convicted"] == found["honest_without_outcome"] == 0
    assert found["states"] == 1
