"""Turns: as transformers computes them, by position alone, and the same bits everywhere."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from potluck.node.compute.fields import Fields
from potluck.node.compute.rope import Angles, Turns, frequencies, interleave, sin_cos
from potluck.node.compute.ropespec import RopeSpec, rope_from

POSITIONS = 1024
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.01 * pair for pair in range(32)],
        "long_factor": [1.0 + 0.5 * pair for pair in range(32)],
        "original_max_position_embeddings": 256,
    },
}


def rope(settings: dict[str, Any], theta: float = 10_000.0) -> RopeSpec:
    fields = Fields({"rope_parameters": settings}, "config.json")
    return rope_from(fields, POSITIONS, 64, theta, su=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("theta", [500.0, 10_000.0, 1e6])
def test_frequencies_are_those_of_transformers(kind: str, theta: float) -> None:
    config = transformers.LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        rope_parameters=KINDS[kind] | {"rope_theta": theta},
    )
    for stretched in (False, True):
        length = POSITIONS if stretched else None
        expected, factor = ROPE_INIT_FUNCTIONS[kind](config, None, seq_len=length)
        found, ours = frequencies(rope(KINDS[kind], theta), 64, stretched=stretched)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
        assert ours == pytest.approx(factor, rel=1e-7)


@given(st.lists(st.floats(0, 2**27, width=32), min_size=1, max_size=50))
def test_sines_are_right_to_the_last_bits_of_a_double(angles: list[float]) -> None:
    x = np.array(angles, np.float32)
    sine, cosine = sin_cos(x)
    np.testing.assert_allclose(sine, np.sin(x.astype(np.float64)), rtol=0, atol=3e-16)
    np.testing.assert_allclose(cosine, np.cos(x.astype(np.float64)), rtol=0, atol=3e-16)


@pytest.mark.parametrize("kind", [*KINDS, "default", "dynamic"])
def test_a_row_is_the_same_however_the_table_grew(kind: str) -> None:
    settings = KINDS.get(kind, {"rope_type": kind} | ({"factor": 2.0} if kind != "default" else {}))
    whole = Angles(rope(settings), 64, model_positions=100)
    grown = Angles(rope(settings), 64, model_positions=100)
    cos, sin = whole.rows(0, 3000)
    for at in (0, 1, 99, 100, 1023, 1024, 2999):
        one = grown.rows(at, at + 1)
        assert np.array_equal(one[0], cos[at : at + 1])
        assert np.array_equal(one[1], sin[at : at + 1])


def test_the_bits_of_a_table_are_the_same_on_every_machine() -> None:
    """Additions and products of doubles alone: whoever computes another sum has another class."""
    hasher = hashlib.sha256()
    for settings in [*KINDS.values(), {"rope_type": "default"}, {"rope_type": "dynamic"}]:
        spec = rope({"factor": 2.0, **settings} if settings["rope_type"] == "dynamic" else settings)
        for part in Angles(spec, 64, model_positions=100).rows(0, 2048):
            hasher.update(part.astype("<f4").tobytes())
    assert hasher.hexdigest()[:16] == "4294bdf35b03a362"


def test_turns_beyond_the_rotary_part_are_ones() -> None:
    angles = Angles(RopeSpec(), 12, model_positions=64)
    rows = Turns(angles, 16, device=torch.device("cpu")).rows(5, 9)
    assert rows.shape == (4, 1, 8)
    assert torch.equal(rows[:, :, 6:], torch.ones((4, 1, 2), dtype=torch.complex64))
    cos, sin = angles.rows(5, 9)
    assert np.array_equal(rows[:, 0, :6].real.numpy(), cos)
    assert np.array_equal(rows[:, 0, :6].imag.numpy(), sin)


def test_halves_become_pairs_and_the_rest_stays() -> None:
    weight = torch.arange(2 * 8 * 3).view(16, 3)
    rows = interleave(weight, 8, 6)[:, 0] // 3
    assert rows.tolist() == [0, 3, 1, 4, 2, 5, 6, 7, 8, 11, 9, 12, 10, 13, 14, 15]
