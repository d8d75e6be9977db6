"""Which stage serves: ours where it can be had, within the memory that the owner gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from potluck.errors import UserError
from potluck.node.compute import choice
from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.choice import CACHE_SHARE, StageWish, cache_room, open_stage, refusal
from potluck.node.compute.engine import BatchEngine, StageEngine
from potluck.node.compute.native.library import why_not
from potluck.node.compute.pages import PAGE_TOKENS
from potluck.swarm.blocks import BlockRange
from potluck.swarm.wire import Step

from .checkpoints import save_random

MIB = 1 << 20
BLOCKS = BlockRange(0, 3)
needs_kernels = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    save_random(tmp_path, "llama", hidden_size=64)
    return open_checkpoint(tmp_path)


def test_what_no_machine_has_is_refused_by_name(checkpoint: Checkpoint) -> None:
    for wish in (
        StageWish(engine="warp"),
        StageWish(device="cpu", quantization="int3"),
        StageWish(device="cpu", cache_bits=5),
        StageWish(device="cpu", engine="torch", cache_bits=8),
    ):
        with pytest.raises(UserError, match=r"warp|int3|--cache-bits"):
            open_stage(checkpoint, BLOCKS, wish)


def test_our_kernels_decline_what_they_cannot_compute_and_say_why(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint
) -> None:
    assert "fp32" in refusal(StageWish(device="cpu", dtype="bf16"))
    monkeypatch.setattr(choice, "why_not", lambda: "there is no compiler")
    wish = StageWish(device="cpu", cache_bytes=MIB)
    assert refusal(wish) == "there is no compiler"
    opened = open_stage(checkpoint, BLOCKS, wish)
    assert isinstance(opened.engine, StageEngine) and "no compiler" in opened.why
    with pytest.raises(UserError, match="no compiler"):
        open_stage(checkpoint, BLOCKS, StageWish(device="cpu", engine="native"))


@needs_kernels
def test_our_kernels_serve_where_they_can(checkpoint: Checkpoint) -> None:
    opened = open_stage(checkpoint, BLOCKS, StageWish(device="cpu", threads=1, cache_bytes=MIB))
    assert isinstance(opened.engine, BatchEngine) and opened.pool is not None
    assert opened.engine.numerics.startswith("none ")
    assert opened.cache_tokens == opened.pool.pages * PAGE_TOKENS
    assert opened.page_tokens == PAGE_TOKENS
    assert min(opened.rates) > 0
    quantized = open_stage(
        checkpoint, BLOCKS, StageWish(device="cpu", threads=1, quantization="int8", cache_bytes=MIB)
    )
    assert quantized.quantization == "int8"
    assert quantized.engine.numerics != opened.engine.numerics


@needs_kernels
def test_pages_of_bytes_remember_more_in_a_class_of_their_own(tmp_path: Path) -> None:
    save_random(tmp_path, "llama", hidden_size=256, head_dim=128)
    checkpoint = open_checkpoint(tmp_path)
    opened = {
        bits: open_stage(
            checkpoint, BLOCKS, StageWish(device="cpu", threads=1, cache_bits=bits, cache_bytes=MIB)
        )
        for bits in (32, 8)
    }
    assert opened[8].cache_tokens > 3 * opened[32].cache_tokens
    assert opened[8].engine.numerics != opened[32].engine.numerics


@needs_kernels
def test_both_kinds_compute_the_same_model(checkpoint: Checkpoint) -> None:
    """Within what two orders of summation differ; and ours is the same whole or in slices."""
    rows = torch.randn(100, 64)
    payload = memoryview(bytearray(rows.numpy().tobytes()))
    answers = {}
    for kind, cuts in (("torch", (100,)), ("native", (100,)), ("native", (1, 63, 5, 31))):
        wish = StageWish(device="cpu", engine=kind, threads=1, cache_bytes=MIB)
        engine = open_stage(checkpoint, BLOCKS, wish).engine
        cache = engine.open_cache(BLOCKS, 100)
        work = engine.begin(cache, payload, Step(0, (100,), 40), "f32")
        for rows_now in cuts:
            engine.run([(work, rows_now)])
        answers[kind, cuts] = torch.frombuffer(bytearray(work.answer()), dtype=torch.float32)
        assert cache.length == 100
        engine.close_cache(cache)
    torch_said, whole, sliced = answers.values()
    assert torch.allclose(torch_said, whole, atol=1e-3)
    assert torch.equal(whole, sliced)


def test_sessions_get_what_the_owner_leaves_them() -> None:
    def room(free: int, weights: int, **wish: int) -> int:
        return cache_room(StageWish(**wish), BLOCKS, free=free, weights=weights)  # type: ignore[arg-type]

    assert room(1000 * MIB, 300 * MIB) == CACHE_SHARE * 1000 * MIB
    assert room(1000 * MIB, 300 * MIB, memory_bytes=500 * MIB) == 200 * MIB
    assert room(100 * MIB, 300 * MIB, memory_bytes=500 * MIB) == 100 * MIB
    assert room(1000 * MIB, 300 * MIB, memory_bytes=500 * MIB, cache_bytes=50 * MIB) == 50 * MIB
    assert room(1000 * MIB, 300 * MIB, part_bytes=500 * MIB) == CACHE_SHARE * 200 * MIB
    with pytest.raises(UserError, match="part of the memory is 200 MiB"):
        room(1000 * MIB, 300 * MIB, part_bytes=200 * MIB)
    with pytest.raises(UserError, match="more than the 200 MiB"):
        room(1000 * MIB, 300 * MIB, memory_bytes=500 * MIB, cache_bytes=201 * MIB)
    with pytest.raises(UserError, match="--max-memory 200"):
        room(1000 * MIB, 300 * MIB, memory_bytes=200 * MIB)


@needs_kernels
def test_a_cache_that_holds_nothing_is_refused(checkpoint: Checkpoint) -> None:
    for engine in ("native", "torch"):
        with pytest.raises(UserError, match="hold not one"):
            open_stage(checkpoint, BLOCKS, StageWish(device="cpu", engine=engine, cache_bytes=100))
