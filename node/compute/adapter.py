"""A LoRA adapter: low-rank matrices that a session adds to a model's, read as PEFT saves them.

    folder/adapter_config.json         rank, alpha, and what else was asked for
    folder/adapter_model.safetensors   base_model.model.<module>.lora_A.weight (rank, inputs)
                                       base_model.model.<module>.lora_B.weight (outputs, rank)

    w x  becomes  w x + (alpha / rank) · B (A x)

The weights stay as they are, so sessions with different adapters, or with none, share a stage and a
pass (native/adapter.py, adapted.py). Whatever an adapter asks for beyond that is refused by name,
never left out: half of an adapter is another model.

Source: E. Hu et al., LoRA, 2021; PEFT 0.17, `LoraConfig` and `save_pretrained`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from .checkpoint import read_json
from .layout import Layout, layout_of
from .shards import DTYPES, Shard, broken
from .spec import ModelSpec

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
RANK_MAX = 512  # guess: PEFT's default is 8, and above 256 none was seen
# the products of a block to which something is added, and the matrices that each is made of
SITES: dict[str, tuple[str, ...]] = {
    "qkv": ("q", "k", "v"),
    "out": ("out",),
    "gate_up": ("gate", "up"),
    "down": ("down",),
}
_KEY = re.compile(r"base_model\.model\.([\w.]+)\.lora_([AB])\.weight", re.ASCII)
_PLAIN_NAME = re.compile(r"[\w.]+", re.ASCII)
# of LoraConfig: what is more than A and B
_BEYOND = (
    "alora_invocation_tokens", "arrow_config", "fan_in_fan_out", "layer_replication", "lora_bias",
    "modules_to_save", "target_parameters", "trainable_token_indices", "use_dora", "use_qalora",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Update:
    """What is added to one matrix: up · down, fp32, alpha within `up`."""

    down: Tensor  # (rank, inputs)
    up: Tensor  # (outputs, rank)


@dataclass(frozen=True, slots=True)
class Adapter:
    """The updates of some blocks, by the matrices' names in layout.py."""

    name: str
    blocks: Mapping[int, Mapping[str, Update]]

    def joined(self, block: int, site: str, rows: Mapping[str, int]) -> "Joined | None":
        """What is added to a product of several matrices; None: nothing. rows: of each matrix."""
        updates = self.blocks.get(block, {})
        names = SITES[site]
        found = [updates[name] for name in names if name in updates]
        if not found:
            return None
        rank = sum(len(one.down) for one in found)
        parts, at = [], 0
        for name in names:
            part = torch.zeros((rows[name], rank))
            if name in updates:
                up = updates[name].up
                part[:, at : at + up.shape[1]] = up
                at += up.shape[1]
            parts.append(part)
        return Joined(torch.cat([one.down for one in found]), parts)


@dataclass(frozen=True, slots=True)
class Joined:
    """One `down` for all matrices of a product, and for each its `up`, zero where others' ranks
    are."""

    down: Tensor  # (ranks, inputs)
    ups: Sequence[Tensor]  # (outputs of each, ranks)


def read_adapter(folder: Path, spec: ModelSpec, start: int, stop: int) -> Adapter:
    """The part of an adapter that is for blocks start..stop. Raises UserError."""
    if spec.general is not None:
        raise UserError(
            f"{folder}: models of {spec.family} run in transformers' own code, and are served"
            " without adapters: give a model into which this one was merged"
        )
    config = read_json(folder / CONFIG)
    _refuse_beyond(folder, config)
    shard = Shard.open(folder / TENSORS)
    layouts = {index: layout_of(spec, index) for index in range(spec.blocks)}
    place = {
        tensor.removesuffix(".weight"): (index, tensor)
        for index, layout in layouts.items()
        for tensor in {part.tensor for part in layout.matrices.values()}
    }
    halves: dict[str, dict[str, Tensor]] = {}
    for key, entry in shard.entries.items():
        match = _KEY.fullmatch(key)
        module, half = match.groups() if match else (key, "")
        if module not in place:
            raise broken(shard.path, f"has {key}, to which nothing in this model corresponds")
        index, tensor = place[module]
        _refuse_expert(shard.path, key, layouts[index], tensor)
        if entry.dtype not in DTYPES:
            raise broken(shard.path, f"has {key} of dtype {entry.dtype}")
        if start <= index < stop:
            halves.setdefault(module, {})[half] = shard.tensors([key])[key].float()
    blocks: dict[int, dict[str, Update]] = {}
    for module, both in halves.items():
        index, tensor = place[module]
        _refuse_shapes(shard.path, module, both, layouts[index].shapes[tensor])
        scale = _scale(folder, config, module, len(both["A"]))
        for name, part in layouts[index].matrices.items():
            if part.tensor == tensor:
                up = both["B"][part.start : part.stop] * scale
                blocks.setdefault(index, {})[name] = Update(both["A"], up)
    return Adapter(folder.name, blocks)


def _refuse_beyond(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{folder}: is an adapter of kind {kind}; only LORA is served")
    beyond = [name for name in _BEYOND if config.get(name)]
    if config.get("bias", "none") != "none":
        beyond.append("bias")
    if beyond:
        raise UserError(
            f"{folder}: asks for {', '.join(sorted(beyond))}, which is not served: give an adapter"
            " of low-rank matrices alone, or a model into which this one was merged"
        )


def _refuse_expert(path: Path, key: str, layout: Layout, tensor: str) -> None:
    names = [name for name, part in layout.matrices.items() if part.tensor == tensor]
    if not any(name in matrices for name in names for matrices in SITES.values()):
        raise UserError(
            f"{path}: has {key}, of a mixture's experts or their router: only adapters of attention"
            " are served there; give a model into which this one was merged"
        )


def _refuse_shapes(
    path: Path, module: str, both: Mapping[str, Tensor], shape: tuple[int, ...]
) -> None:
    rows, columns = shape
    if both.keys() != {"A", "B"}:
        raise broken(path, f"has only lora_{'/'.join(both)} of {module}")
    rank = len(both["A"])
    if not 1 <= rank <= RANK_MAX:
        raise broken(path, f"has rank {rank} at {module}, not 1 to {RANK_MAX}")
    for half, wanted in (("A", (rank, columns)), ("B", (rows, rank))):
        if both[half].shape != wanted:
            found = list(both[half].shape)
            raise broken(path, f"has lora_{half} of {module} of shape {found}, not {list(wanted)}")
        if not torch.isfinite(both[half]).all():
            why = f"has lora_{half} of {module}, of which a number is infinite or none"
            raise broken(path, why)


def _scale(folder: Path, config: Mapping[str, Any], module: str, rank: int) -> float:
    """What B A is multiplied by at a module. Raises UserError."""
    alpha = config.get("lora_alpha")
    pattern = config.get("alpha_pattern") or {}
    if not isinstance(pattern, dict) or not all(map(_PLAIN_NAME.fullmatch, pattern)):
        raise UserError(f"{folder / CONFIG}: alpha_pattern must be plain names of modules")
    for name, other in pattern.items():  # the first that fits, as PEFT takes it
        if module == name or module.endswith(f".{name}"):
            alpha = other
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UserError(f"{folder / CONFIG}: lora_alpha must be a number")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
