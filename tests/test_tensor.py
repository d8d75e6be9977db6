"""Hidden states on the wire: exact bytes there, checked back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import RemoteError
from potluck.node.compute.tensor import TAGS, check_hidden, pack, payload_bytes, tag_of, unpack


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("holder", [bytes, bytearray, memoryview])
def test_what_is_packed_comes_back(tag: str, holder: type) -> None:
    hidden = torch.randn(5, 7).to(TAGS[tag])
    assert tag_of(hidden.dtype) == tag
    payload = pack(hidden)
    assert payload.nbytes == payload_bytes(5, 7, tag)
    back = unpack(holder(bytes(payload)), 5, 7, tag)
    assert torch.equal(back, hidden)


def test_the_wire_is_little_endian_rows() -> None:
    hidden = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    assert bytes(pack(hidden)) == np.array([1, -2, 0.5, 3], dtype="<f4").tobytes()
    assert bytes(pack(hidden, "bf16")).hex() == "803f00c0003f4040"


def test_plain_fp32_is_not_copied() -> None:
    hidden = torch.zeros(3, 4)
    payload = pack(hidden)
    hidden[2, 3] = 1.0
    assert payload[-4:] == np.float32(1).tobytes()
    buffer = bytearray(payload)
    assert unpack(buffer, 3, 4, "f32").data_ptr() == np.frombuffer(buffer, "u1").ctypes.data


def test_rows_of_a_larger_tensor_and_no_rows_at_all_are_packed() -> None:
    hidden = torch.randn(6, 4)
    assert bytes(pack(hidden[4:])) == bytes(pack(hidden))[-32:]
    assert bytes(pack(hidden[:, 1:3])) == hidden[:, 1:3].contiguous().numpy().tobytes()
    assert pack(hidden[6:]).nbytes == 0


def test_a_payload_that_starts_anywhere_is_read() -> None:
    frame = b"header." + bytes(pack(torch.ones(2, 3)))
    assert torch.equal(unpack(memoryview(frame)[7:], 2, 3, "f32"), torch.ones(2, 3))
    assert torch.equal(unpack(memoryview(bytearray(frame))[7:], 2, 3, "f32"), torch.ones(2, 3))


@given(st.integers(0, 64))
def test_a_payload_of_another_size_is_refused(size: int) -> None:
    if size != 24:
        with pytest.raises(RemoteError, match="24 expected"):
            unpack(bytes(size), 2, 3, "f32")


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(tag: str, value: float) -> None:
    for place in (0, 499, 999):
        hidden = torch.randn(10, 100).to(TAGS[tag])
        hidden.view(-1)[place] = value
        with pytest.raises(RemoteError, match="not finite"):
            check_hidden(pack(hidden), 10, 100, tag)
    both = torch.tensor([[float("inf"), float("-inf")]]).to(TAGS[tag])
    with pytest.raises(RemoteError, match="not finite"):
        check_hidden(pack(both), 1, 2, tag)


def test_large_finite_numbers_are_let_through() -> None:
    """Their sum overflows, they do not."""
    check_hidden(pack(torch.full((4, 8), 3e38)), 4, 8, "f32")
    check_hidden(pack(torch.full((4, 8), 65504.0), "f16"), 4, 8, "f16")


@pytest.mark.parametrize(
    ("tokens", "width", "tag"), [(0, 4, "f32"), (1, 0, "f32"), (-1, -1, "f32"), (1, 1, "f64")]
)
def test_shapes_and_tags_that_no_peer_sends_are_refused(tokens: int, width: int, tag: str) -> None:
    with pytest.raises(RemoteError):
        unpack(b"1234", tokens, width, tag)
