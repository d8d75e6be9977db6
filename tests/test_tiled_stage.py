"""Torch's blocks in tiles: transformers' numbers, and the same bits however rows come together."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from potluck.errors import RemoteError
from potluck.node.compute import tiled_stage
from potluck.node.compute.adapter import read_adapter
from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.device_pages import DevicePool
from potluck.node.compute.head import Ends
from potluck.node.compute.spill import Budget
from potluck.node.compute.stage import Stage
from potluck.node.compute.tile_check import Agreed
from potluck.node.compute.tile_plan import Run
from potluck.node.compute.tiled_stage import NAME, TiledStage
from potluck.node.compute.tiles import Tiles
from potluck.node.trust.limits import kind_of

from .adapters import save_adapter
from .checkpoints import save_random
from .exact_stage import Same, step, through_pages
from .test_block import MODELS
from .test_native_stage import SHAPES

TOLERANCE = 1e-4
LONG = 530  # positions: three spans, many groups


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Whatever a test sets, the next starts with the old number of threads."""
    before = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def save(folder: Path, shape: str) -> Checkpoint:
    family, settings = SHAPES[shape]
    folder.mkdir(exist_ok=True, parents=True)
    sizes = {"max_position_embeddings": 1024, "num_hidden_layers": 2}
    save_random(folder, family, **(sizes | settings))
    return open_checkpoint(folder)


def load(checkpoint: Checkpoint, **settings: Any) -> TiledStage:
    blocks = settings.pop("blocks", (0, checkpoint.spec.blocks))
    stage = Stage.load(checkpoint, *blocks, **({"device": "cpu"} | settings))
    found = TiledStage.of(stage)
    assert isinstance(found, TiledStage), found
    return found


def pool_for(stage: TiledStage, tokens: int) -> DevicePool:
    pages = (tokens // 64 + 1) * (stage.stop - stage.start)
    return stage.pool(Budget(pages * stage.page_bytes))


def through(stage: TiledStage, hidden: Tensor, chunks: Sequence[int]) -> Tensor:
    """The whole of a session's rows, in chunks of these sizes over and over."""
    return through_pages(stage, pool_for(stage, len(hidden)), hidden, chunks)


def among_others(stage: TiledStage, hidden: Tensor, worn: Sequence[Any] = (None,)) -> Tensor:
    """One session's rows, each pass shared with those of 15 sessions of other lengths."""
    dice = random.Random(3)
    pool = pool_for(stage, 16 * 512)
    leases = [pool.open(stage.start, stage.stop, 400) for _ in range(16)]
    mine = 7
    for place, lease in enumerate(leases):
        lease.adapter = worn[(place - mine) % len(worn)]
    found = []
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


# every kind of window, norm, cap and mixture, and three of rope; test_block.py has all of them
@pytest.mark.parametrize(
    "name",
    ["llama2-biased-tied", "yarn-all-settings", "qwen3-biased-window",
     "gemma2-tight-caps", "gemma3", "phi3-beyond", "qwen3-moe-some-dense"],
)  # fmt: skip
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    family, settings = MODELS[name]
    model = save_random(tmp_path, family, **settings)
    checkpoint = open_checkpoint(tmp_path)
    ids = torch.randint(3, 159, (1, 84), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids).logits[0]
    ends = Ends.load(checkpoint)
    out = through(load(checkpoint), ends.embed(ids[0].tolist()), (1, 19, 50))
    found = torch.stack([ends.logits(row) for row in out])
    assert float((found - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize(
    ("shape", "format", "dtype"),
    [(shape, "none", "fp32") for shape in SHAPES]
    + [("llama", "int8", "fp32"), ("mixture", "nf4", "fp32")]
    + [("capped", "none", "bf16"), ("llama", "int8", "bf16")],
)
def test_a_row_has_the_same_bits_in_every_company(
    shape: str, format: str, dtype: str, tmp_path: Path
) -> None:
    """Chunks of 1, 7, 128 and all at once; alone and among 15 others."""
    stage = load(save(tmp_path, shape), quantization=format, dtype=dtype, threads=1)
    hidden = torch.randn(LONG, stage.spec.hidden)
    expected = through(stage, hidden, (LONG,))
    assert torch.isfinite(expected).all()
    for chunks in ((128,), (64, 1, 3, 190)):
        assert torch.equal(through(stage, hidden, chunks), expected)
    assert torch.equal(through(stage, hidden[:50], (7,)), expected[:50])
    assert torch.equal(through(stage, hidden[:9], (1,)), expected[:9])
    assert torch.equal(among_others(stage, hidden[:40]), expected[:40])


def test_two_threads_keep_company_out_too(tmp_path: Path) -> None:
    stage = load(save(tmp_path, "llama"), threads=2)
    hidden = torch.randn(300, stage.spec.hidden)
    expected = through(stage, hidden, (300,))
    assert torch.equal(through(stage, hidden, (1, 90, 7)), expected)
    assert torch.equal(among_others(stage, hidden[:60]), expected[:60])


@pytest.mark.parametrize("shape", ["llama", "odd", "capped", "mixture"])
def test_the_numbers_are_those_of_one_session_at_a_time(shape: str, tmp_path: Path) -> None:
    checkpoint = save(tmp_path, shape)
    plain = Stage.load(checkpoint, 0, checkpoint.spec.blocks, device="cpu")
    hidden = torch.randn(300, checkpoint.spec.hidden)
    expected = plain.forward(hidden, plain.open_cache(0, plain.stop, 300), 0)
    found = through(load(checkpoint), hidden, (300,))
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_rows_of_long_steps_may_have_bits_of_their_own(tmp_path: Path) -> None:
    """As on a device where a large tile sums up otherwise: then who shares a pass, and how a step
    is cut, still change nothing."""
    stage = load(save(tmp_path, "llama"), threads=1)
    stage.tiles = Agreed(Tiles((4,)), Tiles((64,)))
    assert not stage.tiles.whole and stage.numerics.endswith(f" {NAME}s")
    hidden = torch.randn(120, stage.spec.hidden)

    def run(cuts: Sequence[int], others: int) -> Tensor:
        """90 rows in a long step, the others in short ones, cut as the schedule might."""
        pool = pool_for(stage, 120 * (others + 1))
        leases = [pool.open(0, stage.stop, 120) for _ in range(others + 1)]
        found, at = [], 0
        for cut in cuts:
            runs = []
            for lease in leases:
                lease.reserve(at, at + cut)
                lease.length = at + cut
                runs.append(Run(lease, at, cut, long=at < 90))
            strangers = torch.randn(cut * others, stage.spec.hidden)
            out = stage.forward_runs(torch.cat([strangers, hidden[at : at + cut]]), runs)
            found.append(out[len(strangers) :])
            at += cut
        return torch.cat(found)

    expected = run((90, 30), 0)
    for cuts, others in (((90, 30), 3), ((1, 60, 29, 7, 1, 22), 0), ((45, 45, 10, 20), 2)):
        assert torch.equal(run(cuts, others), expected)


@pytest.mark.parametrize("shape", ["llama", "odd", "mixture"])
def test_adapters_share_a_pass_and_each_session_has_its_bits(shape: str, tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "model", shape)
    spec = checkpoint.spec
    modules = ("q_proj", "v_proj", "o_proj") if shape == "mixture" else ()
    save_adapter(tmp_path / "one", spec, rank=3, modules=modules)
    save_adapter(tmp_path / "other", spec, modules=("q_proj", "o_proj"), rank=17, seed=2)
    stage = load(checkpoint, threads=1)
    worn = [
        stage.load_adapter(read_adapter(tmp_path / name, spec, 0, spec.blocks))
        for name in ("one", "other")
    ]
    hidden = torch.randn(70, spec.hidden)
    plain = Stage.load(checkpoint, 0, spec.blocks, device="cpu", threads=1)
    for mine, others in ((worn[0], (worn[1], None)), (None, (worn[0], worn[1], worn[0]))):
        lease = pool_for(stage, 70).open(0, stage.stop, 70)
        lease.adapter = mine
        alone = step(stage, hidden, (lease, 70))
        assert torch.equal(among_others(stage, hidden, (mine, *others)), alone)
        cache = plain.open_cache(0, spec.blocks, 70)
        cache.adapter = mine
        expected = plain.forward(hidden, cache, 0)
        assert float((alone - expected).norm() / expected.norm()) < 1e-5


def test_an_adapter_whose_products_know_their_company_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save(tmp_path / "model", "llama")
    save_adapter(tmp_path / "one", checkpoint.spec)
    stage = load(checkpoint)
    monkeypatch.setattr(tiled_stage, "agreed", lambda *_: "a row has other bits")
    with pytest.raises(RemoteError, match="cannot be served beside others: a row has"):
        stage.load_adapter(
            read_adapter(tmp_path / "one", checkpoint.spec, 0, checkpoint.spec.blocks)
        )


@pytest.fixture
def small(tmp_path: Path) -> Checkpoint:
    return save(tmp_path, "llama")


def test_what_lay_in_a_page_before_does_not_matter(small: Checkpoint) -> None:
    """Not even numbers that are none: a stranger's rows may hold them."""
    stage = load(small)
    hidden = torch.randn(100, stage.spec.hidden)
    pool = pool_for(stage, 200)
    pool.rows[: pool.pages] = torch.nan
    lease = pool.open(0, stage.stop, 100)
    out = torch.cat([step(stage, rows, (lease, 25)) for rows in hidden.split(25)])
    assert torch.equal(out, through(stage, hidden, (100,)))
    assert not pool.rows[pool.nobodys].any()


def test_a_neighbour_whose_numbers_are_none_is_not_noticed(small: Checkpoint) -> None:
    stage = load(small)
    hidden = torch.randn(20, stage.spec.hidden)
    pool = pool_for(stage, 300)
    mine, other = (pool.open(0, stage.stop, 100) for _ in range(2))
    lost = torch.full_like(hidden, torch.inf)
    out = step(stage, torch.cat([lost, hidden]), (other, 20), (mine, 20))
    assert torch.equal(out[20:], through(stage, hidden, (20,)))


def test_what_was_taken_back_leaves_no_trace(small: Checkpoint) -> None:
    Same(load(small), pool_for).after_taking_back()


def test_a_fork_goes_on_as_its_source(small: Checkpoint) -> None:
    Same(load(small), pool_for).beside_a_fork()


def test_sessions_over_some_of_the_blocks(small: Checkpoint) -> None:
    Same(load(small), pool_for).in_two_halves(load(small, blocks=(1, 2)))


def test_a_pass_of_very_many_rows_goes_in_parts(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = load(small)
    hidden = torch.randn(100, stage.spec.hidden)
    expected = through(stage, hidden, (100,))
    monkeypatch.setattr(tiled_stage, "_PASS_ROWS", 33)
    monkeypatch.setattr("potluck.node.compute.paged_attend.ITEMS_MAX", 2)
    kept = hidden.clone()
    assert torch.equal(through(stage, hidden, (100,)), expected)
    assert torch.equal(hidden, kept)


def test_sessions_that_turn_by_other_tables_share_a_pass(tmp_path: Path) -> None:
    """LongRoPE: a session of more positions than those of training turns by the long factors."""
    family, settings = MODELS["phi3-within"]
    save_random(tmp_path, family, **settings)
    stage = load(open_checkpoint(tmp_path))
    hidden = torch.randn(9, stage.spec.hidden)
    alone = []
    for room in (90, 91):
        lease = pool_for(stage, 100).open(0, stage.stop, room)
        alone.append(step(stage, hidden, (lease, 9)))
    assert not torch.equal(*alone)
    pool = pool_for(stage, 300)
    leases = [pool.open(0, stage.stop, room) for room in (90, 91)]
    out = step(stage, torch.cat([hidden, hidden]), *((lease, 9) for lease in leases))
    assert torch.equal(out, torch.cat(alone))


def test_the_class_of_its_numbers_is_its_own(small: Checkpoint) -> None:
    stage = load(small, threads=1)
    plain = Stage.load(small, 0, 2, device="cpu", threads=1)
    assert stage.numerics == f"{plain.numerics} {NAME}" and len(stage.numerics) <= 128
    on_a_card = f"bf16 torch 2.13.0 NVIDIA H200 {NAME}"
    assert kind_of(on_a_card) == f"none torch bf16 NVIDIA H200 {NAME}"
    assert "in tiles of " in stage.told


def test_a_stage_whose_rows_know_their_company_is_not_made(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention that tells two sessions from one: found on the loaded blocks."""
    honest = tiled_stage.attend_pages

    def shared(spec: Any, queries: Tensor, *rest: Any) -> Tensor:
        return honest(spec, queries, *rest) * (1 + 1e-6 * len(queries))

    stage = Stage.load(small, 0, 2, device="cpu")
    monkeypatch.setattr(tiled_stage, "attend_pages", shared)
    assert (
        TiledStage.of(stage) == "a block gives a row other bits when it is cut or shared otherwise"
    )
    monkeypatch.setattr(tiled_stage, "attend_pages", lambda *rest: honest(*rest) * torch.nan)
    assert TiledStage.of(stage) == "its numbers are not finite"

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(tiled_stage, "attend_pages", broken)
    assert TiledStage.of(stage) == "a block fails (RuntimeError)"


@pytest.mark.gpu
@pytest.mark.parametrize("format", ["none", "int8", "nf4"])
def test_on_a_gpu_a_row_keeps_its_bits_or_is_served_alone(format: str, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    checkpoint = save(tmp_path, "llama")
    plain = Stage.load(checkpoint, 0, 2, device="cuda", quantization=format)
    stage = TiledStage.of(plain)
    if isinstance(stage, str):
        pytest.skip(f"this device serves one session at a time: {stage}")
    hidden = torch.randn(LONG, stage.spec.hidden)
    expected = through(stage, hidden, (LONG,))
    near = plain.forward(hidden, plain.open_cache(0, 2, LONG), 0).cpu()
    assert float((expected.float() - near.float()).norm() / near.float().norm()) < 0.02
    for chunks in ((128,), (64, 17, 30, 100)):
        assert torch.equal(through(stage, hidden, chunks), expected)
    if stage.tiles.whole:
        assert torch.equal(through(stage, hidden[:100], (1, 7)), expected[:100])
        assert torch.equal(among_others(stage, hidden[:90]), expected[:90])
