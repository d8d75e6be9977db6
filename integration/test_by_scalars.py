"""Peers that say one byte a round have equal weights, and these are better than the start's."""

from __future__ import annotations

from .by_scalars import measure


def test_two_peers_learn_by_bytes_and_stay_equal_to_the_bit() -> None:
    """Each round waits for both, so the same bytes are said in every run."""
    found = measure(peers=2, rounds=4)
    assert found["equal_bits"]
    assert found["loss_after"] < found["loss_before"]
