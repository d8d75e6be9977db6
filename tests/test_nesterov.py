"""DiLoCo's outer step to the bit, states that are packed and named, means in a fixed order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import RemoteError
from potluck.node.compute.average.codec import GROUP, encode
from potluck.node.compute.average.nesterov import (
    Landing,
    Nesterov,
    Unreadable,
    cut,
    cuts,
    joined,
    mean_of,
)

DICE = torch.Generator().manual_seed(3)


def drawn(count: int) -> torch.Tensor:
    return torch.randn(count, generator=DICE)


def test_the_outer_step_is_numpys_one_rounding_at_a_time() -> None:
    """numpy has no fused multiply-add, so equal bits mean that torch used none."""
    at = Nesterov.begin(drawn(1000), (1000,))
    anchor, momentum = at.anchors[0].numpy(), np.zeros(1000, np.float32)
    for _ in range(5):
        motion = drawn(1000)
        at = at.after(0, motion)
        away = -motion.numpy()
        momentum = np.float32(0.5) * momentum + away
        anchor = anchor - np.float32(0.7) * (away + np.float32(0.5) * momentum)
        assert at.anchors[0].numpy().tobytes() == anchor.tobytes()
        assert at.momenta[0].numpy().tobytes() == momentum.tobytes()


def test_a_step_of_one_fragment_leaves_the_others() -> None:
    at = Nesterov.begin(drawn(300), (128, 172))
    after = at.after(1, drawn(172))
    assert after.digests[0] == at.digests[0] and after.digests[1] != at.digests[1]
    assert torch.equal(after.anchors[0], at.anchors[0])


def test_a_state_comes_back_as_it_was_packed_and_nothing_else_does() -> None:
    at = Nesterov.begin(drawn(300), (128, 172)).after(0, drawn(128))
    again = Nesterov.unpack(at.pack(), (128, 172))
    assert again.digests == at.digests
    with pytest.raises(RemoteError):
        Nesterov.unpack(at.pack()[:-1], (128, 172))
    with pytest.raises(RemoteError):
        Nesterov.unpack(b"\xff" * len(at.pack()), (128, 172))


def test_motion_beyond_what_numbers_hold_is_no_step() -> None:
    at = Nesterov.begin(torch.zeros(2), (2,))
    with pytest.raises(Unreadable):
        at.after(0, torch.full((2,), 1e30))


@given(count=st.integers(1, 100_000), fragments=st.integers(1, 20))
def test_fragments_make_up_the_whole_and_begin_where_groups_do(count: int, fragments: int) -> None:
    found = cuts(count, fragments)
    assert len(found) == min(fragments, -(-count // GROUP))
    assert sum(found) == count and min(found) > 0
    ends = [sum(found[: at + 1]) for at in range(len(found))]
    assert all(end % GROUP == 0 or end == count for end in ends)


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_how_a_vector_is_cut_changes_no_number_of_it(bits: int) -> None:
    """Else an attempt with other members would bring other numbers."""
    values = drawn(1000)
    whole = cut(values, (1000,), bits)[1]  # type: ignore[arg-type]
    for counts in ((128, 872), (0, 256, 744), (512, 0, 488)):
        parts, read = cut(values, counts, bits)  # type: ignore[arg-type]
        assert torch.equal(read, whole)
        assert torch.equal(joined(parts, counts, bits), whole)  # type: ignore[arg-type]


def test_a_mean_is_by_tokens_and_names_whose_numbers_are_none() -> None:
    gifts = [encode(torch.full((4,), float(value)), 32) for value in (1, 2, 4)]
    found = mean_of([*gifts, None], (1, 1, 2, 0), 4, 32)
    assert torch.allclose(found, torch.tensor((1 + 2 + 2 * 4) / 4))
    bad = encode(torch.full((4,), 1.0), 32)[:-4] + b"\xff" * 4
    with pytest.raises(Unreadable) as caught:
        mean_of([gifts[0], bad, None, gifts[1][:-1]], (1, 1, 1, 1), 4, 32)
    assert caught.value.at == (1, 3)
    large = encode(torch.full((4,), 3e38), 32)
    with pytest.raises(Unreadable) as caught:
        mean_of([gifts[0], large], (1, 1), 4, 32)
    assert caught.value.at == (1,)


def test_what_lands_keeps_the_motion_that_is_in_no_mean() -> None:
    before, after = torch.zeros(3), torch.full((3,), 5.0)
    sent, now = torch.full((3,), 1.0), torch.full((3,), 1.5)
    assert torch.equal(Landing(0, before, after, sent).on(now), torch.full((3,), 5.5))
    assert torch.equal(Landing(0, before, after).on(now), torch.full((3,), 6.5))
    mixed = Landing(0, before, after, sent, mix=0.25).on(now)
    assert torch.equal(mixed, torch.full((3,), 0.25 * 1.5 + 0.75 * 5))
