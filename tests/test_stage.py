"""A stage: what it loads, what it refuses, and that a replay gives the very same bits."""

import gc
import itertools
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from potluck.errors import RemoteError, UserError
from potluck.node.compute import memory, rating
from potluck.node.compute.cache import Cache
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.layout import layout_of
from potluck.node.compute.quant.formats import QUANTIZATIONS
from potluck.node.compute.stage import Stage

from .checkpoints import LLAMA3, save_random

STEPS = (20, 1, 1, 1, 7, 1, 1, 33, 1, 2, 1, 1, 64, 1, 1, 1, 3, 1, 1)  # as a client might take
GEMMA = ["sliding_attention", "full_attention", "sliding_attention"]
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 512}),
    "odd-widths": (
        "llama",  # rows of 50 numbers: no row but the first is aligned
        {"hidden_size": 50, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 14},
    ),
    "tiny": (
        "llama",
        {
            "hidden_size": 256,
            "intermediate_size": 688,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "num_hidden_layers": 4,
        },
    ),
    "mistral": ("mistral", {"sliding_window": 11}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma2": ("gemma2", {"sliding_window": 17, "head_dim": 12}),
    "gemma3": ("gemma3", {"sliding_window": 17, "head_dim": 12, "layer_types": GEMMA}),
    "phi3": ("phi3", {"partial_rotary_factor": 0.5}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "dynamic": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 8.0}, "max_position_embeddings": 32},
    ),
}


@pytest.fixture
def threads() -> Iterator[None]:
    """Whatever a test sets, the next starts with the old number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    save_random(tmp_path, "llama")
    return tmp_path


def load(path: Path, start: int = 0, stop: int = 3, **settings: Any) -> Stage:
    return Stage.load(open_checkpoint(path), start, stop, device="cpu", **settings)


def open_whole(stage: Stage, max_tokens: int = 100) -> Cache:
    return stage.open_cache(stage.start, stage.stop, max_tokens)


@pytest.mark.parametrize(
    ("name", "count"),
    [(name, 1) for name in SHAPES] + [(name, 2) for name in ("llama3", "odd-widths", "tiny")],
)
@pytest.mark.usefixtures("threads")
def test_a_replay_in_the_same_steps_gives_the_same_bits(
    name: str, count: int, tmp_path: Path
) -> None:
    """Whatever differs between the server that died and those that take over: where the blocks
    are cut, how much room the cache has and how it grew, what it held and forgot before, where
    the input lies in memory."""
    family, settings = SHAPES[name]
    save_random(tmp_path, family, **({"max_position_embeddings": 256} | settings))
    torch.set_num_threads(count)
    tokens, dice = sum(STEPS), random.Random(7)
    first = load(tmp_path)
    hidden = torch.randn(tokens, first.spec.hidden)
    cache = open_whole(first, 160)
    said = torch.cat(
        [
            first.forward(rows, cache, at)
            for at, rows in zip(starts(), hidden.split(STEPS), strict=True)
        ]
    )
    for cut, room in ((1, tokens), (2, tokens + 13), (1, 200)):
        left, right = load(tmp_path, 0, cut), load(tmp_path, 0, 3)
        left_cache = open_whole(left, room)
        right_cache = right.open_cache(cut, 3, room)
        ballast = [torch.randn(dice.randrange(1, 3000)) for _ in range(dice.randrange(5))]
        junk = torch.randn(dice.randrange(2, tokens), first.spec.hidden)
        right.forward(junk, right_cache, 0)
        right.forward(junk[:1], right_cache, len(junk) // 2)
        shifted = torch.empty(hidden.numel() + 1)[1:].view(hidden.shape).copy_(hidden)
        middle = left.forward_steps(shifted, left_cache, 0, STEPS)
        again = right.forward_steps(middle, right_cache, 0, STEPS)
        assert torch.equal(again, said)
        del ballast


def starts() -> list[int]:
    return [sum(STEPS[:index]) for index in range(len(STEPS))]


def test_a_draft_that_was_taken_back_leaves_no_trace(small: Path) -> None:
    stage = load(small)
    hidden = torch.randn(30, stage.spec.hidden)
    plain, drafted = open_whole(stage), open_whole(stage)
    for at in range(0, 30, 3):
        rows = hidden[at : at + 3]
        said = stage.forward(rows, plain, at)
        stage.forward(torch.randn(8, stage.spec.hidden), drafted, at)
        assert torch.equal(stage.forward(rows, drafted, at), said)
        assert drafted.length == at + 3


def test_sessions_do_not_see_each_other(small: Path) -> None:
    stage = load(small)
    one, other = open_whole(stage), open_whole(stage)
    hidden = torch.randn(12, stage.spec.hidden)
    alone = stage.forward_steps(hidden, one, 0, [4] * 3)
    mixed = open_whole(stage)
    parts = []
    for at in (0, 4, 8):
        stage.forward(torch.randn(5, stage.spec.hidden), other, 0)
        parts.append(stage.forward(hidden[at : at + 4], mixed, at))
    assert torch.equal(torch.cat(parts), alone)


def test_the_input_is_left_as_it_was(small: Path) -> None:
    stage = load(small)
    hidden = torch.randn(4, stage.spec.hidden)
    kept = hidden.clone()
    stage.forward(hidden, open_whole(stage), 0)
    assert torch.equal(hidden, kept)


def test_only_what_is_announced_is_served(small: Path) -> None:
    stage = load(small, 1, 3)
    hidden = torch.randn(2, stage.spec.hidden)
    for start, stop, tokens in ((0, 2, 8), (1, 4, 8), (2, 2, 8), (1, 3, 0), (1, 3, 129)):
        with pytest.raises(RemoteError):
            stage.open_cache(start, stop, tokens)
    cache = stage.open_cache(1, 3, 4)
    with pytest.raises(RemoteError, match="position 1, but the cache holds 0"):
        stage.forward(hidden, cache, 1)
    with pytest.raises(RemoteError, match="beyond the 4 agreed"):
        stage.forward(torch.randn(5, stage.spec.hidden), cache, 0)
    with pytest.raises(RemoteError, match="shape 2 x 47"):
        stage.forward(hidden[:, :-1], cache, 0)
    for steps in ((1,), (2, 1), (3, -1), (2, 0), ()):
        with pytest.raises(RemoteError, match="steps"):
            stage.forward_steps(hidden, cache, 0, steps)
    assert cache.length == 0
    stage.forward(hidden, cache, 0)


def test_a_step_that_is_refused_forgets_nothing(small: Path) -> None:
    stage = load(small)
    cache = open_whole(stage, 6)
    stage.forward(torch.randn(5, stage.spec.hidden), cache, 0)
    with pytest.raises(RemoteError):
        stage.forward(torch.randn(4, stage.spec.hidden), cache, 3)
    assert cache.length == 5


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (-1, 2), (2, 2), (3, 1)])
def test_a_range_outside_the_model_is_refused_with_the_models_own(
    start: int, stop: int, small: Path
) -> None:
    with pytest.raises(UserError, match=r"outside 0:3"):
        load(small, start, stop)


def test_only_its_own_tensors_are_touched(tmp_path: Path) -> None:
    """With the files of other blocks gone, a stage still loads."""
    save_random(tmp_path, "llama", shard="20KB", num_hidden_layers=4)
    checkpoint = open_checkpoint(tmp_path)
    names = [f"model.layers.2.{part}.weight" for part in ("input_layernorm", "mlp.down_proj")]
    needed = {checkpoint.path_of(name) for name in checkpoint.names if ".2." in name}
    assert {checkpoint.path_of(name) for name in names} <= needed
    gone = [path for path in tmp_path.glob("*.safetensors") if path not in needed]
    assert gone
    for path in gone:
        path.unlink()
    stage = load(tmp_path, 2, 3)
    stage.forward(torch.randn(1, 48), open_whole(stage), 0)
    with pytest.raises(UserError, match="missing"):
        load(tmp_path, 1, 3)


def test_too_little_memory_is_refused_with_figures(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 16)
    with pytest.raises(UserError, match=r"needs 0 MiB .* 0 MiB are free"):
        load(small)


def test_loaded_weights_do_not_keep_the_files_mapped(small: Path) -> None:
    stage = load(small)
    gc.collect()
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(small) not in maps.read_text()
    assert stage.stop == 3


def test_a_tensor_of_another_shape_or_type_is_named(small: Path) -> None:
    file = small / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    whole = tensors[name]
    tensors[name] = whole[:-1].clone()
    save_file(tensors, file)
    with pytest.raises(UserError, match=rf"{name} has shape \[79, 48\].*\[80, 48\]"):
        load(small)
    load(small, 0, 1)  # which does not need it
    tensors[name] = whole.to(torch.int8)
    save_file(tensors, file)
    with pytest.raises(UserError, match=rf"{name} has dtype I8"):
        load(small)


def test_a_stage_measures_itself(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that moves 10 ms at each look: one token through all 3 blocks, then a prefill as
    long as the context of 128 allows through one."""
    looks = itertools.count()
    monkeypatch.setattr(rating.time, "perf_counter", lambda: next(looks) * 0.01)
    decode, prefill = load(small).measure()
    assert decode == pytest.approx(3 / 0.01)
    assert prefill == pytest.approx(128 / 0.01)


def test_numerics_name_what_bits_depend_on(small: Path) -> None:
    stage = load(small, threads=1)
    assert "fp32" in stage.numerics and "threads 1" in stage.numerics
    assert len(stage.numerics) <= 128
    assert load(small, dtype="bf16").numerics != stage.numerics


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"device": "cuda:9"}, "cuda:9"),
        ({"device": "toaster"}, "toaster"),
        ({"device": "meta"}, "meta"),
        ({"dtype": "fp8"}, "fp8"),
    ],
)
def test_a_device_or_dtype_that_is_not_here_is_named(
    settings: dict[str, str], said: str, small: Path
) -> None:
    with pytest.raises(UserError, match=said):
        Stage.load(open_checkpoint(small), 0, 1, **({"device": "cpu"} | settings))


@pytest.mark.parametrize("format", ["int8", "nf4"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3", "qwen3_moe"])
def test_a_quantized_stage_computes_with_what_its_codes_stand_for(
    family: str, format: str, tmp_path: Path
) -> None:
    """Against a stage whose matrices were turned to codes and back before; 1e-3 is the bar."""
    widths = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    save_random(tmp_path / "plain", family, num_hidden_layers=2, **widths)
    shutil.copytree(tmp_path / "plain", tmp_path / "rounded")
    checkpoint = open_checkpoint(tmp_path / "plain")
    rounded = load_file(tmp_path / "plain" / "model.safetensors")
    for index in range(2):
        layout = layout_of(checkpoint.spec, index)
        for name, shape in layout.shapes.items():
            if len(shape) == 2 and name not in layout.exact:
                rounded[name] = QUANTIZATIONS[format].quantize(rounded[name]).dequantize()
    save_file(rounded, tmp_path / "rounded" / "model.safetensors")
    stage = load(tmp_path / "plain", 0, 2, quantization=format)
    assert stage.quantization == format
    assert stage.numerics.startswith(f"{format} fp32")
    reference = load(tmp_path / "rounded", 0, 2)
    hidden = torch.randn(12, stage.spec.hidden)
    ours = stage.forward_steps(hidden, open_whole(stage), 0, [9, 1, 2])
    theirs = reference.forward_steps(hidden, open_whole(reference), 0, [9, 1, 2])
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-3
    exact = load(tmp_path / "plain", 0, 2).forward_steps(
        hidden, open_whole(reference), 0, [9, 1, 2]
    )
    assert float((ours - exact).norm() / exact.norm()) > 1e-3


def test_a_weight_that_is_no_number_is_refused_with_its_name(small: Path) -> None:
    file = small / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, file)
    with pytest.raises(
        UserError, match=r"layers\.1\.mlp\.up_proj\.weight, of which a number is infinite"
    ):
        load(small, quantization="int8")


def test_quantized_blocks_are_kept_for_the_next_time(small: Path, tmp_path: Path) -> None:
    hidden = torch.randn(5, 48)
    said = []
    for _ in range(2):
        stage = load(small, quantization="int8", cache_dir=tmp_path / "kept")
        said.append(stage.forward(hidden, open_whole(stage), 0))
    assert torch.equal(*said)
    assert len(list((tmp_path / "kept").rglob("*.block"))) == 3
