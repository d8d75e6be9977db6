"""Sessions in numbers, small: the whole soak is `python -m integration.soak`."""

from __future__ import annotations

from .soak import measure


def test_sessions_come_and_go_and_nothing_stays_open() -> None:
    """150 one after another, then 60 at once, twice. Memory is only held to account here for what
    a session that never ends would cost: 60 of them hold 60 pages of cache, 15 MiB."""
    found = measure(sessions=150, settle=50, at_once=60, waves=2)
    assert found["hung"] == 0
    assert found["left"] and not any(found["left"].values())
    assert found["sessions_per_s"] > 5  # guess: twenty times slower than an idle machine
    assert found["memory_growth_worst"] < 0.08
