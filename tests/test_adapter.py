"""Adapters as PEFT saves them: read strictly, and what cannot be served refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from potluck.errors import UserError
from potluck.node.compute.adapter import CONFIG, TENSORS, Adapter, read_adapter
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.spec import ModelSpec

from .adapters import save_adapter
from .checkpoints import save_random

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return spec_of(tmp_path_factory.mktemp("model"), "llama")


def spec_of(folder: Path, family: str, **settings: Any) -> ModelSpec:
    save_random(folder, family, **settings)
    return open_checkpoint(folder).spec


@pytest.fixture
def folder(tmp_path: Path, spec: ModelSpec) -> Path:
    save_adapter(tmp_path, spec, rank=4, alpha=8)
    return tmp_path


def test_of_an_adapter_only_the_blocks_that_are_served_are_read(
    folder: Path, spec: ModelSpec
) -> None:
    part = read_adapter(folder, spec, 1, 2)
    assert part.blocks.keys() == {1} and part.name == folder.name
    assert part.blocks[1].keys() == {"q", "k", "v", "out", "gate", "up", "down"}
    stored = load_file(folder / TENSORS)
    q = part.blocks[1]["q"]
    name = Q0.replace("layers.0", "layers.1")
    assert torch.equal(q.down, stored[f"{name}.lora_A.weight"])
    assert torch.equal(q.up, 2.0 * stored[f"{name}.lora_B.weight"])  # alpha / rank


def test_modules_that_it_leaves_out_get_nothing_added(tmp_path: Path, spec: ModelSpec) -> None:
    save_adapter(tmp_path, spec, modules=("q_proj", "up_proj"))
    adapter = read_adapter(tmp_path, spec, 0, spec.blocks)
    assert all(one.keys() == {"q", "up"} for one in adapter.blocks.values())
    rows = {"q": 64, "k": 32, "v": 32, "gate": 80, "up": 80, "out": 64, "down": 64}
    joined = adapter.joined(0, "gate_up", rows)
    assert joined is not None and not joined.ups[0].any() and joined.ups[1].any()
    assert adapter.joined(0, "out", rows) is None
    assert Adapter("", {}).joined(0, "qkv", rows) is None


def test_what_is_joined_in_the_model_is_joined_in_its_adapter(tmp_path: Path) -> None:
    spec = spec_of(tmp_path / "model", "phi3")
    save_adapter(tmp_path / "adapter", spec, modules=("qkv_proj",), rank=3)
    blocks = read_adapter(tmp_path / "adapter", spec, 0, 1).blocks
    assert blocks[0].keys() == {"q", "k", "v"}
    assert len(blocks[0]["q"].up) == spec.heads * spec.head_dim
    assert blocks[0]["k"].down is blocks[0]["q"].down


def change(folder: Path, **settings: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_scales_are_alpha_by_rank_or_its_root_or_as_a_module_has_them(
    folder: Path, spec: ModelSpec
) -> None:
    stored = load_file(folder / TENSORS)[f"{Q0}.lora_B.weight"]

    def scale(**settings: Any) -> float:
        change(folder, **settings)
        up = read_adapter(folder, spec, 0, 1).blocks[0]["q"].up
        return float(up[0, 0] / stored[0, 0])

    assert scale() == pytest.approx(8 / 4)
    assert scale(use_rslora=True) == pytest.approx(8 / 4**0.5)
    assert scale(use_rslora=False, alpha_pattern={"q_proj": 2}) == pytest.approx(2 / 4)
    assert scale(alpha_pattern={"proj": 2}) == pytest.approx(8 / 4)  # no module's name
    with pytest.raises(UserError, match="plain names"):
        scale(alpha_pattern={"(a+)+$": 2})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"peft_type": "IA3"}, "kind IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all", "modules_to_save": ["lm_head"]}, "bias, modules_to_save"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be a number"),
    ],
)
def test_what_is_more_than_low_rank_matrices_is_refused(
    folder: Path, spec: ModelSpec, settings: dict[str, Any], told: str
) -> None:
    change(folder, **settings)
    with pytest.raises(UserError, match=told):
        read_adapter(folder, spec, 0, 1)


def test_a_model_of_transformers_own_code_takes_none(folder: Path, spec: ModelSpec) -> None:
    with pytest.raises(UserError, match="served without adapters"):
        read_adapter(folder, replace(spec, general="{}"), 0, 1)


def test_tensors_that_fit_nothing_are_named(folder: Path, spec: ModelSpec) -> None:
    stored = load_file(folder / TENSORS)

    def refused(change: dict[str, torch.Tensor | None], told: str) -> None:
        changed = {name: one for name, one in (stored | change).items() if one is not None}
        save_file(changed, folder / TENSORS)
        with pytest.raises(UserError, match=told):
            read_adapter(folder, spec, 0, spec.blocks)

    down, up = f"{Q0}.lora_A.weight", f"{Q0}.lora_B.weight"
    refused({up: None}, "only lora_A of model.layers.0.self_attn.q_proj")
    refused({down: torch.ones(4, 7)}, "lora_A .* of shape")
    refused({up: torch.ones(7, 4)}, "lora_B .* of shape")
    refused({down: torch.full_like(stored[down], torch.nan)}, "infinite or none")
    refused({down: stored[down].double()}, "of dtype F64")
    refused({f"{Q0}.lora_magnitude_vector": torch.ones(4)}, "nothing in this model corresponds")
    refused({down.replace("layers.0", "layers.77"): torch.ones(4, 7)}, "nothing in this model")
    refused({"base_model.model.lm_head.lora_A.weight": torch.ones(4, 7)}, "nothing in this model")
    refused({down: torch.ones(600, 64), up: torch.ones(64, 600)}, "rank 600")


def test_experts_are_refused_and_their_blocks_attention_is_not(tmp_path: Path) -> None:
    spec = spec_of(tmp_path / "model", "qwen3_moe", num_experts=4, num_experts_per_tok=2)
    save_adapter(tmp_path / "attention", spec, modules=("q_proj", "o_proj"))
    assert read_adapter(tmp_path / "attention", spec, 0, 1).blocks[0].keys() == {"q", "out"}
    save_adapter(tmp_path / "all", spec)
    with pytest.raises(UserError, match="experts or their router"):
        read_adapter(tmp_path / "all", spec, 0, 1)
