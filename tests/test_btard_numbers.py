"""The arithmetic of a guarded group: the fixed point is reached, and what is off by more shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.node.runs.btard_numbers import (
    NUMBER,
    Floats,
    clip,
    cut,
    direction,
    is_fixed,
    measure,
    numbers,
)

COIN = b"c" * 32
seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, peers: int, width: int, spread: float = 1.0) -> list[Floats]:
    dice = np.random.default_rng(seed)
    found = 1.0 + spread * dice.standard_normal((peers, width))
    return [row.astype(NUMBER).astype(np.float64) for row in found]


def result_of(shares: list[Floats], radius: float) -> Floats:
    found = numbers(clip(shares, radius), len(shares[0]))
    assert found is not None
    return found


@given(
    seeds,
    st.integers(2, 16),
    st.integers(1, 40),
    st.sampled_from([0.01, 0.3, 1.0, 30.0]),
    st.sampled_from([0.0, 10.0, 1e6, 1e30]),
)
@settings(max_examples=60)
def test_the_clipped_shares_cancel_whatever_a_minority_sends(
    seed: int, peers: int, width: int, radius: float, far: float
) -> None:
    shares = drawn(seed, peers, width)
    for at in range((peers - 1) // 2):
        shares[at] = (shares[at] * -far).astype(NUMBER).astype(np.float64)
    assert is_fixed(shares, result_of(shares, radius), radius)


@given(seeds, st.integers(3, 16), st.integers(2, 300))
@settings(max_examples=40)
def test_the_sums_cancel_too_and_do_not_where_a_result_is_shifted(
    seed: int, peers: int, width: int
) -> None:
    shares, radius = drawn(seed, peers, width), 2.0 * width**0.5
    result, along = result_of(shares, radius), direction(COIN, 1, width)

    def total(at: Floats) -> float:
        return abs(sum(measure(share, at, radius, along)[0] for share in shares))

    slack = peers * (2e-7 * float(np.linalg.norm(result)) + 1e-8 * radius)
    assert total(result) <= slack
    shifted = (result + 0.01).astype(NUMBER).astype(np.float64)
    assert not is_fixed(shares, shifted, radius)
    if abs(along.sum()) > 0.05:  # the shift is not across the direction by chance
        assert total(shifted) > slack


def test_a_wide_radius_gives_the_mean_and_liars_are_held_to_the_radius() -> None:
    shares = drawn(3, 9, 50, 0.1)
    assert np.allclose(result_of(shares, 100.0), np.mean(shares, 0), atol=1e-6)
    honest = np.mean(shares[:5], 0)
    lies = [*shares[:5], *([np.full(50, -1e9)] * 4)]
    assert np.linalg.norm(result_of(lies, 1.0) - honest) < 4.5  # 4 radii, shared by 5 and a little
    assert np.linalg.norm(np.mean(lies, 0) - honest) > 1e8


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33])
def test_parts_are_the_whole(count: int) -> None:
    vector = np.arange(count).astype(NUMBER).tobytes()
    for parts in (1, 2, 16, 32):
        assert b"".join(cut(vector, parts)) == vector and len(cut(vector, parts)) == parts


def test_what_is_no_finite_vector_is_none() -> None:
    sound = np.ones(3, NUMBER)
    assert numbers(sound.tobytes(), 3) is not None
    assert numbers(sound.tobytes(), 4) is None
    assert numbers(None, 3) is None
    for bad in (np.nan, np.inf):
        sound[1] = bad
        assert numbers(sound.tobytes(), 3) is None
    share, far, scale = measure(np.ones(3), None, 1.0, direction(COIN, 0, 3))
    assert share == far == 0.0 and np.isnan(scale)


def test_directions_are_these_numbers_on_every_machine() -> None:
    found = direction(COIN, 2, 4)
    assert abs(float(found @ found) - 1) < 1e-12
    assert not np.allclose(found, direction(COIN, 3, 4))
    assert not np.allclose(found, direction(b"d" * 32, 2, 4))
