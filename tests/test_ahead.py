"""What lies on whose disk, as all can tell from what is signed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from potluck.swarm.ahead import (
    AHEAD_EVERY_S,
    AHEAD_SPANS,
    at_hand,
    blocks_ahead,
    is_ready,
    spans_ahead,
)

peers, totals = st.text(max_size=8), st.integers(1, 40)


@given(peer=peers, total=totals, length=st.integers(1, 6), age_s=st.floats(-1e4, 1e6))
def test_a_peer_has_the_first_blocks_of_its_run_and_never_fewer_than_before(
    peer: str, total: int, length: int, age_s: float
) -> None:
    found = at_hand(peer, total, length, age_s)
    count = min(total, length * spans_ahead(age_s))
    assert found.sum() == count and len(found) == total
    assert set(np.flatnonzero(found).tolist()) == set(blocks_ahead(peer, total, count))
    assert (found <= at_hand(peer, total, length, age_s + AHEAD_EVERY_S)).all()
    assert spans_ahead(age_s) <= AHEAD_SPANS
    assert not at_hand(peer, total, length, AHEAD_EVERY_S - 1).any()


@given(peer=peers, total=totals)
def test_a_run_goes_through_every_block_once(peer: str, total: int) -> None:
    run = blocks_ahead(peer, total, 10 * total)
    assert sorted(run) == list(range(total))
    assert all(after == (before + 1) % total for before, after in pairwise(run))


@given(peer=peers, total=totals, length=st.integers(1, 6), spans=st.integers(0, AHEAD_SPANS))
def test_a_window_is_ready_when_all_of_it_is_at_hand(
    peer: str, total: int, length: int, spans: int
) -> None:
    length, age_s = min(length, total), spans * AHEAD_EVERY_S
    found = at_hand(peer, total, length, age_s)
    wanted = [bool(found[at : at + length].all()) for at in range(total - length + 1)]
    assert is_ready(peer, total, length, age_s).tolist() == wanted


def test_what_a_few_peers_have_is_not_the_same() -> None:
    """Of 24 candidates with a fourth each nobody has a block once in a thousand times."""
    crowds = ([at_hand(f"{crowd}/{n}", 32, 1, 1e6) for n in range(24)] for crowd in range(100))
    assert np.mean([np.any(found, axis=0) for found in crowds]) > 0.995
