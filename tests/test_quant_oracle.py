"""Against bitsandbytes itself, where it is installed."""

from pathlib import Path

import pytest
import torch
from checkpoints import save_random
from hypothesis import given, settings
from packers import rewrite
from test_quantizers import DTYPES, matrices, matrix_of

from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.quant.product import bitsandbytes_linear, linear
from potluck.node.compute.quant.quantizers import to_int8, to_nf4
from potluck.node.compute.weight import NF4

pytest.importorskip("bitsandbytes", reason="bitsandbytes, the oracle, is not installed")

ops = torch.ops.bitsandbytes
DOWN = "model.layers.1.mlp.down_proj.weight"


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


@pytest.mark.parametrize("doubly", [False, True])
@pytest.mark.parametrize("shape", [(128, 64), (64, 80)])
def test_a_checkpoint_that_it_wrote_is_read_as_it_reads_it(
    tmp_path: Path, doubly: bool, shape: tuple[int, int]
) -> None:
    """(64, 80): its groups of 64 run over the ends of rows."""
    from bitsandbytes import functional

    whole = shape[1] == 64
    name = "model.layers.1.mlp.up_proj.weight" if whole else DOWN
    ffn = shape[0] if whole else shape[1]
    save_random(tmp_path, "llama", hidden_size=64, intermediate_size=ffn, num_hidden_layers=2)
    matrix = torch.randn(shape).to(torch.bfloat16)
    codes, state = functional.quantize_4bit(matrix, compress_statistics=doubly, quant_type="nf4")
    parts = {"weight": codes}
    parts |= {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    rewrite(tmp_path, config, {name: parts})
    checkpoint = open_checkpoint(tmp_path)
    found = checkpoint.tensors([name])[name]
    state.dtype = torch.float32  # not rounded to what was quantized
    state.shape = torch.Size((matrix.numel() // 64, 64))  # its CPU kernel ends groups with rows
    assert torch.equal(found, functional.dequantize_4bit(codes, state).view(shape))
    if whole:
        assert torch.equal(checkpoint.weight(name).codes.view(-1, 1), codes)


def test_an_int8_layer_that_it_wrote_is_read_as_it_reads_it(tmp_path: Path) -> None:
    import bitsandbytes

    save_random(tmp_path, "llama", hidden_size=64, intermediate_size=80, num_hidden_layers=2)
    layer = bitsandbytes.nn.Linear8bitLt(80, 64, bias=False, has_fp16_weights=False)
    layer.load_state_dict({"weight": torch.randn(64, 80)})
    layer = layer.to("cpu")
    layer(torch.randn(1, 80))  # the scales move into its state
    rewrite(tmp_path, {"load_in_8bit": True}, {DOWN: layer.state_dict()})
    found = open_checkpoint(tmp_path).weight(DOWN)
    assert found.format == "int8"
    theirs = ops.int8_vectorwise_dequant(found.codes, found.scales)
    assert torch.equal(found.dequantize(), theirs)
    assert found.codes.abs().amax(dim=1).min() == 127
