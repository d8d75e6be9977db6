"""The native stage: transformers' numbers, and the same bits however rows come together."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from potluck.errors import UserError
from potluck.node.compute import rating
from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.head import Ends
from potluck.node.compute.layout import BlockWeights, layout_of
from potluck.node.compute.native import library
from potluck.node.compute.native.blocks import PackedBlock
from potluck.node.compute.native.linear import Pool as Threads
from potluck.node.compute.native_stage import NativeStage
from potluck.node.compute.pages import Pool
from potluck.node.compute.quant.formats import choose
from potluck.node.compute.weight import Weight

from .checkpoints import save_random
from .exact_stage import Same, step, through_pages
from .test_block import MODELS, NEW_TOKENS, PROMPT, ask

pytestmark = pytest.mark.skipif(not library.is_available(), reason=str(library.why_not()))

TOLERANCE = 1e-4
LONG = 600  # positions: ten pages, three passes
# Every part of a block that could depend on its neighbours: windows shorter and longer than a page,
# odd widths, norms of heads, soft caps, partial rotary embedding, experts.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}),
    "odd": (
        "llama",
        {"hidden_size": 50, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 14},
    ),
    "short-window": ("mistral", {"sliding_window": 11}),
    "long-window": ("qwen3", {"use_sliding_window": True, "sliding_window": 150, "head_dim": 16}),
    "capped": ("gemma2", {"head_dim": 24, "sliding_window": 70, "num_hidden_layers": 2}),
    "partial": ("phi3", {"partial_rotary_factor": 0.5, "num_key_value_heads": 1}),
    "mixture": ("qwen3_moe", {"num_experts": 6, "num_experts_per_tok": 3, "head_dim": 16}),
}


@pytest.fixture
def isa() -> Iterator[None]:
    """Whatever a test computes with, the next begins with the best."""
    before = library.isa()
    yield
    library.use_isa(before)


@pytest.fixture
def small(tmp_path: Path) -> Checkpoint:
    return save(tmp_path, "llama")


def save(folder: Path, shape: str) -> Checkpoint:
    family, settings = SHAPES[shape]
    folder.mkdir(exist_ok=True)
    save_random(folder, family, **({"max_position_embeddings": 1024} | settings))
    return open_checkpoint(folder)


def load(checkpoint: Checkpoint, **settings: Any) -> NativeStage:
    settings = {"quantization": "none", "threads": 2} | settings
    return NativeStage.load(checkpoint, 0, checkpoint.spec.blocks, **settings)


def pool_for(stage: NativeStage, tokens: int) -> Pool:
    pages = (tokens // 64 + 1) * (stage.stop - stage.start)
    size = -(-stage.page_bytes // 4096) * 4096
    return Pool(budget_bytes=pages * size, page_bytes=stage.page_bytes)


def through(stage: NativeStage, hidden: Tensor, chunks: Sequence[int]) -> Tensor:
    """The whole of a session's rows, in chunks of these sizes over and over."""
    return through_pages(stage, pool_for(stage, len(hidden)), hidden, chunks)


WHOLE = [name for name in MODELS if not name.startswith("dynamic")]


def worst_logit(name: str, folder: Path) -> float:
    """The largest difference of our logits from transformers', over a prompt in uneven chunks."""
    family, settings = MODELS[name]
    model = save_random(folder, family, **settings)
    checkpoint = open_checkpoint(folder)
    ids = torch.randint(3, 159, (1, 84), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids).logits[0]
    ends = Ends.load(checkpoint)
    out = through(load(checkpoint), ends.embed(ids[0].tolist()), (1, 19, 50))
    found = torch.stack([ends.logits(row) for row in out])
    return float((found - expected).abs().max())


@pytest.mark.parametrize("name", WHOLE)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    assert worst_logit(name, tmp_path) <= TOLERANCE


@pytest.mark.parametrize("name", ["dynamic", "dynamic-tied"])
def test_a_rope_that_stretches_as_a_session_grows_equals_transformers_decoding(
    name: str, tmp_path: Path
) -> None:
    """transformers turns a prompt as a whole by its last position; token by token as we do."""
    family, settings = MODELS[name]
    oracle = ask(save_random(tmp_path, family, **settings))
    checkpoint = open_checkpoint(tmp_path)
    ends = Ends.load(checkpoint)
    out = through(load(checkpoint), ends.embed([*PROMPT, *oracle.tokens[:-1]]), (1,))
    for row, expected in zip(out[-NEW_TOKENS:], oracle.logits, strict=True):
        torch.testing.assert_close(ends.logits(row), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", ["none", "int8", "nf4"])
def test_a_row_has_the_same_bits_in_every_company(shape: str, format: str, tmp_path: Path) -> None:
    """Chunks of 1, 7, 128, 512 and all at once; 1 and 2 threads; alone and among 15 others."""
    checkpoint = save(tmp_path, shape)
    stage = load(checkpoint, quantization=format)
    torch.manual_seed(0)
    hidden = torch.randn(LONG, stage.spec.hidden)
    expected = through(stage, hidden, (LONG,))
    assert torch.isfinite(expected).all()
    for chunks in ((1,), (7,), (128,), (512,), (64, 1, 3, 100)):
        assert torch.equal(through(stage, hidden, chunks), expected)
    alone = load(checkpoint, quantization=format, threads=1)
    assert torch.equal(through(alone, hidden, (97,)), expected)
    assert torch.equal(among_others(stage, hidden[:200]), expected[:200])


def test_heads_that_share_keys_part_over_many_threads(tmp_path: Path) -> None:
    """One key head for nine heads: parts of four, four and one."""
    heads = {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 1, "head_dim": 64}
    save_random(tmp_path, "llama", max_position_embeddings=1024, num_hidden_layers=1, **heads)
    checkpoint = open_checkpoint(tmp_path)
    hidden = torch.randn(LONG, 72)
    chunks = (LONG - 3, 1, 1, 1)
    expected = through(load(checkpoint, threads=1), hidden, chunks)
    for threads in (2, 3, 5):
        found = through(load(checkpoint, threads=threads), hidden, chunks)
        assert torch.equal(found, expected)


def among_others(stage: NativeStage, hidden: Tensor) -> Tensor:
    """One session's rows, each pass shared with those of 15 sessions of other lengths."""
    dice = random.Random(3)
    pool = pool_for(stage, 16 * 512)
    leases = [pool.open(stage.start, stage.stop, 400) for _ in range(16)]
    found = []
    mine = 7
    while leases[mine].length < len(hidden):
        counts = [dice.choice((0, 1, 1, 1, 5)) for _ in leases]
        left = len(hidden) - leases[mine].length
        counts[mine] = min(dice.choice((1, 1, 2, 30)), left)
        parts = [torch.randn(count, stage.spec.hidden) for count in counts]
        parts[mine] = hidden[leases[mine].length :][: counts[mine]]
        shared = [(lease, n) for lease, n in zip(leases, counts, strict=True) if n]
        out = step(stage, torch.cat(parts), *shared)
        found.append(out.split(counts)[mine])
    return torch.cat(found)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("byte_pages", [False, True])
@pytest.mark.usefixtures("isa")
def test_every_instruction_set_gives_the_same_bits(
    shape: str, byte_pages: bool, tmp_path: Path
) -> None:
    stage = load(save(tmp_path, shape), quantization="int8", byte_pages=byte_pages)
    hidden = torch.randn(90, stage.spec.hidden)
    found = {}
    for name in library.isas():
        library.use_isa(name)
        found[name] = through(stage, hidden, (70, 1))
    assert "scalar" in found
    for out in found.values():
        assert torch.equal(out, found["scalar"])


@pytest.mark.parametrize("shape", ["llama", "mixture", "capped"])
@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_a_quantized_block_is_the_block_of_the_numbers_it_stands_for(
    shape: str, format: str, tmp_path: Path
) -> None:
    """The update of each block, against the same kernels on dequantized weights."""
    checkpoint = save(tmp_path, shape)
    spec = checkpoint.spec
    chosen = choose(format)
    coded = load(checkpoint, quantization=format)
    layout = layout_of(spec, 0)
    tensors = checkpoint.tensors(layout.shapes)
    numbers = {
        name: Weight.plain(one if name in layout.exact else chosen.quantize(one).dequantize())
        for name, one in tensors.items()
        if one.ndim == 2
    }
    threads = Threads(1)
    block = PackedBlock(spec, 0, BlockWeights.of(layout, numbers, tensors), threads)
    plain = NativeStage(spec, 0, [block], threads, format="none")
    first = NativeStage.load(checkpoint, 0, 1, quantization=format, threads=1)
    hidden = torch.randn(100, spec.hidden)
    expected = through(plain, hidden, (100,)) - hidden
    found = through(first, hidden, (100,)) - hidden
    assert float((found - expected).norm() / expected.norm()) < 1e-3
    assert not torch.equal(found, expected)
    assert coded.stop == spec.blocks


@pytest.mark.parametrize("shape", ["llama", "odd", "short-window"])
def test_pages_of_bytes_are_near_and_as_exact(shape: str, tmp_path: Path) -> None:
    """A value is off by at most a 254th of the largest of its head: so by about 1 in 200."""
    checkpoint = save(tmp_path, shape)
    plain, small = load(checkpoint), load(checkpoint, byte_pages=True)
    assert small.page_bytes * 3 < plain.page_bytes
    assert small.numerics != plain.numerics
    hidden = torch.randn(200, plain.spec.hidden)
    expected, found = through(plain, hidden, (200,)), through(small, hidden, (200,))
    assert 0 < float((found - expected).norm() / (expected - hidden).norm()) < 0.02
    for chunks in ((1,), (7,), (150,)):
        assert torch.equal(through(small, hidden, chunks), found)


def test_what_was_taken_back_leaves_no_trace(small: Checkpoint) -> None:
    Same(load(small), pool_for).after_taking_back()


@pytest.mark.parametrize("byte_pages", [False, True])
def test_what_lay_in_a_page_before_does_not_matter(small: Checkpoint, byte_pages: bool) -> None:
    """Not even numbers that are none: a stranger's rows may hold them."""
    stage = load(small, byte_pages=byte_pages)
    hidden = torch.randn(100, stage.spec.hidden)
    pool = pool_for(stage, 200)
    for number in range(pool.pages):
        pool.page(number)[:] = b"\xff" * pool.page_bytes
    lease = pool.open(0, stage.stop, 100)
    out = torch.cat([step(stage, rows, (lease, 25)) for rows in hidden.split(25)])
    assert torch.equal(out, through(stage, hidden, (100,)))


def test_sessions_over_some_of_the_blocks(small: Checkpoint) -> None:
    Same(load(small), pool_for).in_two_halves(
        NativeStage.load(small, 1, 2, quantization="none", threads=1)
    )


def test_a_fork_goes_on_as_its_source(small: Checkpoint) -> None:
    Same(load(small), pool_for).beside_a_fork()


def test_the_input_is_left_as_it_was(small: Checkpoint) -> None:
    stage = load(small)
    hidden = torch.randn(4, stage.spec.hidden)
    kept = hidden.clone()
    through(stage, hidden, (4,))
    assert torch.equal(hidden, kept)


def test_a_format_is_kept_on_disk_and_found_again(small: Checkpoint, tmp_path: Path) -> None:
    hidden = torch.randn(30, small.spec.hidden)
    kept = tmp_path / "kept"
    expected = through(load(small, quantization="nf4"), hidden, (30,))
    for _ in range(2):
        stage = load(small, quantization="nf4", cache_dir=kept)
        assert torch.equal(through(stage, hidden, (30,)), expected)
        assert any(kept.rglob("*.*"))


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (-1, 2), (2, 2), (2, 1)])
def test_a_range_outside_the_model_is_refused(start: int, stop: int, small: Checkpoint) -> None:
    with pytest.raises(UserError, match="outside 0:2"):
        NativeStage.load(small, start, stop)


def test_numerics_name_the_format_and_nothing_of_the_machine(small: Checkpoint) -> None:
    assert load(small, quantization="nf4", threads=1).numerics == "nf4 c1"
    assert load(small).numerics == "none c1"


def test_a_stage_measures_itself(small: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that moves 10 ms at each look: a token through 2 blocks, 128 through one."""
    looks = iter(range(1 << 20))
    monkeypatch.setattr(rating.time, "perf_counter", lambda: next(looks) * 0.01)
    decode, prefill = load(small).measure()
    assert decode == pytest.approx(2 / 0.01)
    assert prefill == pytest.approx(128 / 0.01)
