"""What the codes of a matrix stand for, and matrices put together and taken apart."""

import pytest
import torch

from potluck.node.compute.quant.quantizers import to_int8, to_nf4
from potluck.node.compute.weight import NF4, Weight, join


def test_int8_stands_for_code_times_scale_over_127() -> None:
    codes = torch.tensor([[127, -127, 0], [1, 64, -1]], dtype=torch.int8)
    weight = Weight("int8", 2, 3, codes, torch.tensor([2.0, 12.7]))
    found = weight.dequantize()
    torch.testing.assert_close(found, torch.tensor([[2.0, -2.0, 0.0], [0.1, 6.4, -0.1]]))


def test_a_byte_of_nf4_holds_two_columns_the_first_in_its_high_half() -> None:
    codes = torch.arange(32, dtype=torch.uint8).view(1, 32)
    codes[0, 0] = 0x1F
    weight = Weight("nf4", 1, 64, codes, torch.tensor([[3.0]]))
    found = weight.dequantize()[0]
    assert found[0].item() == torch.tensor(NF4[1]).mul(3).item()
    assert found[1].item() == 3.0
    expected = [NF4[half] for byte in codes[0].tolist() for half in (byte >> 4, byte & 15)]
    assert torch.equal(found, torch.tensor(expected) * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_plain_numbers_are_kept_as_they_are(dtype: torch.dtype) -> None:
    matrix = torch.randn(3, 5).to(dtype)
    weight = Weight.plain(matrix)
    assert weight.codes is matrix
    assert torch.equal(weight.dequantize(), matrix.float())
    assert weight.nbytes == matrix.nbytes


@pytest.mark.parametrize("make", [Weight.plain, to_int8, to_nf4])
def test_rows_joined_and_picked_are_those_of_the_parts(make: object) -> None:
    assert callable(make)
    one, two = make(torch.randn(3, 128)), make(torch.randn(5, 128))
    both = join([one, two])
    assert (both.rows, both.columns) == (8, 128)
    assert torch.equal(both.dequantize(), torch.cat([one.dequantize(), two.dequantize()]))
    assert torch.equal(both.pick(2, 5).dequantize(), both.dequantize()[2:5])
    assert join([one]) is one
    assert both.nbytes == one.nbytes + two.nbytes


def test_matrices_of_two_formats_or_widths_are_not_joined() -> None:
    plain, coded = Weight.plain(torch.randn(2, 64)), to_int8(torch.randn(2, 64))
    with pytest.raises(ValueError, match="several formats"):
        join([plain, coded])
    with pytest.raises(ValueError, match="several formats"):
        join([plain, Weight.plain(torch.randn(2, 32))])
