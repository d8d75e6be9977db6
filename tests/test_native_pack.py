"""Quantizing while packing: the bytes of one after the other, and what is no number is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from potluck.errors import UserError
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.native import library
from potluck.node.compute.native.linear import Packed, Pool
from potluck.node.compute.native_stage import NativeStage
from potluck.node.compute.quant.formats import QUANTIZATIONS
from potluck.node.compute.quant.quantizers import NotFinite
from potluck.node.compute.weight import Format

from .checkpoints import save_random

pytestmark = pytest.mark.skipif(not library.is_available(), reason=str(library.why_not()))

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def numbers(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randn((rows, columns), generator=dice).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_to_quantize_while_packing_gives_the_bytes_of_quantizing_before(
    format: Format, dtype: torch.dtype
) -> None:
    coding = QUANTIZATIONS[format]
    for rows, columns in ((16, 64), (37, 192), (160, 320)):
        parts = [numbers(rows, columns, dtype, seed) for seed in (1, 2)]
        coded = [(one.codes, one.scales) for one in map(coding.quantize, parts)]
        plain = [(one, None) for one in parts]
        for threads in (1, 3):
            pool = Pool(threads)
            expected = Packed.in_turns(format, coded, None, pool)
            found = Packed.in_turns(format, plain, None, pool)
            assert torch.equal(found.bytes_of(), expected.bytes_of())
            expected = Packed.below(format, coded[:1], None, pool)
            assert torch.equal(Packed(format, parts[0], pool=pool).bytes_of(), expected.bytes_of())


def test_int8_takes_any_width() -> None:
    matrix = numbers(20, 101, torch.bfloat16)
    coded = QUANTIZATIONS["int8"].quantize(matrix)
    expected = Packed("int8", coded.codes, coded.scales)
    assert torch.equal(Packed("int8", matrix).bytes_of(), expected.bytes_of())


@pytest.mark.parametrize("format", ["int8", "nf4"])
@pytest.mark.parametrize("wrong", [float("inf"), float("nan")])
def test_what_is_no_number_cannot_be_packed(format: str, wrong: float) -> None:
    matrix = numbers(40, 64, torch.float32)
    matrix[39, 63] = wrong
    with pytest.raises(NotFinite):
        Packed(format, matrix, pool=Pool(2))


def test_a_stage_names_the_tensor_that_holds_no_number(tmp_path: Path) -> None:
    save_random(tmp_path, "llama", hidden_size=64, intermediate_size=128)
    path, name = tmp_path / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(path)
    tensors[name][3, 5] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path)
    NativeStage.load(checkpoint, 0, 1, quantization="nf4", threads=1)
    with pytest.raises(UserError, match=f"has {name}, of which a number is infinite"):
        NativeStage.load(checkpoint, 0, 2, quantization="nf4", threads=1)
