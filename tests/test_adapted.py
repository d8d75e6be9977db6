"""Stages whose sessions wear adapters: the numbers of a merged model, and nobody else's changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from potluck.node.compute.adapter import read_adapter
from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.engine import BatchEngine, StageEngine
from potluck.node.compute.native import library
from potluck.node.compute.native_stage import NativeStage
from potluck.node.compute.pages import Lease, Pool, page_stride
from potluck.node.compute.stage import Stage
from potluck.node.compute.tensor import pack
from potluck.swarm.blocks import BlockRange
from potluck.swarm.wire import Step

from .adapters import merge, save_adapter
from .checkpoints import save_random

TOKENS = 70
TOLERANCE = 1e-4
# every way in which a product may be joined, turned, normed afterwards or added at once
SHAPES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "llama": ("llama", {}, ()),
    "odd": (
        "llama",
        {"hidden_size": 50, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 14,
         "intermediate_size": 72},
        (),
    ),
    "some": ("qwen2", {}, ("k_proj", "gate_proj", "down_proj")),
    "normed": ("gemma2", {"head_dim": 24, "sliding_window": 40}, ()),
    "joined": ("phi3", {"partial_rotary_factor": 0.5, "num_key_value_heads": 1}, ()),
    "mixture": (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
        ("q_proj", "v_proj", "o_proj"),
    ),
}  # fmt: skip
needs_kernels = pytest.mark.skipif(not library.is_available(), reason=str(library.why_not()))


def save(folder: Path, shape: str, **how: Any) -> tuple[Checkpoint, Path]:
    """A model and an adapter for it."""
    family, settings, modules = SHAPES[shape]
    (folder / "model").mkdir(parents=True, exist_ok=True)
    save_random(folder / "model", family, **settings)
    checkpoint = open_checkpoint(folder / "model")
    save_adapter(folder / "adapter", checkpoint.spec, modules=modules, **how)
    return checkpoint, folder / "adapter"


def native(checkpoint: Checkpoint, threads: int = 2, quantization: str = "none") -> NativeStage:
    return NativeStage.load(
        checkpoint, 0, checkpoint.spec.blocks, threads=threads, quantization=quantization
    )


def pool_for(stage: NativeStage, sessions: int = 8) -> Pool:
    stride = page_stride(stage.page_bytes)
    pages = sessions * (TOKENS // 64 + 1) * (stage.stop - stage.start)
    return Pool(budget_bytes=pages * stride, page_bytes=stage.page_bytes)


def wear(stage: NativeStage, pool: Pool, adapter: Any) -> Lease:
    lease = pool.open(stage.start, stage.stop, TOKENS)
    lease.adapter = adapter
    return lease


def together(stage: NativeStage, worn: list[Any], hidden: list[Tensor], chunk: int) -> list[Tensor]:
    """What comes out for each session, all in passes of so many rows of each."""
    pool = pool_for(stage, len(worn))
    leases = [wear(stage, pool, adapter) for adapter in worn]
    out: list[list[Tensor]] = [[] for _ in worn]
    for at in range(0, TOKENS, chunk):
        parts = [rows[at : at + chunk] for rows in hidden]
        for lease, part in zip(leases, parts, strict=True):
            lease.reserve(at, at + len(part))
        runs = [(lease, at, len(part)) for lease, part in zip(leases, parts, strict=True)]
        done = stage.forward_rows(torch.cat(parts), runs).split([len(part) for part in parts])
        for place, (lease, part) in enumerate(zip(leases, done, strict=True)):
            lease.length = at + len(part)
            out[place].append(part)
    return [torch.cat(parts) for parts in out]


def rows_of(checkpoint: Checkpoint, seed: int) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randn((TOKENS, checkpoint.spec.hidden), generator=dice)


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_an_adapter_gives_the_numbers_of_a_model_into_which_it_was_merged(
    tmp_path: Path, shape: str
) -> None:
    checkpoint, folder = save(tmp_path, shape)
    spec = checkpoint.spec
    merge(tmp_path / "model", folder, tmp_path / "merged")
    merged = Stage.load(open_checkpoint(tmp_path / "merged"), 0, spec.blocks, device="cpu")
    hidden = rows_of(checkpoint, 3)
    expected = merged.forward(hidden, merged.open_cache(0, spec.blocks, TOKENS), 0)
    adapter = read_adapter(folder, spec, 0, spec.blocks)

    stage = Stage.load(checkpoint, 0, spec.blocks, device="cpu")
    cache = stage.open_cache(0, spec.blocks, TOKENS)
    plain = stage.forward(hidden, cache, 0)
    cache.adapter = stage.load_adapter(adapter)
    assert off(stage.forward(hidden, cache, 0), expected) <= TOLERANCE
    assert off(plain, expected) > 100 * TOLERANCE
    if library.is_available():
        ours = native(checkpoint)
        worn = ours.load_adapter(adapter)
        assert off(together(ours, [worn], [hidden], TOKENS)[0], expected) <= TOLERANCE


@pytest.fixture(params=["none", "nf4"])
def dressed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[NativeStage, list[Any]]:
    """A stage, and two adapters of different ranks and modules beside none."""
    checkpoint, folder = save(tmp_path, "llama", rank=3)
    spec = checkpoint.spec
    save_adapter(tmp_path / "other", spec, modules=("q_proj", "down_proj"), rank=17, seed=2)
    stage = native(checkpoint, quantization=request.param)
    adapters = [read_adapter(one, spec, 0, spec.blocks) for one in (folder, tmp_path / "other")]
    return stage, [None, *map(stage.load_adapter, adapters), None]


@needs_kernels
def test_in_one_pass_each_session_has_the_bits_that_it_has_alone(
    tmp_path: Path, dressed: tuple[NativeStage, list[Any]]
) -> None:
    stage, worn = dressed
    checkpoint = open_checkpoint(tmp_path / "model")
    hidden = [rows_of(checkpoint, seed) for seed in range(len(worn))]
    alone = [
        together(stage, [adapter], [rows], TOKENS)[0]
        for adapter, rows in zip(worn, hidden, strict=True)
    ]
    single = native(checkpoint, threads=1, quantization=stage.format)
    plain = together(single, [None, None], [hidden[0], hidden[3]], 9)
    assert torch.equal(alone[0], plain[0]) and torch.equal(alone[3], plain[1])
    assert not torch.equal(alone[1], together(single, [None], [hidden[1]], 9)[0])
    for chunk in (1, 7, TOKENS):
        found = together(stage, worn, hidden, chunk)
        assert all(map(torch.equal, found, alone))


@needs_kernels
def test_every_instruction_set_gives_a_dressed_session_the_same_bits(
    tmp_path: Path, dressed: tuple[NativeStage, list[Any]]
) -> None:
    stage, worn = dressed
    checkpoint = open_checkpoint(tmp_path / "model")
    hidden = [rows_of(checkpoint, seed)[:20] for seed in range(len(worn))]
    before, said = library.isa(), []
    try:
        for isa in library.isas():
            library.use_isa(isa)
            pool = pool_for(stage)
            leases = [wear(stage, pool, adapter) for adapter in worn]
            for lease in leases:
                lease.reserve(0, 20)
            said.append(stage.forward_rows(torch.cat(hidden), [(one, 0, 20) for one in leases]))
    finally:
        library.use_isa(before)
    assert all(torch.equal(one, said[0]) for one in said)


@needs_kernels
def test_a_stage_of_later_blocks_takes_what_is_for_them(tmp_path: Path) -> None:
    checkpoint, folder = save(tmp_path, "llama")
    spec, hidden = checkpoint.spec, rows_of(checkpoint, 5)
    assert spec.blocks > 1
    whole = native(checkpoint)
    adapter = read_adapter(folder, spec, 0, spec.blocks)
    expected = together(whole, [whole.load_adapter(adapter)], [hidden], TOKENS)[0]
    for start, stop in ((0, 1), (1, spec.blocks)):
        stage = NativeStage.load(checkpoint, start, stop, threads=1, quantization="none")
        worn = stage.load_adapter(read_adapter(folder, spec, start, stop))
        hidden = together(stage, [worn], [hidden], TOKENS)[0]
    assert torch.equal(hidden, expected)


def test_engines_open_sessions_that_wear_an_adapter_beside_others(tmp_path: Path) -> None:
    checkpoint, folder = save(tmp_path, "llama")
    spec, blocks = checkpoint.spec, BlockRange(0, checkpoint.spec.blocks)
    adapter = read_adapter(folder, spec, 0, spec.blocks)
    stage = Stage.load(checkpoint, 0, spec.blocks, device="cpu", threads=1)
    engines: list[tuple[Any, Any]] = [(StageEngine(stage), stage.load_adapter(adapter))]
    if library.is_available():
        ours = native(checkpoint)
        engines.append((BatchEngine(ours, pool_for(ours)), ours.load_adapter(adapter)))
    payload = pack(rows_of(checkpoint, 6)[:5], "f32")
    step = Step(0, (5,), 5)
    answers = []
    for engine, worn in engines:
        caches = [engine.open_cache(blocks, 5, one) for one in (worn, None, worn)]
        works = [engine.begin(cache, payload, step, "f32") for cache in caches]
        engine.run([(work, 5) for work in works])
        dressed, plain, again = (bytes(work.answer()) for work in works)
        assert dressed == again != plain
        answers.append(torch.frombuffer(bytearray(dressed), dtype=torch.float32))
    assert all(off(one, answers[0]) <= TOLERANCE for one in answers)


@needs_kernels
def test_a_fork_wears_what_its_session_wore(dressed: tuple[NativeStage, list[Any]]) -> None:
    stage, worn = dressed
    pool = pool_for(stage)
    assert wear(stage, pool, worn[1]).fork().adapter is worn[1]
