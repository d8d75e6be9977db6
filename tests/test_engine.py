"""A stage as the server sees it: the same numbers, as bytes."""

from pathlib import Path

import pytest
import torch

from potluck.errors import RemoteError
from potluck.node.compute.cache import Cache
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.engine import StageEngine
from potluck.node.compute.stage import Stage
from potluck.node.compute.tensor import pack, unpack
from potluck.swarm.blocks import BlockRange
from potluck.swarm.wire import Step

from .checkpoints import save_random


@pytest.fixture
def engine(tmp_path: Path) -> StageEngine:
    save_random(tmp_path, "llama")
    return StageEngine(Stage.load(open_checkpoint(tmp_path), 1, 3, device="cpu"))


def run(engine: StageEngine, cache: Cache, payload: memoryview, step: Step, dtype: str) -> bytes:
    """A step from begin to answer, in one slice."""
    work = engine.begin(cache, payload, step, dtype)
    engine.run([(work, sum(step.sizes))])
    assert work.complete and work.spent_s > 0
    return bytes(work.answer())


def test_a_live_run_and_its_replay_answer_with_the_same_bytes(engine: StageEngine) -> None:
    hidden = torch.randn(9, 48)
    live, replay = (engine.open_cache(BlockRange(1, 3), 9) for _ in range(2))
    said = [
        run(engine, live, pack(hidden[at:stop]), Step(at, (stop - at,), stop - at), "f32")
        for at, stop in ((0, 6), (6, 7), (7, 9))
    ]
    again = run(engine, replay, pack(hidden), Step(0, (6, 1, 2), 3), "f32")
    assert again == said[1] + said[2]


def test_a_replay_may_be_interrupted_between_its_pieces(engine: StageEngine) -> None:
    hidden = torch.randn(12, 48)
    step = Step(0, (6, 1, 1, 2, 2), 5)
    whole = run(engine, engine.open_cache(BlockRange(1, 3), 12), pack(hidden), step, "f32")
    work = engine.begin(engine.open_cache(BlockRange(1, 3), 12), pack(hidden), step, "f32")
    for rows, pieces in ((6, (6,)), (2, (1, 1)), (4, (2, 2))):
        assert work.pieces(rows) == pieces
        engine.run([(work, rows)])
    assert bytes(work.answer()) == whole


def test_no_row_is_sent_that_was_not_asked_for(engine: StageEngine) -> None:
    cache = engine.open_cache(BlockRange(2, 3), 20)
    payload = pack(torch.randn(5, 48))
    assert run(engine, cache, payload, Step(0, (5,), 0), "f32") == b""
    assert run(engine, cache, payload, Step(5, (3, 2), 0), "f32") == b""
    assert len(run(engine, cache, payload, Step(10, (5,), 2), "f32")) == 2 * 48 * 4
    engine.truncate(cache, 12)
    assert cache.length == 12


def test_a_client_may_speak_in_half_precision(engine: StageEngine) -> None:
    hidden = torch.randn(4, 48).bfloat16()
    cache, other = (engine.open_cache(BlockRange(1, 3), 4) for _ in range(2))
    half = bytearray(run(engine, cache, pack(hidden), Step(0, (4,), 4), "bf16"))
    full = bytearray(run(engine, other, pack(hidden.float()), Step(0, (4,), 4), "f32"))
    assert torch.equal(unpack(half, 4, 48, "bf16"), unpack(full, 4, 48, "f32").bfloat16())


def test_what_no_honest_client_sends_is_refused(engine: StageEngine) -> None:
    cache = engine.open_cache(BlockRange(1, 3), 4)
    bad = torch.full((2, 48), float("nan"))
    for payload, step, dtype in (
        (pack(torch.randn(2, 48)), Step(0, (3,), 1), "f32"),
        (pack(torch.randn(2, 48)), Step(1, (2,), 1), "f32"),
        (pack(torch.randn(2, 48)), Step(0, (2,), 1), "f16"),
        (pack(torch.randn(5, 48)), Step(0, (5,), 1), "f32"),
        (pack(bad), Step(0, (2,), 1), "f32"),
        (pack(torch.randn(2, 48)), Step(0, (2,), 1), "i64"),
    ):
        with pytest.raises(RemoteError):
            engine.begin(cache, payload, step, dtype)
    with pytest.raises(RemoteError):
        engine.open_cache(BlockRange(0, 2), 4)
    with pytest.raises(RemoteError):
        engine.open_cache(BlockRange(1, 3), engine.context + 1)
    assert cache.length == 0
