"""Sessions that rest in the host's memory: never more than is there, and not a bit is changed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import LocalError
from potluck.node.compute.cache import Cache
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.engine import StageEngine
from potluck.node.compute.shapes import write_random
from potluck.node.compute.spec import ModelSpec
from potluck.node.compute.spill import Budget, Residents
from potluck.node.compute.stage import Stage
from potluck.node.compute.tensor import pack
from potluck.swarm.blocks import BlockRange
from potluck.swarm.wire import Step

SPEC = ModelSpec.from_config(
    {
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 10,
        "max_position_embeddings": 4096,
    }
)  # fmt: skip


def cache_of(tokens: int) -> Cache:
    cpu = torch.device("cpu")
    return Cache(SPEC, 0, 2, max_tokens=tokens, dtype=torch.float32, device=cpu)


TOKEN_BYTES = cache_of(1).bytes_for(1)


def budget_of(device_tokens: int, host_tokens: int) -> Budget:
    return Budget(device_tokens * TOKEN_BYTES, host_tokens * TOKEN_BYTES)


def test_what_may_be_promised() -> None:
    assert Budget(100).promised_bytes == Budget(100).session_bytes_max == 100
    assert not Budget(100, 50).spills and Budget(100, 50).promised_bytes == 100
    assert Budget(100, 51).promised_bytes == 101 and Budget(100, 51).session_bytes_max == 50
    assert Budget(100, 1000).promised_bytes == 1050


@given(st.randoms(use_true_random=False), st.integers(64, 600), st.integers(0, 3000))
def test_however_sessions_come_grow_and_go_both_memories_hold_them(
    dice: random.Random, device_tokens: int, host_tokens: int
) -> None:
    budget = budget_of(device_tokens, device_tokens // 2 + 1 + host_tokens)
    residents = Residents(budget)
    promised, live = 0, []
    for _ in range(60):
        tokens = dice.randint(1, budget.session_bytes_max // TOKEN_BYTES)
        room = promised + tokens * TOKEN_BYTES <= budget.promised_bytes
        if room and (not live or dice.random() < 0.4):
            residents.open(cache := cache_of(tokens))
            live.append(cache)
            promised += tokens * TOKEN_BYTES
        elif live and dice.random() < 0.2:
            cache = live.pop(dice.randrange(len(live)))
            promised -= cache.bytes_for(cache.max_tokens)
            residents.close(cache)
            cache.release()
        elif live:
            cache = dice.choice(live)
            stop = dice.randint(1, cache.max_tokens)
            residents.use(cache, stop)
            cache.reserve(stop)
            cache.length = stop
        held = sum(one.bytes_for(one.capacity) for one in live)
        assert residents.device_bytes + residents.host_bytes == held
        assert residents.device_bytes <= budget.device_bytes
        assert residents.host_bytes < budget.host_bytes


def test_a_session_that_was_promised_too_much_is_our_own_fault() -> None:
    with pytest.raises(LocalError, match="too much"):
        Residents(budget_of(100, 100)).open(cache_of(51))


class _FullCache(Cache):
    """A cache that finds no room in the host, or on the device, as often as it is told."""

    full_host = full_device = 0

    def go(self, device: torch.device) -> None:
        if self.full_host:
            self.full_host -= 1
            raise RuntimeError("out of memory")
        super().go(device)

    def come_back(self) -> None:
        if self.full_device:
            self.full_device -= 1
            raise RuntimeError("out of memory")
        super().come_back()


def test_a_move_that_found_no_room_is_counted_right_and_made_again() -> None:
    residents, cpu = Residents(budget_of(100, 100)), torch.device("cpu")
    one, other = (
        _FullCache(SPEC, 0, 2, max_tokens=50, dtype=torch.float32, device=cpu) for _ in range(2)
    )
    residents.open(one)
    residents.open(other)
    one.full_host, one.full_device = 1, 1
    with pytest.raises(RuntimeError):
        residents.open(cache_of(10))  # of which nothing is left behind
    assert (residents.device_bytes, residents.host_bytes) == (50 * TOKEN_BYTES, 50 * TOKEN_BYTES)
    with pytest.raises(RuntimeError):
        residents.use(one, 50)
    assert (residents.device_bytes, residents.host_bytes) == (50 * TOKEN_BYTES, 50 * TOKEN_BYTES)
    residents.use(one, 50)
    assert (residents.device_bytes, residents.host_bytes) == (100 * TOKEN_BYTES, 0)
    residents.close(one)
    residents.close(other)
    assert residents.device_bytes == residents.host_bytes == 0


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder: Path = tmp_path_factory.mktemp("spill")
    write_random(folder / "tiny", "tiny")
    checkpoint = open_checkpoint(str(folder / "tiny"), offline=True, home=folder)
    return Stage.load(checkpoint, 0, 2, device="cpu", threads=1)


def talk(stage: Stage, residents: Residents | None) -> list[bytes]:
    """Three sessions, step by step in turns; what each step answers."""
    engine = StageEngine(stage, residents)
    dice = torch.Generator().manual_seed(5)
    caches = [engine.open_cache(BlockRange(0, 2), 90) for _ in range(3)]
    said = []
    for turn, size in enumerate((7, 1, 1, 60, 1, 1)):
        for cache in caches:
            hidden = torch.randn((size, engine.width), generator=dice)
            at = cache.length if turn != 3 else cache.length - 1
            work = engine.begin(cache, pack(hidden, "f32"), Step(at, (size,), size), "f32")
            engine.run([(work, size)])
            said.append(bytes(work.answer()))
    for cache in caches:
        engine.close_cache(cache)
    return said


def test_a_session_that_was_away_goes_on_with_the_same_bits(stage: Stage) -> None:
    moves: list[int] = []
    each = 90 * stage.open_cache(0, 2, 90).bytes_for(1)
    residents = Residents(Budget(2 * each, 2 * each), moves.append)
    assert talk(stage, residents) == talk(stage, None)
    assert len(moves) > 10
    assert residents.device_bytes == residents.host_bytes == 0


@pytest.mark.gpu
def test_on_a_gpu_too_the_bits_stay(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    write_random(tmp_path / "tiny", "tiny")
    checkpoint = open_checkpoint(str(tmp_path / "tiny"), offline=True, home=tmp_path)
    stage = Stage.load(checkpoint, 0, 2, device="cuda")
    each = 90 * stage.open_cache(0, 2, 90).bytes_for(1)
    assert talk(stage, Residents(Budget(2 * each, 2 * each))) == talk(stage, None)
