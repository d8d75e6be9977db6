"""A node fetches, beside its work, what others count on that it has."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from potluck.errors import UserError
from potluck.node.ahead import BlockFiles, has_room, keep_ahead
from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.library import DEMO_FOLDER
from potluck.swarm.ahead import AHEAD_EVERY_S, AHEAD_SPANS, at_hand

TOTAL = 32


class _Model:
    def __init__(self, broken: int = -1, trouble: Exception | None = None) -> None:
        self.total, self.folder, self.broken = TOTAL, Path(), broken
        self.trouble = trouble or UserError("the hub cannot be reached")
        self.fetched: list[tuple[float, int]] = []

    def fetch(self, block: int) -> None:
        if block == self.broken:
            raise self.trouble
        self.fetched.append((trio.from_thread.run_sync(trio.current_time), block))


@pytest.mark.parametrize("length", [1, 2, 5])
async def test_whatever_others_count_on_is_there(autojump_clock: MockClock, length: int) -> None:
    model, began_s = _Model(), trio.current_time()
    await keep_ahead(model, "me", length, lambda folder: True)
    for spans in range(AHEAD_SPANS + 2):
        age_s = spans * AHEAD_EVERY_S
        there = {block for at_s, block in model.fetched if at_s < began_s + age_s}
        assert there >= set(at_hand("me", TOTAL, length, age_s).nonzero()[0].tolist())
    assert len(model.fetched) == min(TOTAL, AHEAD_SPANS * length)


@pytest.mark.parametrize("trouble", [UserError("the hub cannot be reached"), OSError("no disk")])
async def test_a_block_that_cannot_be_had_keeps_none_of_the_others(
    autojump_clock: MockClock, trouble: Exception
) -> None:
    model = _Model()
    await keep_ahead(model, "me", 1, lambda folder: True)
    lame = _Model(model.fetched[2][1], trouble)
    await keep_ahead(lame, "me", 1, lambda folder: True)
    assert [block for _, block in lame.fetched] == [
        block for _, block in model.fetched if block != lame.broken
    ]


async def test_a_disk_is_never_filled(autojump_clock: MockClock) -> None:
    model = _Model()
    await keep_ahead(model, "me", 1, lambda folder: len(model.fetched) < 3)
    assert len(model.fetched) == 3


def test_a_folder_that_is_gone_has_no_room(tmp_path: Path) -> None:
    assert not has_room(tmp_path / "gone")


def test_all_tensors_of_a_block_are_fetched_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(DEMO_FOLDER, home=tmp_path)
    asked: list[str] = []
    files = BlockFiles(checkpoint)
    monkeypatch.setattr(Checkpoint, "fetch", lambda self, names: asked.extend(names))
    for block in range(files.total):
        files.fetch(block)
    assert (files.folder / "config.json").is_file()
    assert {name for name in checkpoint.names if "layers" in name} == set(asked)
