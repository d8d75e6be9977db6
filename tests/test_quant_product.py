"""Products without our kernels: exact to rounding, and no row knows of another."""

import pytest
import torch

from potluck.errors import UserError
from potluck.node.compute.quant import product
from potluck.node.compute.quant.formats import QUANTIZATIONS
from potluck.node.compute.quant.product import bitsandbytes_linear, linear
from potluck.node.compute.weight import Format, Weight

SHAPES = [(1, 64), (5, 128), (300, 64), (3000, 128)]  # the last: several panels


@pytest.mark.parametrize("format", sorted(QUANTIZATIONS))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_the_dequantized_matrix(
    format: Format, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """Within fp32's rounding, and once that of the result's dtype."""
    rows, columns = shape
    stored = (torch.randn(rows, columns) * 0.02).to(torch.float16)
    weight = QUANTIZATIONS[format].quantize(stored)
    bias = torch.randn(rows)
    for tokens in (1, 3, 17):
        x = torch.randn(tokens, columns).to(dtype)
        exact = x.double() @ weight.dequantize().double().t()
        found = linear(x, weight)
        assert found.dtype == dtype
        step = torch.finfo(dtype).eps
        # what a sum is rounded by goes by its terms: the sum itself may be almost nothing
        terms = (x.double().abs() @ weight.dequantize().double().abs().t()).max()
        slack = float(terms * torch.finfo(torch.float32).eps * 8)
        torch.testing.assert_close(found.double(), exact, rtol=step, atol=slack)
        withs = linear(x, weight, bias).double()
        torch.testing.assert_close(withs, exact + bias, rtol=step, atol=slack + step)


def test_any_number_of_leading_dimensions_and_none_of_rows() -> None:
    weight = QUANTIZATIONS["nf4"].quantize(torch.randn(7, 64))
    x = torch.randn(2, 3, 64)
    assert linear(x, weight).shape == (2, 3, 7)
    torch.testing.assert_close(linear(x[1, 2], weight), linear(x, weight)[1, 2])
    assert linear(x[:0], weight).shape == (0, 3, 7)


@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_a_row_of_huge_numbers_leaves_the_others_alone(format: Format) -> None:
    """A scale shared by a batch would drown them: fbgemm's dynamic int8 has one."""
    weight = QUANTIZATIONS[format].quantize(torch.randn(96, 128))
    x = torch.randn(8, 128)
    calm = linear(x, weight)
    x[3] *= 1e6
    wild = linear(x, weight)
    others = [row for row in range(8) if row != 3]
    torch.testing.assert_close(wild[others], calm[others], rtol=1e-6, atol=1e-5)


def test_plain_numbers_of_the_activations_dtype_are_used_as_they_are() -> None:
    weight = Weight.plain(torch.randn(7, 64))
    x = torch.randn(3, 64)
    assert torch.equal(linear(x, weight), torch.nn.functional.linear(x, weight.codes))


def test_without_bitsandbytes_its_kernels_are_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(product.importlib.util, "find_spec", lambda name: None)
    weight = QUANTIZATIONS["nf4"].quantize(torch.randn(7, 64))
    with pytest.raises(UserError, match=r"pip install 'potluck\[cuda\]', or use --quantization"):
        bitsandbytes_linear(torch.randn(1, 64), weight)
