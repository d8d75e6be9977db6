"""Checkpoints that come quantized are read as what they say, or refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import packers
import pytest
import safetensors.torch
import torch
from checkpoints import save_random

from potluck.errors import UserError
from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.layout import weight_shapes
from potluck.node.compute.quant.formats import QUANTIZATIONS
from potluck.node.compute.quant.quantizers import to_int8, to_nf4
from potluck.node.compute.quant.reading import weights_of
from potluck.node.compute.quant.settings import packing_of
from potluck.node.compute.weight import NF4

UP = "model.layers.1.mlp.up_proj.weight"  # (128, 64)
DOWN = "model.layers.1.mlp.down_proj.weight"  # (64, 128)
GPTQ: dict[str, Any] = {
    "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False,
}  # fmt: skip
AWQ: dict[str, Any] = {
    "quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True,
}  # fmt: skip
BITS4: dict[str, Any] = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16",
}  # fmt: skip
BITS8: dict[str, Any] = {
    "quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0,
}  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Path:
    save_random(tmp_path, "llama", hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    return tmp_path


def drawn(
    rows: int, columns: int, *, bits: int, size: int, dtype: torch.dtype, seed: int = 0
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], torch.Tensor]:
    """Codes (k, n), zeros (g, n) and scales (g, n) of every size they may have."""
    dice = np.random.default_rng(seed)
    codes = dice.integers(0, 1 << bits, (columns, rows))
    zeros = dice.integers(0, 1 << bits, (columns // size, rows))
    scales = torch.from_numpy(dice.uniform(1e-5, 0.02, zeros.shape)).to(dtype)
    return codes, zeros, scales


def served(path: Path, name: str) -> torch.Tensor:
    checkpoint = open_checkpoint(path)
    for index in range(2):
        checkpoint.require(weight_shapes(checkpoint.spec, index))
    assert name in checkpoint.names
    assert not {one for one in checkpoint.names if one.endswith(("qweight", "SCB", "absmax"))}
    return checkpoint.tensors([name])[name]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("reordered", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gptq_is_read_exactly(
    small: Path, bits: int, layout: str, reordered: bool, dtype: torch.dtype
) -> None:
    codes, zeros, scales = drawn(64, 128, bits=bits, size=32, dtype=dtype)
    groups = np.arange(128) // 32
    if reordered:
        groups = np.random.default_rng(1).permutation(groups)
    parts = packers.gptq(
        codes, zeros, scales, bits=bits, first=layout == "gptq",
        groups=groups if reordered else None,
    )  # fmt: skip
    config = GPTQ | {"bits": bits, "checkpoint_format": layout, "desc_act": reordered}
    packers.rewrite(small, config, {DOWN: parts})
    found = served(small, DOWN)
    assert found.dtype == dtype
    assert torch.equal(found, packers.numbers(codes, zeros, scales, groups))


def test_gptq_with_one_group_for_all_inputs(small: Path) -> None:
    codes, zeros, scales = drawn(64, 128, bits=4, size=128, dtype=torch.float16)
    parts = packers.gptq(codes, zeros, scales, bits=4, first=True, groups=np.zeros(128, int))
    packers.rewrite(small, GPTQ | {"group_size": -1}, {DOWN: parts})
    expected = packers.numbers(codes, zeros, scales, np.zeros(128, int))
    assert torch.equal(served(small, DOWN), expected)


def test_awq_is_read_exactly(small: Path) -> None:
    codes, zeros, scales = drawn(128, 64, bits=4, size=32, dtype=torch.float16)
    packers.rewrite(small, AWQ, {UP: packers.awq(codes, zeros, scales)})
    expected = packers.numbers(codes, zeros, scales, np.arange(64) // 32)
    assert torch.equal(served(small, UP), expected)


@pytest.mark.parametrize(("name", "rows", "columns"), [(UP, 1120, 64), (DOWN, 64, 1120)])
@pytest.mark.parametrize("config", [GPTQ, AWQ])
def test_matrices_larger_than_what_is_turned_back_at_once(
    tmp_path: Path, config: dict[str, Any], name: str, rows: int, columns: int
) -> None:
    """1120 outputs are 17 pieces and a half."""
    save_random(tmp_path, "llama", hidden_size=64, intermediate_size=1120, num_hidden_layers=2)
    codes, zeros, scales = drawn(rows, columns, bits=4, size=32, dtype=torch.float16)
    groups = np.arange(columns) // 32
    parts = (
        packers.awq(codes, zeros, scales)
        if config is AWQ
        else packers.gptq(codes, zeros, scales, bits=4, first=True, groups=groups)
    )
    packers.rewrite(tmp_path, config, {name: parts})
    assert torch.equal(served(tmp_path, name), packers.numbers(codes, zeros, scales, groups))


def test_a_gptq_matrix_is_served_in_the_format_that_is_chosen(small: Path) -> None:
    codes, zeros, scales = drawn(64, 128, bits=4, size=32, dtype=torch.float16)
    parts = packers.gptq(codes, zeros, scales, bits=4, first=True, groups=None)
    packers.rewrite(small, GPTQ, {DOWN: parts})
    checkpoint = open_checkpoint(small)
    matrix = packers.numbers(codes, zeros, scales, np.arange(128) // 32)
    assert checkpoint.stored_format == "int8" and not checkpoint.verbatim
    for make, format in ((to_int8, "int8"), (to_nf4, "nf4")):
        [(name, weight)] = weights_of(checkpoint, [DOWN], QUANTIZATIONS[format])
        assert (name, weight.format) == (DOWN, format)
        assert torch.equal(weight.codes, make(matrix).codes)


def test_int8_of_bitsandbytes_is_taken_as_stored(small: Path) -> None:
    weight = to_int8(torch.randn(128, 64))
    parts = {"weight": weight.codes, "SCB": weight.scales, "weight_format": torch.tensor(0).byte()}
    packers.rewrite(small, BITS8, {UP: parts})
    assert torch.equal(served(small, UP), weight.dequantize())
    checkpoint = open_checkpoint(small)
    assert checkpoint.stored_format == "int8" and checkpoint.verbatim
    [(_, found)] = weights_of(checkpoint, [UP], QUANTIZATIONS["int8"])
    assert torch.equal(found.codes, weight.codes) and torch.equal(found.scales, weight.scales)


def test_nf4_of_bitsandbytes_is_taken_as_stored(small: Path) -> None:
    weight = to_nf4(torch.randn(128, 64))
    parts = packers.bits4(weight.codes, weight.scales, (128, 64))
    packers.rewrite(small, BITS4, {UP: parts})
    assert torch.equal(served(small, UP), weight.dequantize())
    checkpoint = open_checkpoint(small)
    assert checkpoint.stored_format == "nf4"
    [(_, found)] = weights_of(checkpoint, [UP], QUANTIZATIONS["nf4"])
    assert torch.equal(found.codes, weight.codes) and torch.equal(found.scales, weight.scales)


def nested(parts: dict[str, torch.Tensor], scales: torch.Tensor) -> torch.Tensor:
    """Double quantization of the scales in groups of 256; returns what they come back as."""
    table = torch.linspace(-1, 1, 256)
    outer = torch.rand(-(-scales.numel() // 256)) + 0.5
    codes = torch.randint(0, 256, (scales.numel(),), dtype=torch.uint8)
    parts |= {
        "weight.absmax": codes,
        "weight.nested_absmax": outer,
        "weight.nested_quant_map": table,
    }
    back = [table[int(c)] * outer[at // 256] for at, c in enumerate(codes)]
    return torch.stack(back) + torch.tensor(0.75)


def test_doubly_quantized_scales_are_undone(small: Path) -> None:
    """1024 x 64 numbers: 1024 scales, four groups of them."""
    path = small / "wide"
    save_random(path, "llama", hidden_size=64, intermediate_size=1024, num_hidden_layers=2)
    weight = to_nf4(torch.randn(1024, 64))
    more = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.75}
    assert weight.scales is not None
    parts = packers.bits4(weight.codes, weight.scales, (1024, 64), **more)
    scales = nested(parts, weight.scales)
    packers.rewrite(path, BITS4 | {"bnb_4bit_use_double_quant": True}, {UP: parts})
    [(_, found)] = weights_of(open_checkpoint(path), [UP], QUANTIZATIONS["nf4"])
    assert torch.equal(found.scales.flatten(), scales)
    assert torch.equal(found.codes, weight.codes)


def test_nf4_whose_groups_cross_rows_becomes_numbers(small: Path) -> None:
    """A width of 80 has no whole groups: bitsandbytes runs them over the ends of rows."""
    path = small / "odd"
    save_random(path, "llama", hidden_size=64, intermediate_size=80, num_hidden_layers=2)
    flat = torch.randn(64 * 80)
    weight = to_nf4(flat.view(-1, 64))
    assert weight.scales is not None
    parts = packers.bits4(weight.codes, weight.scales, (64, 80))
    packers.rewrite(path, BITS4, {DOWN: parts})
    assert torch.equal(served(path, DOWN), weight.dequantize().view(64, 80))
    [(_, found)] = weights_of(open_checkpoint(path), [DOWN], QUANTIZATIONS["nf4"])
    assert found.format == "int8"  # as of every matrix of that width


def test_four_bits_kept_as_floats_are_the_same_bytes(small: Path) -> None:
    """bnb_4bit_quant_storage: what sharded training needs."""
    weight = to_nf4(torch.randn(128, 64))
    assert weight.scales is not None
    parts = packers.bits4(weight.codes, weight.scales, (128, 64))
    parts["weight"] = parts["weight"].view(-1).view(torch.bfloat16).view(-1, 1)
    packers.rewrite(small, BITS4 | {"bnb_4bit_quant_storage": "bfloat16"}, {UP: parts})
    [(_, found)] = weights_of(open_checkpoint(small), [UP], QUANTIZATIONS["nf4"])
    assert torch.equal(found.codes, weight.codes)


def test_matrices_left_plain_among_quantized_ones_stay_plain(small: Path) -> None:
    plain = open_checkpoint(small).tensors([DOWN])[DOWN].clone()
    weight = to_int8(torch.randn(128, 64))
    assert weight.scales is not None
    packers.rewrite(small, BITS8, {UP: {"weight": weight.codes, "SCB": weight.scales}})
    assert torch.equal(served(small, DOWN), plain)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quant_method": "aqlm"}, "quant_method 'aqlm' is not served; give a checkpoint of"),
        ({"bits": 4}, "quant_method '' is not served"),
        (GPTQ | {"bits": 3}, "bits is 3, which is not served; quantize to 4 or 8"),
        (GPTQ | {"bits": "4"}, "bits is '4', not a whole number"),
        (GPTQ | {"group_size": 0}, "group_size is 0"),
        (GPTQ | {"checkpoint_format": "marlin"}, "'marlin' is not served; save it as gptq"),
        (GPTQ | {"is_marlin_format": True}, "is_marlin_format True is not served"),
        (GPTQ | {"dynamic": {"+:.*q_proj": {"bits": 8}}}, "dynamic .* is not served"),
        (GPTQ | {"rotation": "hadamard"}, "rotation 'hadamard' is a field .* not know"),
        (AWQ | {"bits": 8}, "bits is 8, which is not served; quantize to 4"),
        (AWQ | {"version": "gemv"}, "'gemv' is not served; quantize with version gemm"),
        (AWQ | {"zero_point": False}, "quantize with zero points"),
        (AWQ | {"clever": 1}, "clever 1 is a field"),
        (BITS4 | {"bnb_4bit_quant_type": "fp4"}, "'fp4' is not served; quantize to nf4"),
        (BITS4 | {"load_in_8bit": True}, "both True"),
        (BITS8 | {"load_in_8bit": False}, "both False"),
        (BITS8 | {"clever": 1}, "clever 1 is a field"),
    ],
)
def test_settings_that_are_not_served_are_refused_in_one_line(
    config: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        packing_of({"quantization_config": config})
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("config.json: quantization_config: ")


def test_settings_of_all_kinds_are_known() -> None:
    """Fields as the packages write them, beside those that matter."""
    assert packing_of({}) is None
    assert packing_of({"quantization_config": None}) is None
    for config in (
        GPTQ | {"damp_percent": 0.01, "static_groups": False, "model_file_base_name": None,
                "meta": {"quantizer": ["gptqmodel:1.4"]}, "pack_dtype": "int32", "dynamic": None,
                "true_sequential": True, "lm_head": False, "checkpoint_format": "gptq"},
        AWQ | {"modules_to_not_convert": None, "backend": "autoawq", "do_fuse": False},
        BITS4 | {"_load_in_4bit": True, "_load_in_8bit": False, "llm_int8_skip_modules": None},
        {"load_in_8bit": True},
    ):  # fmt: skip
        assert packing_of({"quantization_config": config}) is not None
    with pytest.raises(UserError, match="not an object"):
        packing_of({"quantization_config": "gptq"})


def damage(path: Path, change: dict[str, torch.Tensor | None]) -> Checkpoint:
    file = path / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    for name, tensor in change.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    return open_checkpoint(path)


def read(checkpoint: Checkpoint, name: str) -> None:
    checkpoint.require(weight_shapes(checkpoint.spec, 1))
    checkpoint.tensors([name])


B = "model.layers.1.mlp.down_proj."


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({B + "scales": None}, "lacks .*down_proj.scales; delete it and download it again"),
        ({B + "qzeros": None}, "lacks .*down_proj.qzeros"),
        ({B + "g_idx": None}, "lacks .*down_proj.g_idx"),
        ({B + "qzeros": torch.zeros(4, 7, dtype=torch.int32)}, r"shape \[4, 7\] I32, not \[4, 8\]"),
        ({B + "scales": torch.zeros(4, 64, dtype=torch.uint8)}, "U8, not .* F16 or BF16 or F32"),
        ({B + "scales": torch.full((4, 64), torch.inf)}, "amiss"),
        ({B + "g_idx": torch.full((128,), 4, dtype=torch.int32)}, "names no group"),
        ({B + "g_idx": torch.full((128,), -1, dtype=torch.int32)}, "names no group"),
        ({B + "qweight": torch.zeros(16, 32, dtype=torch.int32)}, "they are of different models"),
        ({B + "bias": torch.ones(64)}, "does not add; give the model's unquantized checkpoint"),
    ],
)
def test_a_damaged_gptq_matrix_is_named(
    small: Path, change: dict[str, torch.Tensor | None], said: str
) -> None:
    codes, zeros, scales = drawn(64, 128, bits=4, size=32, dtype=torch.float16)
    groups = np.arange(128) // 32
    parts = packers.gptq(codes, zeros, scales, bits=4, first=True, groups=groups)
    parts["bias"] = torch.zeros(64)  # as its packer writes for every matrix
    packers.rewrite(small, GPTQ | {"desc_act": True}, {DOWN: parts})
    read(open_checkpoint(small), DOWN)
    with pytest.raises(UserError, match=said):
        read(damage(small, change), DOWN)


U = "model.layers.1.mlp.up_proj.weight"
STATE = U + ".quant_state.bitsandbytes__nf4"


def text(value: Any) -> torch.Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({U + ".absmax": None}, "lacks .*absmax"),
        ({U + ".quant_map": None}, "lacks .*quant_map"),
        ({U + ".quant_map": torch.tensor(NF4) * 2}, "another codebook"),
        ({U + ".absmax": torch.ones(100)}, r"shape \[100\] F32, not \[128\]"),
        ({U + ".absmax": torch.full((128,), torch.nan)}, "not finite"),
        ({U: torch.zeros(99, 1, dtype=torch.uint8)}, "has 99 bytes of U8 .* not 4096"),
        ({STATE: torch.tensor([123], dtype=torch.uint8)}, "not JSON"),
        ({STATE: text({"quant_type": "fp4"})}, "not of nf4"),
        ({STATE: text({"blocksize": 64, "shape": [128]})}, "not that of a matrix"),
        ({STATE: text({"blocksize": 64, "shape": [-1, 64]})}, "not that of a matrix"),
        ({STATE: text({"blocksize": "x", "shape": [128, 64]})}, "blocksize is 'x'"),
        ({STATE: text({"blocksize": 64, "shape": [64, 128]})}, "they are of different models"),
        ({STATE: None, U + ".quant_state.bitsandbytes__fp4": text({})}, "fp4, which is not served"),
    ],
)
def test_a_damaged_nf4_matrix_is_named(
    small: Path, change: dict[str, torch.Tensor | None], said: str
) -> None:
    weight = to_nf4(torch.randn(128, 64))
    assert weight.scales is not None
    packers.rewrite(small, BITS4, {UP: packers.bits4(weight.codes, weight.scales, (128, 64))})
    read(open_checkpoint(small), UP)
    with pytest.raises(UserError, match=said):
        read(damage(small, change), UP)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.layers.1.mlp.up_proj.SCB": None}, "lacks .*SCB"),
        ({"model.layers.1.mlp.up_proj.SCB": torch.ones(7)}, r"shape \[7\] F32, not \[128\]"),
        ({"model.layers.1.mlp.up_proj.SCB": torch.full((128,), torch.inf)}, "not finite"),
        ({U + "_format": torch.tensor(1).byte()}, "another order than row by row"),
        ({U: torch.zeros(128, 63, dtype=torch.int8)}, "they are of different models"),
    ],
)
def test_a_damaged_int8_matrix_is_named(
    small: Path, change: dict[str, torch.Tensor | None], said: str
) -> None:
    weight = to_int8(torch.randn(128, 64))
    assert weight.scales is not None
    packers.rewrite(small, BITS8, {UP: {"weight": weight.codes, "SCB": weight.scales}})
    read(open_checkpoint(small), UP)
    with pytest.raises(UserError, match=said):
        read(damage(small, change), UP)


def test_whole_numbers_without_settings_that_explain_them_are_refused(small: Path) -> None:
    checkpoint = damage(small, {UP: torch.zeros(128, 64, dtype=torch.int8)})
    with pytest.raises(UserError, match="dtype I8; convert the checkpoint"):
        checkpoint.require(weight_shapes(checkpoint.spec, 1))


def test_a_quantized_checkpoint_without_settings_is_refused(small: Path) -> None:
    """As GPTQ's first packers wrote them, with their settings in a file of their own."""
    with pytest.raises(UserError, match="has no quantization_config; copy into it"):
        damage(small, {UP: None, "model.layers.1.mlp.up_proj.qweight": torch.zeros(1).int()})


def test_a_dtype_that_nothing_reads_is_refused(small: Path) -> None:
    checkpoint = damage(small, {UP: torch.zeros(128, 64, dtype=torch.float8_e4m3fn)})
    with pytest.raises(UserError, match="dtype F8_E4M3; convert"):
        checkpoint.require(weight_shapes(checkpoint.spec, 1))
    with pytest.raises(UserError, match="dtype F8_E4M3, which is not served"):
        checkpoint.tensors([UP])


def test_a_weight_that_is_no_number_is_named_with_its_file(small: Path) -> None:
    bad = torch.randn(128, 64)
    bad[3, 4] = torch.nan
    checkpoint = damage(small, {UP: bad})
    with pytest.raises(UserError, match=r"model.safetensors: has model.layers.1.mlp.up_proj"):
        list(weights_of(checkpoint, [UP], QUANTIZATIONS["nf4"]))
