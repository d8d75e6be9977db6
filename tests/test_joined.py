"""Several devices in one node: the bits of one, room that is there on each, or none is taken."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.errors import Refused, RemoteError, UserError
from potluck.node.compute import spread as spreading
from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.choice import Opened, StageWish, open_stage
from potluck.node.compute.device import devices_of
from potluck.node.compute.joined import JoinedCache, JoinedEngine, joined_numerics
from potluck.node.compute.native.library import why_not
from potluck.node.compute.pages import PAGE_TOKENS
from potluck.node.compute.spread import count_that_fit, joined, open_span, require_span, spread
from potluck.node.compute.tensor import pack
from potluck.swarm.admission import Admission, AdmissionConfig, Part
from potluck.swarm.blocks import BlockRange
from potluck.swarm.tolerance import is_exact
from potluck.swarm.wire import Step

from .checkpoints import save_random

MIB = 1 << 20
BLOCKS = BlockRange(1, 6)
WIDTH = 64
ENGINES = [
    pytest.param("native", marks=pytest.mark.skipif(why_not() is not None, reason=why_not() or "")),
    "torch",
    "tiled",
]
WISH = StageWish(device="cpu,cpu", threads=1, cache_bytes=4 * MIB)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder: Path = tmp_path_factory.mktemp("joined")
    save_random(folder, "llama", hidden_size=WIDTH, num_hidden_layers=6)
    return open_checkpoint(folder)


def talk(opened: Opened) -> list[bytes]:
    """Sessions of several ranges, prompts in slices, tokens together, a step taken back."""
    engine, dice = opened.engine, torch.Generator().manual_seed(5)
    caches = [
        engine.open_cache(BlockRange(*ends), 120) for ends in ((1, 6), (1, 6), (2, 3), (3, 5))
    ]
    said = []
    for turn, size in enumerate((70, 1, 1, 9, 1)):
        works = []
        for cache in caches:
            hidden = torch.randn((size, WIDTH), generator=dice)
            at = cache.length if turn != 3 else cache.length - 1
            if turn == 3:
                engine.truncate(cache, at)
            works.append(engine.begin(cache, pack(hidden, "f32"), Step(at, (size,), size), "f32"))
        cuts = [size] if size < 70 or not engine.exact else [33, 37]
        for rows in cuts:
            if engine.exact:
                engine.run([(work, rows) for work in works])
            else:
                for work in works:
                    engine.run([(work, rows)])
        said += [bytes(work.answer()) for work in works]
    for cache in caches:
        engine.close_cache(cache)
    return said


@pytest.mark.parametrize("kind", ENGINES)
def test_two_devices_give_the_bits_of_one(checkpoint: Checkpoint, kind: str) -> None:
    both = open_span(checkpoint, BLOCKS, replace(WISH, engine=kind))
    one = open_stage(checkpoint, BLOCKS, replace(WISH, engine=kind, device="cpu"))
    assert isinstance(both.engine, JoinedEngine)
    assert [part.blocks for part in both.parts] == [BlockRange(1, 4), BlockRange(4, 6)]
    assert both.engine.blocks == BLOCKS and both.engine.exact == one.engine.exact
    assert both.engine.numerics == one.engine.numerics
    assert both.quantization == one.quantization and both.dtype == one.dtype
    assert talk(both) == talk(one)


def test_one_device_of_each_kind_computes_the_model_too(checkpoint: Checkpoint) -> None:
    """Our kernels before torch's: another class, and close to either."""
    if why_not() is not None:
        pytest.skip(why_not() or "")
    halves = [
        (open_stage(checkpoint, blocks, replace(WISH, engine=kind, device="cpu")), "cpu")
        for blocks, kind in ((BlockRange(1, 3), "native"), (BlockRange(3, 6), "torch"))
    ]
    mixed = joined(halves)
    assert not mixed.engine.exact and mixed.engine.numerics.startswith("mixed-")
    alone = open_stage(checkpoint, BLOCKS, replace(WISH, engine="torch", device="cpu"))
    for ours, theirs in zip(talk(mixed), talk(alone), strict=True):
        pair = [torch.frombuffer(bytearray(said), dtype=torch.float32) for said in (ours, theirs)]
        assert torch.allclose(*pair, atol=1e-3)


def test_a_class_of_several_is_its_own_and_looks_like_no_other() -> None:
    spans = BlockRange(0, 2), BlockRange(2, 5), BlockRange(0, 3), BlockRange(3, 5)
    same = joined_numerics([(spans[0], "none c1"), (spans[1], "none c1")])
    assert same == "none c1"
    torch_like = "bf16 torch 2.13.0 NVIDIA H200"
    mixed = joined_numerics([(spans[0], "none c1"), (spans[1], torch_like)])
    other = joined_numerics([(spans[2], "none c1"), (spans[3], torch_like)])
    assert mixed != other and len(mixed) <= 128
    assert not is_exact(mixed) and "torch" not in mixed.split()


@pytest.mark.parametrize("kind", ENGINES)
def test_a_session_has_a_cache_on_all_devices_or_on_none(checkpoint: Checkpoint, kind: str) -> None:
    opened = open_span(checkpoint, BLOCKS, replace(WISH, engine=kind))
    assert isinstance(opened.engine, JoinedEngine)
    first, second = (part.engine for part in opened.engine._parts)
    closed = []
    shut = first.close_cache

    def close(cache: object) -> None:
        closed.append(cache)
        shut(cache)

    def full(*_: object) -> None:
        raise Refused("no page", retry_after_s=1.0)

    first.close_cache, second.open_cache = close, full  # type: ignore[assignment, method-assign]
    with pytest.raises(Refused):
        opened.engine.open_cache(BLOCKS, 100)
    assert len(closed) == 1
    if opened.pool is not None:
        assert opened.pool.free_pages == opened.pool.pages
    opened.engine.open_cache(BlockRange(1, 4), 100)  # it has no blocks on the full one


def test_what_no_honest_client_sends_is_refused_before_anything_changes(
    checkpoint: Checkpoint,
) -> None:
    engine = open_span(checkpoint, BLOCKS, WISH).engine
    with pytest.raises(RemoteError, match="blocks 0:3 asked"):
        engine.open_cache(BlockRange(0, 3), 10)
    cache = engine.open_cache(BLOCKS, 10)
    payload = pack(torch.zeros((3, WIDTH)), "f32")
    for at in (1, 9):
        with pytest.raises(RemoteError):
            engine.begin(cache, payload, Step(at, (3,), 3), "f32")
    with pytest.raises(RemoteError):
        engine.truncate(cache, 1)
    assert isinstance(cache, JoinedCache) and cache.length == 0


@settings(deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=4),
)
def test_what_is_announced_can_be_had_and_no_device_promises_more_than_it_has(
    dice: random.Random, devices: list[tuple[int, int]]
) -> None:
    """devices: blocks, and pages of room, of each."""
    parts, start = [], 0
    for blocks, pages in devices:
        parts.append(Part(BlockRange(start, start + blocks), pages * PAGE_TOKENS))
        start += blocks
    least = min(part.cache_tokens for part in parts)
    book = Admission(AdmissionConfig(least, PAGE_TOKENS, parts=tuple(parts), peer_share=1.0))
    held: dict[int, tuple[BlockRange, int]] = {}
    for number in range(40):
        if held and dice.random() < 0.4:
            key = dice.choice(list(held))
            del held[key]
            book.release(key, float(number))
        else:
            first = dice.randrange(start)
            blocks = BlockRange(first, dice.randint(first + 1, start))
            tokens = dice.randint(1, 3 * PAGE_TOKENS)
            size = -(-tokens // PAGE_TOKENS) * PAGE_TOKENS
            announced = size * len(blocks) <= book.free_tokens
            try:
                book.admit(number, "p", blocks, tokens, float(number))
                held[number] = (blocks, size)
            except Refused:
                assert not announced
        for part in parts:
            used = sum(size * part.blocks.common(blocks) for blocks, size in held.values())
            assert used <= part.cache_tokens
    for key in held:
        book.release(key, 99.0)
    assert book.free_tokens == least


@pytest.mark.parametrize("kind", ENGINES)
def test_the_figure_of_a_loaded_span_is_what_its_devices_hold(
    checkpoint: Checkpoint, kind: str
) -> None:
    """Sessions are admitted until one is refused, and every one of them finds its cache."""
    opened = open_span(checkpoint, BLOCKS, replace(WISH, engine=kind, cache_bytes=MIB))
    book = Admission(
        AdmissionConfig(
            opened.cache_tokens, opened.page_tokens, opened.session_tokens_max, opened.parts
        )
    )
    assert book.free_tokens == opened.cache_tokens == min(one.cache_tokens for one in opened.parts)
    ranges, number = [BLOCKS, BlockRange(1, 2), BlockRange(3, 5), BlockRange(5, 6)], 0
    with pytest.raises(Refused):
        while True:
            blocks = ranges[number % len(ranges)]
            book.admit(number, str(number), blocks, 100, 0.0)
            opened.engine.open_cache(blocks, 100)
            number += 1
    assert number >= 4


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from([1.0, 1.4, 5.0])), min_size=1),
    st.data(),
)
def test_blocks_go_to_the_fastest_devices_that_have_room(
    devices: list[tuple[int, float]], data: st.DataObject
) -> None:
    fits, rates = [fit for fit, _ in devices], [rate for _, rate in devices]
    total = data.draw(st.integers(0, sum(fits)))
    counts = spread(total, fits, rates)
    assert sum(counts) == total
    assert all(0 <= count <= fit for count, fit in zip(counts, fits, strict=True))
    for slow, count in enumerate(counts):
        for fast, fit in enumerate(fits):
            if count and rates[fast] >= 2 * rates[slow]:
                assert counts[fast] == fit


def test_devices_of_one_speed_share_by_room() -> None:
    assert spread(16, [100, 100], [1.0, 1.0]) == [8, 8]
    assert spread(9, [24, 12], [1.0, 1.1]) == [6, 3]
    assert spread(9, [24, 12], [1.0, 9.0]) == [0, 9]


def test_an_owners_limits_are_for_all_devices_together(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = StageWish(device="cpu,cpu", memory_bytes=100, cache_bytes=50, spill_bytes=10)
    for one in spreading.divided(wish, ("cpu", "cpu")):
        assert (one.device, one.memory_bytes, one.cache_bytes) == ("cpu", 50, 25)
        assert (one.part_bytes, one.spill_bytes) == (0, 5)
    with monkeypatch.context() as patched:
        patched.setattr(spreading, "free_bytes", lambda device: 1000)
        open_wishes = spreading.divided(StageWish(), ("cpu", "cpu"))
    assert [one.part_bytes for one in open_wishes] == [450, 450]
    assert count_that_fit(checkpoint, StageWish(device="cpu,cpu")) == 6
    with pytest.raises(UserError, match=r"5 blocks are asked for, and the devices have room for 0"):
        require_span(checkpoint, BLOCKS, StageWish(device="cpu,cpu", memory_bytes=1000))


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("cpu,cuda:7", "device cuda:7: [0-9]+ CUDA devices are here; use another or cpu"),
        ("cpu,,cpu", "device '' is not known"),
        ("auto,cpu", "auto is one device by itself"),
        ("cpu,toaster", "use auto, cpu, cuda:N or mps"),
    ],
)
def test_a_device_that_is_not_here_is_named(wanted: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as refused:
        devices_of(wanted)
    assert "\n" not in str(refused.value)


def test_devices_are_named_in_one_way() -> None:
    assert devices_of("cpu") == ("cpu",)
    assert devices_of("cpu, cpu:0") == ("cpu", "cpu")
