"""A model that comes quantized is served as the numbers that its codes stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import packers
import pytest
import safetensors.torch
import torch
from checkpoints import save_random
from test_quant_stored import AWQ, BITS4, BITS8, GPTQ, drawn

from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.choice import StageWish, open_stage
from potluck.node.compute.layout import weight_shapes
from potluck.node.compute.native.library import why_not
from potluck.node.compute.quant.quantizers import to_int8, to_nf4
from potluck.swarm.blocks import BlockRange
from potluck.swarm.wire import Step

ROWS = 40
SETTINGS = {"int8": BITS8, "nf4": BITS4, "gptq": GPTQ, "awq": AWQ}
SERVED_AS = {"int8": "int8", "nf4": "nf4", "gptq": "int8", "awq": "int8"}


def packed(kind: str, shape: tuple[int, int], seed: int) -> dict[str, torch.Tensor]:
    """What a quantizer of this kind stores in place of a matrix."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[1] ** 0.5
    if kind == "int8":
        weight = to_int8(matrix)
        return {"weight": weight.codes, "SCB": weight.scales}
    if kind == "nf4":
        weight = to_nf4(matrix)
        return packers.bits4(weight.codes, weight.scales, shape)
    codes, zeros, scales = drawn(*shape, bits=4, size=32, dtype=torch.float16, seed=seed)
    if kind == "awq":
        return packers.awq(codes, zeros, scales)
    return packers.gptq(codes, zeros, scales, bits=4, first=True, groups=None)


def quantized(folder: Path, kind: str) -> Checkpoint:
    """A model of which every matrix of every block is codes."""
    save_random(folder, "llama", hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    spec = open_checkpoint(folder).spec
    shapes = {n: s for index in range(2) for n, s in weight_shapes(spec, index).items()}
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    parts = {name: packed(kind, shape, at) for at, (name, shape) in enumerate(matrices.items())}
    packers.rewrite(folder, SETTINGS[kind], parts)
    return open_checkpoint(folder)


def as_numbers(checkpoint: Checkpoint, folder: Path, source: Path) -> Checkpoint:
    """The same model as plain numbers."""
    folder.mkdir()
    tensors = {name: one.clone() for name, one in checkpoint.tensors(checkpoint.names).items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


def update(checkpoint: Checkpoint, **wish: Any) -> tuple[str, torch.Tensor]:
    """What two blocks add to some rows; and as what they are served."""
    opened = open_stage(
        checkpoint,
        BlockRange(0, 2),
        StageWish(device="cpu", threads=1, cache_bytes=1 << 20, **wish),
    )
    rows = torch.from_numpy(np.random.default_rng(1).standard_normal((ROWS, 64), np.float32))
    cache = opened.engine.open_cache(BlockRange(0, 2), ROWS)
    payload = memoryview(bytearray(rows.numpy().tobytes()))
    work = opened.engine.begin(cache, payload, Step(0, (ROWS,), ROWS), "f32")
    opened.engine.run([(work, ROWS)])
    found = torch.frombuffer(bytearray(work.answer()), dtype=torch.float32).view(ROWS, 64)
    return opened.quantization, found - rows


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_quantized_checkpoint_is_served_as_what_it_stands_for(
    kind: str, engine: str, tmp_path: Path
) -> None:
    """Asked for nothing, in the format that it has (GPTQ's and AWQ's in int8, which rounds again);
    asked for `none`, as its very numbers."""
    if engine == "native" and why_not() is not None:
        pytest.skip(str(why_not()))
    checkpoint = quantized(tmp_path, kind)
    _, expected = update(as_numbers(checkpoint, tmp_path / "numbers", tmp_path), engine="torch")
    served, found = update(checkpoint, engine=engine)
    assert served == SERVED_AS[kind]
    assert apart(found, expected) < (1e-3 if kind == served else 3e-2)
    served, found = update(checkpoint, engine=engine, quantization="none")
    assert served == "none"
    assert apart(found, expected) < 1e-5
