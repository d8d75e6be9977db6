"""Rows in groups on the wire: as many bytes as announced, each row for itself, near what it was."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import RemoteError
from potluck.node.compute.tensor import check_hidden, pack, payload_bytes, unpack
from potluck.swarm.rows import CODECS, GROUP, GROUP_BITS, row_bytes

LEVELS = {"int8": 127, "int4": 7}
coded = pytest.mark.parametrize("tag", GROUP_BITS)
widths = st.integers(1, 3 * GROUP + 1)


def draw(seed: int, tokens: int, width: int) -> torch.Tensor:
    """Rows with a few channels that are a hundred times the others, as models have them."""
    dice = torch.Generator().manual_seed(seed)
    loud = torch.where(torch.rand(width, generator=dice) < 0.02, 100.0, 1.0)
    return torch.randn(tokens, width, generator=dice) * loud


@given(widths, st.sampled_from(CODECS))
def test_a_coarser_codec_has_fewer_bytes(width: int, codec: str) -> None:
    sizes = [row_bytes(width + 3, one) for one in CODECS]
    assert sizes == sorted(sizes, reverse=True)
    assert payload_bytes(3, width, codec) == 3 * row_bytes(width, codec)


def test_int8_is_half_of_bf16_and_a_scale() -> None:
    assert row_bytes(4096, "int8") == 4096 + 2 * 32
    assert row_bytes(192, "int8") == 192 + 2 * 2
    assert row_bytes(4096, "int4") == 2048 + 2 * 32
    with pytest.raises(RemoteError, match="unknown dtype"):
        row_bytes(4, "int2")


@coded
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), widths)
def test_a_number_comes_back_within_half_a_scale(
    tag: str, seed: int, tokens: int, width: int
) -> None:
    hidden = draw(seed, tokens, width)
    payload = pack(hidden, tag)
    assert payload.nbytes == payload_bytes(tokens, width, tag)
    back = unpack(bytes(payload), tokens, width, tag)
    assert back.shape == hidden.shape and back.dtype == torch.float32
    for at in range(0, width, GROUP):
        group, came = hidden[:, at : at + GROUP], back[:, at : at + GROUP]
        scale = group.abs().amax(1, keepdim=True) / LEVELS[tag] * (1 + 2**-10) + 2**-24
        assert bool(((came - group).abs() <= scale * 0.5001).all())


@coded
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), widths)
def test_a_row_has_the_same_bytes_in_any_company(
    tag: str, seed: int, tokens: int, width: int
) -> None:
    """So that steps may be cut, replayed, and hashed row by row."""
    hidden = draw(seed, tokens, width)
    alone = [bytes(pack(hidden[row : row + 1], tag)) for row in range(tokens)]
    assert b"".join(alone) == bytes(pack(hidden, tag))


def test_the_bytes_are_these() -> None:
    """A scale of 2 (for 7 * 2 or 127 * 2), little-endian fp16; then codes, the odd one last."""
    assert bytes(pack(torch.tensor([[254.0, -2.0, 4.0]]), "int8")).hex() == "00407fff02"
    assert bytes(pack(torch.tensor([[14.0, -2.0, 4.0]]), "int4")).hex() == "0040f702"


@coded
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_at_the_other_end(tag: str, value: float) -> None:
    hidden = torch.ones(4, 200)
    hidden[2, 150] = value
    with pytest.raises(RemoteError, match="scale"):
        check_hidden(pack(hidden, tag), 4, 200, tag)


@coded
@given(st.data())
def test_what_no_peer_writes_is_refused_or_read_and_never_more(
    tag: str, data: st.DataObject
) -> None:
    """Any bytes of the right size: finite rows, or RemoteError."""
    width = data.draw(st.sampled_from([1, 5, 130]))
    raw = data.draw(st.binary(min_size=row_bytes(width, tag), max_size=row_bytes(width, tag)))
    try:
        found = unpack(raw, 1, width, tag)
    except RemoteError:
        return
    assert bool(found.isfinite().all())
    assert float(found.abs().max()) <= 65504.0 * LEVELS[tag]


@coded
def test_a_code_beyond_the_levels_and_one_beyond_the_row_are_refused(tag: str) -> None:
    raw = bytearray(pack(torch.ones(1, 3), tag))
    raw[2] = 0x80 if tag == "int8" else 0x08
    with pytest.raises(RemoteError, match="codes"):
        unpack(raw, 1, 3, tag)
    if tag == "int4":
        raw = bytearray(pack(torch.ones(1, 3), tag))
        raw[3] |= 0x10
        with pytest.raises(RemoteError, match="codes"):
            unpack(raw, 1, 3, tag)
