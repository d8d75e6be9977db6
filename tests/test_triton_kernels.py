"""Our Triton kernels compute the stored formats; without a GPU by Triton's interpreter."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from potluck.node.compute.quant.formats import QUANTIZATIONS
from potluck.node.compute.quant.race import Entrant, entrants, fault_of, race, random_weights
from potluck.node.compute.weight import Format

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
_TO_FLOAT = ("create_si_to_fp", "create_fp_trunc")
SHAPES = [(40, 192), (64, 320)]  # no multiple of a tile's outputs, nor of its inputs


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    patch = pytest.MonkeyPatch()
    if DEVICE.type == "cpu":
        patch.setenv("TRITON_INTERPRET", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("triton", reason="Triton comes with torch for CUDA")
        found = importlib.import_module("potluck.node.compute.quant.triton_kernels")
    if DEVICE.type == "cpu":
        _teach_bf16(patch)
    yield found
    patch.undo()


def _teach_bf16(patch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bf16 as its 16 bits: it multiplies those, and rounds towards zero."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    language = importlib.import_module("triton.language")
    builder, handle_of = interpreter.InterpreterBuilder, interpreter.TensorHandle
    plain = {name: getattr(builder, name) for name in ("create_dot", *_TO_FLOAT)}

    def wide(handle: Any) -> Any:
        if handle.dtype.scalar != language.bfloat16:
            return handle
        bits = torch.from_numpy(handle.data.astype("int32")) << 16
        return handle_of(bits.view(torch.float32).numpy(), language.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain["create_dot"](self, wide(a), wide(b), *rest)

    def taught(name: str) -> Any:
        def convert(self: Any, handle: Any, to: Any) -> Any:
            if to.scalar != language.bfloat16:
                return plain[name](self, handle, to)
            near = torch.from_numpy(handle.data.astype("float32")).bfloat16()
            return handle_of(near.view(torch.int16).numpy().view("uint16"), language.bfloat16)

        return convert

    patch.setattr(builder, "create_dot", create_dot)
    for name in _TO_FLOAT:
        patch.setattr(builder, name, taught(name))


@pytest.mark.parametrize("format", ["int8", "nf4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_they_dequantize_then_multiply_and_no_row_knows_of_another(
    kernels: ModuleType, format: Format, dtype: torch.dtype
) -> None:
    weights = random_weights(format, SHAPES, DEVICE, 1)
    found, _ = entrants(format)
    assert found
    for one in found:
        assert fault_of(one, weights, dtype) == "", one.name


@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_a_bias_is_added_and_a_slice_of_rows_is_taken_as_it_is(
    kernels: ModuleType, format: Format
) -> None:
    stored = QUANTIZATIONS[format].quantize(torch.randn(40, 192) * 0.02)
    scales = stored.scales
    assert scales is not None
    weight = type(stored)(format, 40, 192, stored.codes.to(DEVICE), scales.to(DEVICE))
    x, bias = torch.randn(5, 400, device=DEVICE)[:, 7:199], torch.randn(40, device=DEVICE)
    for tiling in kernels.TILINGS[format]:
        found = kernels.multiply(x, weight, bias, tiling)
        exact = x @ weight.dequantize().t() + bias
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_they_compile_for_cards_that_are_not_here(format: Format, tmp_path: Path) -> None:
    """In a process of its own: the interpreter puts its own operations into Triton's place."""
    pytest.importorskip("triton", reason="Triton comes with torch for CUDA")
    env = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    script = Path(__file__).parent / "triton_compile.py"
    command = [sys.executable, str(script), format, "80", "90"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == 2
    for ptx in told:  # codes are copied behind the registers while others are multiplied
        assert "mma" in ptx.split() and "cp.async" in ptx.split()


@pytest.mark.gpu
@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_on_a_gpu_a_race_is_run_to_its_end(format: Format) -> None:
    if DEVICE.type != "cuda":
        pytest.skip("no CUDA device here")
    from potluck.node.compute.quant.product import bitsandbytes_linear

    weights = random_weights(format, [(4096, 4096)], DEVICE, 64 << 20)
    chosen = race(Entrant("", bitsandbytes_linear), entrants(format)[0], weights, torch.bfloat16)
    assert "bitsandbytes" in chosen.told and " off" not in chosen.told
    assert "cannot run" not in chosen.told and "other bits" not in chosen.told
