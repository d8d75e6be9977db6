"""An adapter's parts: one form of bytes, from PEFT's folder and back, and nothing else is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError, UserError
from potluck.node.compute import parts
from potluck.node.compute.adapter import CONFIG, TENSORS, read_adapter
from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.choice import StageWish, open_stage
from potluck.node.compute.head import Ends
from potluck.node.compute.native import library
from potluck.node.compute.parts import SIGNED, publisher, read_bundle, wear, write_peft
from potluck.node.compute.tensor import pack, unpack
from potluck.node.library import DEMO_FOLDER
from potluck.swarm.adapter import Bundle, make_bundle, read_manifest
from potluck.swarm.blocks import BlockRange
from potluck.swarm.wire import Step

from .adapters import merge, save_adapter
from .checkpoints import save_random

MODEL = "ab" * 32
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
IDS = list(range(3, 40))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("model")
    save_random(folder, "llama")
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(folder, checkpoint.spec)
    return read_bundle(folder, checkpoint.spec, MODEL)


def change(folder: Path, **settings: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


# ---- its name


def test_it_has_one_name_however_its_files_lie_and_another_for_each_bit(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    spec = checkpoint.spec
    save_adapter(tmp_path, spec)
    first = read_bundle(tmp_path, spec, MODEL)
    assert first.manifest.rank == 4 and first.manifest.model.hex() == MODEL
    assert set(first.manifest.targets) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    stored = load_file(tmp_path / TENSORS)
    turned = dict(reversed(stored.items()))
    save_file(turned, tmp_path / TENSORS, metadata={"format": "pt", "by": "another"})
    change(tmp_path, lora_dropout=0.1, task_type="CAUSAL_LM")
    assert read_bundle(tmp_path, spec, MODEL) == first
    names = {first.name, read_bundle(tmp_path, spec, "cd" * 32).name}
    change(tmp_path, lora_alpha=9)
    names.add(read_bundle(tmp_path, spec, MODEL).name)
    down = stored[f"{Q0}.lora_A.weight"]
    down.view(torch.int32)[0, 0] ^= 1
    save_file(stored, tmp_path / TENSORS)
    names.add(read_bundle(tmp_path, spec, MODEL).name)
    assert len(names) == 4


def test_a_block_without_anything_has_no_part(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_adapter(tmp_path, checkpoint.spec)
    stored = load_file(tmp_path / TENSORS)
    kept = {name: one for name, one in stored.items() if "layers.1." not in name}
    save_file(kept, tmp_path / TENSORS)
    made = read_bundle(tmp_path, checkpoint.spec, MODEL)
    assert list(made.parts) == [0, 2] and made.manifest.size(BlockRange(1, 2)) == 0
    save_file({}, tmp_path / TENSORS)
    with pytest.raises(UserError, match="has no tensors"):
        read_bundle(tmp_path, checkpoint.spec, MODEL)
    with pytest.raises(UserError, match="no such folder"):
        read_bundle(tmp_path / "nowhere", checkpoint.spec, MODEL)


def test_one_that_is_too_large_to_be_sent_is_told_before_anybody_is_asked(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_adapter(tmp_path, checkpoint.spec, rank=300)
    monkeypatch.setattr(parts, "SIZE_MAX", 1 << 20)
    with pytest.raises(UserError, match=r"has 2 MiB of tensors, of which 1 are sent"):
        read_bundle(tmp_path, checkpoint.spec, MODEL)


# ---- PEFT's folder, and back


@pytest.mark.parametrize("settings", [
    {}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3.5, "down_proj": 1}}, {"lora_alpha": 7},
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read_as_the_same_adapter(
    tmp_path: Path, checkpoint: Checkpoint, settings: dict[str, object], dtype: torch.dtype
) -> None:
    spec = checkpoint.spec
    save_adapter(tmp_path / "one", spec, rank=3)
    path = tmp_path / "one" / TENSORS
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    change(tmp_path / "one", **settings)
    first = read_bundle(tmp_path / "one", spec, MODEL)
    write_peft(first, tmp_path / "two")
    assert read_bundle(tmp_path / "two", spec, MODEL) == first
    again = load_file(tmp_path / "two" / TENSORS)
    assert all(torch.equal(tensor, again[name]) for name, tensor in load_file(path).items())


def test_a_publishers_signature_holds_for_this_adapter_alone(
    tmp_path: Path, checkpoint: Checkpoint, bundle: Bundle
) -> None:
    key, spec = IdentityKey.generate(), checkpoint.spec
    write_peft(bundle, tmp_path, key)
    assert publisher(tmp_path, read_bundle(tmp_path, spec, MODEL)) == key.peer_id
    with pytest.raises(UserError, match="another base model"):
        read_bundle(tmp_path, spec, "cd" * 32)
    raw = bytearray((tmp_path / SIGNED).read_bytes())
    raw[-1] ^= 1
    (tmp_path / SIGNED).write_bytes(raw)
    with pytest.raises(UserError, match="bad signature"):
        read_bundle(tmp_path, spec, MODEL)
    (tmp_path / SIGNED).unlink()
    assert publisher(tmp_path, read_bundle(tmp_path, spec, MODEL)) is None


# ---- what a server reads


def test_parts_are_what_the_folder_is(tmp_path: Path, checkpoint: Checkpoint) -> None:
    spec = checkpoint.spec
    save_adapter(tmp_path, spec, rank=5, alpha=11)
    whole, made = read_adapter(tmp_path, spec, 0, 3), read_bundle(tmp_path, spec, MODEL).parts
    worn = wear(spec, "it", {1: made[1]})
    assert worn.blocks.keys() == {1} and worn.blocks[1].keys() == whole.blocks[1].keys()
    for name, update in worn.blocks[1].items():
        assert torch.equal(update.down, whole.blocks[1][name].down)
        assert torch.equal(update.up, whole.blocks[1][name].up)


@given(at=st.integers(0, 1 << 20), bit=st.integers(0, 7), cut=st.booleans())
def test_bytes_that_are_no_part_are_refused_and_never_a_crash(
    checkpoint: Checkpoint, bundle: Bundle, at: int, bit: int, cut: bool
) -> None:
    raw = bytearray(bundle.parts[0])
    place = at % 600 if at % 2 else at % len(raw)  # the head, or anywhere
    raw[place] ^= 1 << bit
    whole = bytes(raw[:place] if cut else raw)
    try:
        wear(checkpoint.spec, "it", {0: whole})
    except RemoteError:
        return
    assert not cut


def test_a_part_for_another_block_or_with_numbers_that_are_none_is_refused(
    tmp_path: Path, checkpoint: Checkpoint, bundle: Bundle
) -> None:
    spec = checkpoint.spec
    for index, told in ((1, "adds to model.layers.0"), (7, "block 7 of 3")):
        with pytest.raises(RemoteError, match=told):
            wear(spec, "it", {index: bundle.parts[0]})
    with pytest.raises(RemoteError, match="bytes behind it"):
        wear(spec, "it", {0: bundle.parts[0] + b"\0"})
    infinite = bundle.parts[0][:-4] + torch.tensor([torch.inf]).numpy().tobytes()
    with pytest.raises(RemoteError, match="infinite or none"):
        wear(spec, "it", {0: infinite})


def test_a_manifest_has_its_parts_in_order_and_one_name(bundle: Bundle) -> None:
    assert read_manifest(bundle.raw, bundle.name) == bundle.manifest
    with pytest.raises(RemoteError, match="another adapter"):
        read_manifest(bundle.raw, bytes(32))
    with pytest.raises(ValueError, match="not in order"):
        type(bundle.manifest)(bytes(32), 1, ("q_proj",), tuple(reversed(bundle.manifest.parts)))
    assert make_bundle(bytes.fromhex(MODEL), 4, bundle.manifest.targets, bundle.parts) == bundle


# ---- the numbers


@pytest.mark.parametrize("engine", ["torch", "native"])
def test_two_stages_that_wear_parts_give_the_logits_of_a_merged_model(
    tmp_path: Path, engine: str
) -> None:
    """transformers' own model, into which w + (alpha / rank) B A was written, is the oracle."""
    if engine == "native" and not library.is_available():
        pytest.skip(str(library.why_not()))
    demo, whole = open_checkpoint(DEMO_FOLDER), len(IDS)
    spec = demo.spec
    save_adapter(tmp_path / "adapter", spec, alpha=1)
    merge(DEMO_FOLDER, tmp_path / "adapter", tmp_path / "merged")
    expected, bare = logits_of(tmp_path / "merged"), logits_of(DEMO_FOLDER)
    made = read_bundle(tmp_path / "adapter", spec, MODEL).parts
    ends = Ends.load(demo)
    payload = pack(ends.embed(IDS), "f32")
    wish = StageWish("cpu", "fp32", engine, quantization="none", threads=1, cache_bytes=1 << 24)
    for blocks in (BlockRange(0, 3), BlockRange(3, spec.blocks)):
        stage = open_stage(demo, blocks, wish).engine
        mine = {block: made[block] for block in range(blocks.start, blocks.stop)}
        cache = stage.open_cache(blocks, whole, stage.dress("it", mine))
        work = stage.begin(cache, payload, Step(0, (whole,), whole), "f32")
        stage.run([(work, whole)])
        payload = work.answer()
    found = ends.logits(unpack(payload, whole, spec.hidden, "f32")[-1:]).reshape(-1)
    assert float((found - expected).abs().max()) <= 1e-4
    assert float((bare - expected).abs().max()) > 1e-2


def logits_of(folder: Path) -> torch.Tensor:
    """transformers' own, in fp32, behind the last token."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0, -1]  # type: ignore[no-any-return]
