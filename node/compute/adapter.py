"""A LoRA adapter: low-rank matrices that a session adds to a model's, read as PEFT saves them.

    folder/adapter_config.json         rank, alpha, and what else was asked for
    folder/adapter_model.safetensors   base_model.model.<module>.lora_A.weight (rank, inputs)
                                       base_model.model.<module>.lora_B.weight (outputs, rank)

    w x  becomes  w x + (alpha / rank) · B (A x)

The weights stay as they are, so sessions with different adapters, or with none, share a stage and a
pass (native/adapter.py, adapted.py). Whatever an adapter asks for beyond that is refused by name,
never left out: half of an adapter is another model. How one is named and sent: parts.py.

Source: E. Hu et al., LoRA, 2021; PEFT 0.17, `LoraConfig` and `save_pretrained`.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...swarm.adapter import RANK_MAX
from .checkpoint import read_json
from .folders import standing
from .layout import Layout, layout_of
from .shards import DTYPES, Shard, broken
from .spec import ModelSpec

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
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


@dataclass(frozen=True, slots=True)
class Pair:
    """The two matrices of one module, as stored, and what their product is multiplied by."""

    module: str
    down: Tensor  # (rank, inputs)
    up: Tensor  # (outputs, rank)
    scale: float


def read_adapter(folder: Path, spec: ModelSpec, start: int, stop: int) -> Adapter:
    """The part of an adapter that is for blocks start..stop. Raises UserError."""
    pairs = read_pairs(folder, spec, start, stop)
    return Adapter(folder.name, updates_of(spec, pairs))


def read_pairs(folder: Path, spec: ModelSpec, start: int, stop: int) -> Iterator[tuple[int, Pair]]:
    """What an adapter of PEFT's has for blocks start..stop, checked. Raises UserError."""
    if spec.general is not None:
        raise UserError(
            f"{folder}: models of {spec.family} run in transformers' own code, and are served"
            " without adapters: give a model into which this one was merged"
        )
    folder = standing(folder)
    config = read_json(folder / CONFIG)
    _refuse_beyond(folder, config)
    shard = Shard.open(folder / TENSORS)
    layouts = {index: layout_of(spec, index) for index in range(spec.blocks)}
    place = {
        tensor.removesuffix(".weight"): index
        for index, layout in layouts.items()
        for tensor in {part.tensor for part in layout.matrices.values()}
    }
    halves: dict[str, dict[str, Tensor]] = {}
    for key, entry in shard.entries.items():
        match = _KEY.fullmatch(key)
        module, half = match.groups() if match else (key, "")
        if module not in place:
            raise broken(shard.path, f"has {key}, to which nothing in this model corresponds")
        if not takes(layouts[place[module]], module):
            raise UserError(
                f"{shard.path}: has {key}, of a mixture's experts or their router: only adapters of"
                " attention are served there; give a model into which this one was merged"
            )
        if entry.dtype not in DTYPES:
            raise broken(shard.path, f"has {key} of dtype {entry.dtype}")
        if start <= place[module] < stop:
            halves.setdefault(module, {})[half] = shard.tensors([key])[key]
    for module, both in halves.items():
        if both.keys() != {"A", "B"}:
            raise broken(shard.path, f"has only lora_{'/'.join(both)} of {module}")
        scale = _scale(folder, config, module, len(both["A"]))
        pair = Pair(module, both["A"], both["B"], scale)
        if why := misfit(layouts[place[module]], pair):
            raise broken(shard.path, why)
        yield place[module], pair


def takes(layout: Layout, module: str) -> bool:
    """Whether something may be added to this module of a block."""
    names = [name for name, part in layout.matrices.items() if part.tensor == f"{module}.weight"]
    return any(name in matrices for name in names for matrices in SITES.values())


def misfit(layout: Layout, pair: Pair) -> str:
    """Why a pair is none for this block, whose module it names; empty when it is one."""
    rows, columns = layout.shapes[f"{pair.module}.weight"]
    rank = len(pair.down)
    if not 1 <= rank <= RANK_MAX:
        return f"has rank {rank} at {pair.module}, not 1 to {RANK_MAX}"
    halves = {"A": (pair.down, (rank, columns)), "B": (pair.up, (rows, rank))}
    for half, (found, wanted) in halves.items():
        name = f"lora_{half} of {pair.module}"
        if found.shape != wanted:
            return f"has {name} of shape {list(found.shape)}, not {list(wanted)}"
        if not torch.isfinite(found).all():
            return f"has {name}, of which a number is infinite or none"
    return "" if math.isfinite(pair.scale) else f"has no finite scale at {pair.module}"


def updates_of(spec: ModelSpec, pairs: Iterable[tuple[int, Pair]]) -> dict[int, dict[str, Update]]:
    """What pairs add to which matrices of which blocks."""
    blocks: dict[int, dict[str, Update]] = {}
    for index, pair in pairs:
        down, up = pair.down.float(), pair.up.float()
        for name, part in layout_of(spec, index).matrices.items():
            if part.tensor == f"{pair.module}.weight":
                scaled = up[part.start : part.stop] * pair.scale
                blocks.setdefault(index, {})[name] = Update(down, scaled)
    return blocks


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
