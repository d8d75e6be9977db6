"""Against bitsandbytes itself, where it is installed."""

import pytest
import torch
from hypothesis import given, settings
from test_quantizers import DTYPES, matrices, matrix_of

from potluck.node.compute.quant.product import bitsandbytes_linear, linear
from potluck.node.compute.quant.quantizers import to_int8, to_nf4
from potluck.node.compute.weight import NF4

pytest.importorskip("bitsandbytes", reason="bitsandbytes, the oracle, is not installed")

ops = torch.ops.bitsandbytes


@settings(deadline=None)
@given(matrices)
def test_codes_and_scales_are_its_bytes(case: tuple[int, int, str, int, float, float]) -> None:
    matrix = matrix_of(case)
    codes, scales, _ = ops.int8_vectorwise_quant(matrix)
    eight = to_int8(matrix)
    used = scales > 1e-36  # what it makes of rows of zeros is left to the processor
    assert torch.equal(eight.codes[used], codes[used])
    assert torch.equal(eight.scales, scales)
    packed, absmax = ops.quantize_4bit(matrix, 64, "nf4", torch.uint8)
    four = to_nf4(matrix)
    assert torch.equal(four.codes.flatten(), packed.flatten())
    assert torch.equal(four.scales.flatten(), absmax)


@pytest.mark.parametrize("name", DTYPES)
def test_codes_stand_for_the_same_numbers(name: str) -> None:
    matrix = (torch.randn(96, 256) * 0.02).to(DTYPES[name])
    eight, four = to_int8(matrix), to_nf4(matrix)
    theirs = ops.int8_vectorwise_dequant(eight.codes, eight.scales)
    assert torch.equal(eight.dequantize(), theirs)
    theirs = ops.dequantize_4bit(
        four.codes.view(-1, 1), four.scales.flatten(), 64, "nf4", (96, 256), torch.float32
    )
    assert torch.equal(four.dequantize(), theirs)


def test_the_codebook_is_its_codebook() -> None:
    from bitsandbytes.functional import get_4bit_type

    assert torch.equal(get_4bit_type("nf4", device="cpu"), torch.tensor(NF4))


@pytest.mark.parametrize("bias", [False, True])
def test_products_by_its_kernels_are_those_of_ours(bias: bool) -> None:
    """The code that runs on CUDA, on its CPU kernels: nf4 to rounding, int8 within 2e-2."""
    x = torch.randn(2, 3, 256)
    x[1, 2] *= 1e6  # beyond fp16, through which bitsandbytes' own layer goes
    extra = torch.randn(96) if bias else None
    for make, allowed in ((to_int8, 2e-2), (to_nf4, 1e-5)):
        weight = make(torch.randn(96, 256) * 0.02)
        mine, theirs = linear(x, weight, extra), bitsandbytes_linear(x, weight, extra)
        assert theirs.shape == (2, 3, 96) and theirs.dtype == x.dtype
        off = (mine - theirs).norm(dim=-1) / mine.norm(dim=-1)
        assert off.max() < allowed
