"""Verified work in simulation: liars are banned on time, honest peers never, gangs gain nothing."""

from __future__ import annotations

from .audit_sim import honest_bans, until_ban
from .credit_sim import first_token_s, split


def test_a_cheaters_chunks_until_its_ban_are_as_the_rate_says() -> None:
    """Forty runs of fixed seeds: the interval holds 1 / (p q), and nobody honest is banned."""
    for cheat in (1.0, 0.1):
        found = until_ban(40, cheat, 0.99, 200)
        low, high = found["interval_95"]
        assert low <= found["expected_1_over_pq"] <= high
        assert found["not_banned"] == found["honest_banned"] == 0


def test_among_strangers_cheaters_are_banned_too_and_the_honest_are_not() -> None:
    found = until_ban(20, 1.0, 0.99, 0)
    assert found["not_banned"] == found["honest_banned"] == 0
    assert found["mean"] < 1 / (0.05 * 0.99)


def test_a_third_that_lies_together_has_nobody_banned() -> None:
    for know in (0, 200):
        assert honest_bans(2, 4, know, 1000)["honest_banned"] == 0


def test_splitting_gains_at_most_a_twentieth() -> None:
    assert max(split().values()) <= 1.05


def test_free_riders_hardly_delay_a_contributor() -> None:
    """Its requests take half of the device: one seed, a quarter of an hour, ten riders."""
    alone, among = (sorted(first_token_s(1, 0.5, riders)) for riders in (0, 10))
    assert among[int(0.95 * len(among))] <= 1.2 * alone[int(0.95 * len(alone))]
