"""Vectors on the wire and tensors in a row: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potluck.errors import RemoteError, UserError
from potluck.node.compute.average.codec import GROUP, Bits, Feedback, decode, encode, size_of
from potluck.node.compute.average.flat import Flat

seeds = st.integers(0, 2**32 - 1)
counts = st.integers(0, 3 * GROUP)
every = pytest.mark.parametrize("bits", get_args(Bits))
rounded = pytest.mark.parametrize("bits", [4, 8])
LEVELS = {4: 7, 8: 127}


def draw(seed: int, count: int, power: float = 0.0) -> Tensor:
    """Numbers of very unlike sizes."""
    dice = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** (power + 3 * torch.randn(count, generator=dice).clamp(-2, 1))
    return torch.randn(count, generator=dice) * sizes


def bounds(values: Tensor, bits: Bits) -> Tensor:
    """Half a scale, of each number's group: a scale is the group's largest over the levels, rounded
    up to fp16 (one in 1024, or the smallest fp16), and products round in fp32."""
    padded = torch.nn.functional.pad(values, (0, -len(values) % GROUP)).view(-1, GROUP)
    scales = padded.abs().amax(1, keepdim=True) / LEVELS[bits] * (1 + 2**-10) + 2**-24
    return (scales * (0.5 + 1e-4)).expand(-1, GROUP).reshape(-1)[: len(values)]


@every
@given(seeds, counts)
def test_bytes_are_as_many_as_announced(bits: Bits, seed: int, count: int) -> None:
    assert len(encode(draw(seed, count), bits)) == size_of(count, bits)


@given(seeds, counts)
def test_fp32_comes_back_to_the_bit(seed: int, count: int) -> None:
    values = draw(seed, count)
    assert torch.equal(decode(encode(values, 32), count, 32), values)


@rounded
@given(seeds, counts, st.floats(-9, 1))
def test_a_number_comes_back_within_half_a_scale(
    bits: Bits, seed: int, count: int, power: float
) -> None:
    values = draw(seed, count, power)
    apart = (decode(encode(values, bits), count, bits) - values).abs()
    assert bool((apart <= bounds(values, bits)).all())


@rounded
@given(seeds, st.integers(1, 3 * GROUP))
def test_what_was_rounded_once_is_not_rounded_again(bits: Bits, seed: int, count: int) -> None:
    """But for a scale that the second rounding finds one step of fp16 away."""
    once = decode(encode(draw(seed, count), bits), count, bits)
    again = decode(encode(once, bits), count, bits)
    assert bool(((again - once).abs() <= bounds(once, bits)).all())


@rounded
def test_the_bytes_are_these(bits: Bits) -> None:
    """Golden: scale 2 (for 7 * 2 or 127 * 2), then codes; the rest of the group is zero."""
    values = torch.tensor([2.0 * LEVELS[bits], -2.0, 4.0, 0.0])
    data = encode(values, bits)
    assert data[:2].hex() == "0040"
    assert data[2:6].hex() == {8: "7fff0200", 4: "f7020000"}[bits]
    assert not any(data[6:])


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_sent(bits: Bits, bad: float) -> None:
    values = torch.ones(5)
    values[3] = bad
    with pytest.raises(ValueError, match="finite"):
        encode(values, bits)


@pytest.mark.parametrize("values", [torch.ones(2, 2), torch.ones(3).double(), torch.ones(3).int()])
def test_only_a_vector_of_fp32_is_sent(values: Tensor) -> None:
    with pytest.raises(ValueError, match="fp32"):
        encode(values, 8)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_fp32_that_is_not_finite_is_refused(bad: float) -> None:
    data = torch.tensor([1.0, bad]).numpy().tobytes()
    with pytest.raises(RemoteError, match="finite"):
        decode(data, 2, 32)


@rounded
@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0, 0.0])
def test_a_scale_that_is_no_scale_is_refused(bits: Bits, scale: float) -> None:
    data = encode(torch.ones(GROUP), bits)
    forged = torch.tensor([scale], dtype=torch.float16).numpy().tobytes() + data[2:]
    with pytest.raises(RemoteError, match="scale"):
        decode(forged, GROUP, bits)


@rounded
@pytest.mark.parametrize("at", [0, -1])
def test_codes_that_are_never_written_are_refused(bits: Bits, at: int) -> None:
    """-128 or -8; and something where the group is filled up with zeros."""
    data = bytearray(encode(torch.ones(GROUP - 2), bits))
    data[at or 2] = {8: 0x80, 4: 0x08}[bits]
    with pytest.raises(RemoteError, match="codes"):
        decode(data, GROUP - 2, bits)


@every
@given(st.binary(max_size=3 * GROUP), st.integers(0, GROUP + 1))
def test_garbage_is_refused_or_is_finite(bits: Bits, data: bytes, count: int) -> None:
    try:
        found = decode(data, count, bits)
    except RemoteError:
        return
    assert found.shape == (count,)
    assert bool(torch.isfinite(found).all())


@every
@pytest.mark.parametrize("more", [-1, 1, 1_000])
def test_another_length_is_refused(bits: Bits, more: int) -> None:
    data = encode(torch.ones(GROUP), bits)
    with pytest.raises(RemoteError, match="numbers of"):
        decode((data + bytes(1_000))[: len(data) + more], GROUP, bits)


@rounded
@settings(max_examples=20)
@given(seeds)
def test_what_is_sent_adds_up_to_what_was_to_be_told(bits: Bits, seed: int) -> None:
    """However long it goes on, never more than one rounding is owed; without memory it adds up."""
    feedback = Feedback(bits)
    told, heard = torch.zeros(200), torch.zeros(200)
    most = torch.zeros(200)
    for step in range(40):
        values = draw(seed ^ step, 200, -2.0).clamp(-1, 1)
        told += values
        heard += decode(feedback.encode(values), 200, bits)
        most = torch.maximum(most, torch.full((200,), float(values.abs().max())))
    # What is owed is at most half a scale of (the largest + what was owed), so at most this:
    owed = most / (2 * LEVELS[bits] - 1.1)
    assert bool(((told - heard).abs() <= owed * 1.01 + 1e-4).all())


def test_without_feedback_small_numbers_beside_large_ones_are_never_told() -> None:
    values = torch.full((GROUP,), 0.01)
    values[0] = 1.0
    plain = sum(decode(encode(values, 4), GROUP, 4) for _ in range(100))
    feedback = Feedback(4)
    kept = sum(decode(feedback.encode(values), GROUP, 4) for _ in range(100))
    assert isinstance(plain, Tensor)
    assert isinstance(kept, Tensor)
    assert float(plain[1:].abs().max()) == 0.0
    torch.testing.assert_close(kept[1:], torch.ones(GROUP - 1), atol=0.1, rtol=0)


def test_what_feedback_refuses_leaves_nothing_behind() -> None:
    feedback, other = Feedback(4), Feedback(4)
    values = draw(3, 50)
    feedback.encode(values)
    other.encode(values)
    with pytest.raises(ValueError, match="finite"):
        feedback.encode(values * math.nan)
    with pytest.raises(ValueError, match="51 numbers after 50"):
        feedback.encode(torch.ones(51))
    assert feedback.encode(values) == other.encode(values)


named = st.dictionaries(
    st.text("abc.", min_size=1, max_size=4),
    st.lists(st.integers(1, 3), max_size=3).map(tuple),
    min_size=1,
    max_size=4,
)


@given(named, seeds)
def test_tensors_come_back_by_name_whatever_their_order(
    shapes: dict[str, tuple[int, ...]], seed: int
) -> None:
    dice = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=dice) for name, shape in shapes.items()}
    flat = Flat.of(tensors)
    assert flat == Flat.of(dict(reversed(tensors.items())))
    vector = flat.join(dict(reversed(tensors.items())))
    assert vector.shape == (flat.count,)
    assert sum(flat.sizes) == flat.count
    for name, tensor in flat.split(vector).items():
        assert torch.equal(tensor, tensors[name])


def test_a_vector_is_a_copy() -> None:
    tensors = {"b": torch.ones(3, requires_grad=True)}
    vector = Flat.of(tensors).join(tensors)
    vector += 1
    assert not vector.requires_grad
    assert bool((tensors["b"] == 1).all())


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": torch.ones(2)}, "other names"),
        ({"a": torch.ones(3), "b": torch.ones(1)}, "other names"),
        ({"a": torch.tensor([1.0, math.nan, 1.0])}, "a has numbers"),
        ({"a": torch.tensor([1.0, math.inf, 1.0])}, "a has numbers"),
        ({"a": torch.ones(3).int()}, "torch.int32"),
        ({}, "nothing to train"),
    ],
)
def test_what_is_not_the_runs_is_refused(tensors: dict[str, Tensor], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Flat.of({"a": torch.ones(3)}).join(tensors)


def test_a_vector_of_another_length_is_not_split() -> None:
    with pytest.raises(ValueError, match="wanted"):
        Flat.of({"a": torch.ones(3)}).split(torch.ones(4))
