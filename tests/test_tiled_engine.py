"""Torch's engine for many sessions at once: each has the bytes it has alone, resting or not."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import outcome
import pytest
import torch
from torch import Tensor

from potluck.errors import RemoteError, UserError
from potluck.node.compute import choice
from potluck.node.compute.batch import Lane, Order
from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.choice import LOSS_MAX, StageWish, open_stage
from potluck.node.compute.engine import StageEngine, Work
from potluck.node.compute.joined import _PartWork
from potluck.node.compute.pages import PAGE_TOKENS, whole_pages
from potluck.node.compute.shapes import write_random
from potluck.node.compute.spill import Budget
from potluck.node.compute.stage import Stage
from potluck.node.compute.tensor import pack
from potluck.node.compute.tile_check import Agreed
from potluck.node.compute.tiled_engine import TiledEngine
from potluck.node.compute.tiled_stage import TiledStage
from potluck.node.compute.tiles import Tiles
from potluck.swarm.blocks import BlockRange
from potluck.swarm.rates import PassTimes
from potluck.swarm.wire import Step

BLOCKS = BlockRange(0, 2)
TOKENS = 90
WISH = StageWish(device="cpu", engine="tiled", cache_bytes=1 << 22)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder: Path = tmp_path_factory.mktemp("tiled")
    write_random(folder / "tiny", "tiny")
    return open_checkpoint(str(folder / "tiny"), offline=True, home=folder)


@pytest.fixture(scope="module")
def stage(checkpoint: Checkpoint) -> TiledStage:
    found = TiledStage.of(Stage.load(checkpoint, 0, 2, device="cpu", threads=1))
    assert isinstance(found, TiledStage), found
    return found


def engine_of(stage: TiledStage, sessions: int, host_sessions: int = 0) -> TiledEngine:
    each = 2 * whole_pages(TOKENS) // PAGE_TOKENS * stage.page_bytes
    return TiledEngine(stage, stage.pool(Budget(sessions * each, host_sessions * each)))


def rows_of(seed: int) -> Tensor:
    return torch.randn((TOKENS, 256), generator=torch.Generator().manual_seed(seed))


def begun(engine: Any, cache: Any, rows: Tensor, at: int, *sizes: int) -> Work:
    count = sum(sizes)
    payload = pack(rows[at : at + count], "f32")
    found: Work = engine.begin(cache, payload, Step(at, sizes, count), "f32")
    return found


def alone(stage: TiledStage, seed: int) -> bytes:
    """What a session's rows give by themselves, all at once."""
    engine = engine_of(stage, 1)
    work = begun(engine, engine.open_cache(BLOCKS, TOKENS), rows_of(seed), 0, TOKENS)
    engine.run([(work, TOKENS)])
    return bytes(work.answer())


@dataclass
class Talk:
    """A session on its way, and what it was answered."""

    seed: int
    cache: Any
    said: list[bytes] = field(default_factory=list)
    at: int = 0


@pytest.mark.parametrize("host_sessions", [0, 9])
def test_sessions_that_come_and_go_have_the_bytes_they_have_alone(
    stage: TiledStage, host_sessions: int
) -> None:
    """Prompts and tokens together, steps in slices, drafts taken back; where the host's memory
    serves too, three times as many as the device holds, in as many passes as they need."""
    engine = engine_of(stage, 4, host_sessions)
    dice, live, seeds, done = random.Random(5), [], iter(range(1000)), 0
    room = 4 if not host_sessions else 11
    expected = {}
    while done < 12:
        while len(live) < room and dice.random() < 0.7:
            live.append(Talk(next(seeds), engine.open_cache(BLOCKS, TOKENS)))
        works = []
        for one in dice.sample(live, dice.randint(1, len(live))) if live else []:
            rows = rows_of(one.seed)
            if one.at and dice.random() < 0.2:  # a draft that is taken back
                draft = begun(engine, one.cache, rows.flip(0), one.at - 1, 1)
                engine.run([(draft, 1)])
                one.at -= 1
                one.said[-1] = one.said[-1][: -256 * 4]
            count = min(TOKENS - one.at, dice.choice((1, 1, 7, 40, 70)))
            works.append((one, begun(engine, one.cache, rows, one.at, count), count))
        while works:
            slices = [(work, dice.randint(1, count - work.done)) for _, work, count in works]
            engine.run(slices)
            for one, work, count in works:
                if work.complete:
                    one.said.append(bytes(work.answer()))
                    one.at += count
            works = [one for one in works if not one[1].complete]
        for one in [one for one in live if one.at == TOKENS]:
            if one.seed not in expected:
                expected[one.seed] = alone(stage, one.seed)
            assert b"".join(one.said) == expected[one.seed]
            engine.close_cache(one.cache)
            live.remove(one)
            done += 1
    for one in live:
        engine.close_cache(one.cache)
    assert engine.pool.used_pages == 0
    assert engine.pool.free_pages == engine.pool.promised_max
    if host_sessions:
        assert engine.residents is not None and engine.pool.host is not None
        assert engine.residents.device_bytes == engine.residents.host_bytes == 0
        assert engine.pool.host.used_pages == 0


def test_a_replay_in_any_slices_answers_as_the_live_run(stage: TiledStage) -> None:
    engine, rows = engine_of(stage, 2), rows_of(1)
    live, replay = (engine.open_cache(BLOCKS, TOKENS) for _ in range(2))
    said = []
    for at, count in ((0, 60), (60, 1), (61, 1), (62, 5)):
        work = begun(engine, live, rows, at, count)
        engine.run([(work, count)])
        said.append(bytes(work.answer()))
    again = begun(engine, replay, rows, 0, 60, 1, 1, 5)
    for count in (13, 47, 3, 4):
        engine.run([(again, count)])
    assert bytes(again.answer()) == b"".join(said)


def test_a_slice_is_cut_where_the_pieces_of_its_step_end(stage: TiledStage) -> None:
    rows = torch.zeros((70, 256))
    work = Work(None, rows, Step(5, (40, 1, 29), 70), "f32")
    assert list(work.sections(70)) == [(40, 40), (1, 1), (29, 29)]
    work.done = 30
    assert list(work.sections(10)) == [(10, 40)]
    assert list(work.sections(20)) == [(10, 40), (1, 1), (9, 29)]
    part = _PartWork(work, None, rows[:20], Step(35, (20,), 20))
    assert list(part.sections(20)) == list(work.sections(20))


def test_how_long_a_step_was_is_handed_on(
    stage: TiledStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where large tiles have bits of their own, a replay is still what the live run was."""
    monkeypatch.setattr(stage, "tiles", Agreed(Tiles((4,)), Tiles((64,))))
    test_a_replay_in_any_slices_answers_as_the_live_run(stage)


def test_what_no_honest_client_sends_is_refused(stage: TiledStage) -> None:
    for host_sessions in (0, 9):
        engine = engine_of(stage, 3, host_sessions)
        cache = engine.open_cache(BLOCKS, 10)
        for at, count in ((1, 1), (0, 11)):
            with pytest.raises(RemoteError):
                begun(engine, cache, rows_of(1), at, count)
        with pytest.raises(RemoteError, match="asked"):
            engine.open_cache(BlockRange(0, 3), 10)
        engine.close_cache(cache)


@dataclass
class _Owner:
    seed: int

    def claim(self) -> bool:
        return True

    def release(self) -> None:
        pass

    def given_up(self) -> bool:
        return False


def test_a_lane_runs_many_sessions_in_one_pass(stage: TiledStage) -> None:
    engine = engine_of(stage, 4)
    lane = Lane(engine, PassTimes(2, 3000.0, 30_000.0))
    expected = {}
    for seed in range(4):
        cache = engine.open_cache(BLOCKS, TOKENS)
        payload = pack(rows_of(seed)[:1], "f32")
        step = Step(0, (1,), 1)
        order = Order(cache, f"p{seed}", payload, step, "f32", 1e18, _Owner(seed))
        expected[seed] = alone(stage, seed)[: 256 * 4]
        assert not lane.add(order)
    done = lane.turn()
    assert len(done) == 4 and lane.served.passes == 1 and lane.served.rows == 4
    for order, result in done:
        assert isinstance(result, outcome.Value)
        assert bytes(result.unwrap()[0]) == expected[order.owner.seed]


def test_an_owner_may_ask_for_tiles(checkpoint: Checkpoint) -> None:
    opened = open_stage(checkpoint, BLOCKS, WISH)
    assert isinstance(opened.engine, TiledEngine) and opened.engine.exact
    assert opened.pool is not None and opened.page_tokens == PAGE_TOKENS
    assert opened.cache_tokens == opened.pool.pages * PAGE_TOKENS
    assert opened.cache_tokens * opened.token_bytes <= WISH.cache_bytes
    assert "asked for tiled" in opened.why and "in tiles of" in opened.why
    assert min(opened.rates) > 0
    plain = open_stage(checkpoint, BLOCKS, StageWish(device="cpu", engine="torch"))
    assert isinstance(plain.engine, StageEngine)
    with pytest.raises(UserError, match="hold not one page"):
        open_stage(checkpoint, BLOCKS, StageWish(device="cpu", engine="tiled", cache_bytes=100))


def test_where_rows_know_their_company_tiles_are_refused_by_name(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TiledStage, "of", lambda stage: "a row has other bits")
    with pytest.raises(UserError, match="cannot serve here: a row has other bits; use --engine"):
        open_stage(checkpoint, BLOCKS, WISH)


def test_a_gpu_serves_many_at_once_where_one_alone_loses_little(
    stage: TiledStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu: Any = SimpleNamespace(device=torch.device("cuda", 0))
    monkeypatch.setattr(TiledStage, "of", lambda _: stage)
    for share, served in ((1 - LOSS_MAX * 0.9, True), (1 - LOSS_MAX * 1.1, False)):
        monkeypatch.setattr(stage, "measure", lambda share=share: (100.0 * share, 1000.0))
        found = choice._tiled(gpu, StageWish(), (100.0, 900.0))
        assert (found is stage) == served
        if not served:
            assert "one alone would lose 11%" in str(found)
        assert choice._tiled(gpu, StageWish(engine="tiled"), (100.0, 900.0)) is stage
        assert choice._tiled(gpu, StageWish(engine="torch"), (100.0, 900.0)) == ""
    monkeypatch.setattr(TiledStage, "of", lambda _: "a row has other bits")
    assert "one session at a time: a row" in str(choice._tiled(gpu, StageWish(), (1.0, 1.0)))
    cpu: Any = SimpleNamespace(device=torch.device("cpu"))
    assert choice._tiled(cpu, StageWish(), (1.0, 1.0)) == ""
