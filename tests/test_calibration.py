"""Calibration: our C is exact in every way of serving, torch is near, and limits tell the two."""

from __future__ import annotations

from random import Random

import pytest
import torch
from checkpoints import save_random

from potluck.errors import UserError
from potluck.node.compute.calibration import (
    Pair,
    Spread,
    _compare,
    calibrate,
    odd_sizes,
    spans_of,
)
from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.native.library import why_not
from potluck.node.compute.numerics import WINDOW


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("small")
    save_random(folder, "llama", num_hidden_layers=2, max_position_embeddings=WINDOW)
    return open_checkpoint(str(folder))


@pytest.fixture(scope="module")
def spreads(small: Checkpoint) -> dict[tuple[str, str, int], Spread]:
    """Of random weights, read on random tokens."""
    dice = Random(1)
    ids = [dice.randrange(3, small.spec.vocab) for _ in range(WINDOW + 5)]
    found = calibrate(small, ids, formats=("int8",))
    return {(one.one, one.other, one.blocks): one for one in found}


@pytest.mark.skipif(why_not() is not None, reason="there is no C compiler here")
def test_in_ours_every_way_of_serving_gives_equal_bits(
    spreads: dict[tuple[str, str, int], Spread],
) -> None:
    for kind in ("int8 c1", "int8 c1 kv8"):
        for blocks in (1, 2):
            one = spreads[kind, kind, blocks]
            assert one.audits > 50 and one.limit == one.worst == 0


def test_torch_differs_from_itself_and_more_from_ours_but_little(
    spreads: dict[tuple[str, str, int], Spread],
) -> None:
    for blocks in (1, 2):
        assert 0 < spreads["int8 torch fp32", "int8 torch fp32", blocks].limit < 1e-3
    for name, spread in spreads.items():
        assert spread.most <= spread.limit < 0.2, name
        assert spread.median <= spread.most <= spread.worst


def test_rounding_on_the_wire_is_part_of_what_is_measured() -> None:
    """Two who differ by a millionth differ by more where eight bits are left of it; equal bits stay
    equal."""
    dice = torch.Generator().manual_seed(1)
    took, added, noise = torch.randn(3, 64, 32, generator=dice)
    again = took + added
    limits = {}
    for wire in ("f32", "bf16"):
        for other, gave in (("b", again + 1e-6 * noise), ("c", again.clone())):
            pair = Pair("a", other, wire)
            key = ("prompt", 0, (0, 1))
            _compare(pair, [{key: gave}], [{key: again}], [[took]])
            [spread] = pair.spreads()
            limits[wire, other] = spread.limit
    assert 0 < limits["f32", "b"] < 1e-4 < limits["bf16", "b"]
    assert limits["f32", "c"] == limits["bf16", "c"] == 0


def test_steps_cover_a_window_and_spans_stand_in_the_model() -> None:
    assert sum(odd_sizes(256)) == 256
    for blocks in (1, 2, 3, 8, 80):
        spans = spans_of(blocks)
        assert (0, blocks) in spans
        assert {stop - start for start, stop in spans} == {
            min(1 << power, blocks) for power in range(8)
        }
        for length in {stop - start for start, stop in spans}:
            placed = [start for start, stop in spans if stop - start == length]
            assert placed[0] == 0 and placed[-1] == blocks - length, "both ends"
        assert all(0 <= start < stop <= blocks for start, stop in spans)


def test_too_short_a_text_is_refused(small: Checkpoint) -> None:
    with pytest.raises(UserError, match="reads"):
        calibrate(small, range(WINDOW - 1))
