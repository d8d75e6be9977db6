"""Random adapters as PEFT saves them, and models into which one was merged, to compare with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from potluck.node.compute.adapter import CONFIG, TENSORS
from potluck.node.compute.layout import layout_of
from potluck.node.compute.spec import ModelSpec


def save_adapter(
    folder: Path,
    spec: ModelSpec,
    *,
    modules: Sequence[str] = (),
    rank: int = 4,
    alpha: int = 8,
    seed: int = 1,
) -> None:
    """An adapter of these modules (by the last part of their names), of all by default."""
    folder.mkdir(parents=True, exist_ok=True)
    dice = torch.Generator().manual_seed(seed)
    tensors = {}
    for index in range(spec.blocks):
        layout = layout_of(spec, index)
        for tensor in sorted({part.tensor for part in layout.matrices.values()}):
            module = tensor.removesuffix(".weight")
            if modules and module.rpartition(".")[2] not in modules:
                continue
            rows, columns = layout.shapes[tensor]
            for half, shape in (("A", (rank, columns)), ("B", (rows, rank))):
                numbers = torch.randn(shape, generator=dice) * shape[1] ** -0.5
                tensors[f"base_model.model.{module}.lora_{half}.weight"] = numbers
    save_file(tensors, folder / TENSORS)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none"}
    (folder / CONFIG).write_text(json.dumps(config))


def merge(model: Path, adapter: Path, into: Path) -> None:
    """The model with w + (alpha / rank) B A in place of each w: what PEFT's merge gives."""
    shutil.copytree(model, into)
    config = json.loads((adapter / CONFIG).read_text())
    weights, updates = load_file(model / "model.safetensors"), load_file(adapter / TENSORS)
    for name, down in updates.items():
        if ".lora_A." in name:
            up = updates[name.replace(".lora_A.", ".lora_B.")]
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            scale = config["lora_alpha"] / config["r"]
            weight = weights[f"{module}.weight"]
            weights[f"{module}.weight"] = (
                weight.double() + scale * (up.double() @ down.double())
            ).float()
    save_file(weights, into / "model.safetensors", metadata={"format": "pt"})
