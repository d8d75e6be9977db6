"""Recorded passes: the same bits as passes computed kernel by kernel, whoever comes and goes.

What records here is torch's own tracer: it keeps the kernels and the tensors that they were called
with, and nothing of the Python between them, as a CUDA graph does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from potluck.node.compute.adapter import read_adapter
from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.graphs import Graphs, Inputs
from potluck.node.compute.pages import Lease
from potluck.node.compute.spill import Budget
from potluck.node.compute.stage import Stage
from potluck.node.compute.tiled_stage import TiledStage

from .adapters import save_adapter
from .checkpoints import save_random
from .exact_stage import step
from .test_native_stage import SHAPES

PASSES = 10


class Tracer:
    """Records what torch is asked to compute."""

    def __init__(self) -> None:
        self.recorded = self.started = 0

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.recorded += 1
        with torch.inference_mode(False), torch.no_grad():
            kernels = make_fx(run)()

        def again() -> Tensor:
            self.started += 1
            found: Tensor = kernels()
            return found

        return again


def save(folder: Path, shape: str) -> Checkpoint:
    family, settings = SHAPES[shape]
    sizes = {"max_position_embeddings": 1024, "num_hidden_layers": 2}
    save_random(folder, family, **(sizes | settings))
    return open_checkpoint(folder)


def load(checkpoint: Checkpoint, recorder: Tracer | None = None, **settings: Any) -> TiledStage:
    stage = Stage.load(checkpoint, 0, checkpoint.spec.blocks, device="cpu", **settings)
    found = TiledStage.of(stage, recorder)
    assert isinstance(found, TiledStage), found
    return found


class Crowd:
    """Sessions of different ages on one stage; each pass some of them take a step."""

    def __init__(self, stage: TiledStage, ages: list[int]) -> None:
        self._stage = stage
        pages = sum(age // 64 + 2 for age in ages) * (stage.stop - stage.start)
        self._pool = stage.pool(Budget(pages * stage.page_bytes))
        self.leases: list[Lease] = []
        for nth, age in enumerate(ages):
            lease = self._pool.open(stage.start, stage.stop, age + 60)
            self.leases.append(lease)
            self.take([(nth, age)], torch.Generator().manual_seed(nth))

    def take(self, counts: list[tuple[int, int]], dice: torch.Generator) -> Tensor:
        """A pass: which sessions, and how many rows of each."""
        sessions = [(self.leases[nth], count) for nth, count in counts]
        rows = sum(count for _, count in counts)
        hidden = torch.randn((rows, self._stage.spec.hidden), generator=dice)
        return step(self._stage, hidden, *sessions)


def passes(stage: TiledStage, adapter: Any = None) -> list[Tensor]:
    """What comes out of some passes."""
    crowd = Crowd(stage, [1, 40, 63, 290])
    crowd.leases[2].adapter = adapter
    dice, order = torch.Generator().manual_seed(7), random.Random(7)
    found = []
    for _ in range(PASSES):
        some = order.sample(range(4), order.choice((1, 2, 4)))
        found.append(crowd.take([(nth, order.choice((1, 1, 2))) for nth in some], dice))
    return found


@pytest.mark.parametrize(
    ("shape", "settings"),
    [("llama", {}), ("capped", {}), ("llama", {"quantization": "nf4"})],
)
def test_recorded_passes_give_the_bits_of_computed_ones(
    shape: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint, tracer = save(tmp_path, shape), Tracer()
    recorded = passes(load(checkpoint, tracer, **settings))
    computed = passes(load(checkpoint, **settings))
    assert all(torch.equal(a, b) for a, b in zip(recorded, computed, strict=True))
    assert 0 < tracer.recorded < PASSES < tracer.started + tracer.recorded
    assert tracer.started > tracer.recorded  # beside each one's trial


def test_who_wears_an_adapter_is_computed_and_others_are_not_held_up(tmp_path: Path) -> None:
    checkpoint, tracer = save(tmp_path / "base", "llama"), Tracer()
    save_adapter(tmp_path / "adapter", checkpoint.spec)
    worn = read_adapter(tmp_path / "adapter", checkpoint.spec, 0, 2)
    ours, theirs = load(checkpoint, tracer), load(checkpoint)
    recorded = passes(ours, ours.load_adapter(worn))
    computed = passes(theirs, theirs.load_adapter(worn))
    assert all(torch.equal(a, b) for a, b in zip(recorded, computed, strict=True))
    assert tracer.recorded


def test_experts_are_chosen_by_the_host_so_nothing_is_recorded(tmp_path: Path) -> None:
    tracer = Tracer()
    stage = load(save(tmp_path, "mixture"), tracer)
    passes(stage)
    assert not tracer.recorded and "no graphs" in stage.told


KEY = ("a",)


def inputs(key: object = KEY, value: float = 1.0) -> Inputs:
    numbers = torch.arange(3)
    return Inputs(key, torch.full((2, 3), value), numbers, (torch.ones(2, 1, 2),))


class Room:
    """In place of a pool."""


def doubled(found: Inputs) -> Tensor:
    return found.hidden * 2 + found.numbers


def test_a_device_that_cannot_record_computes_as_before() -> None:
    class Refuses:
        def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
            raise RuntimeError("operation not permitted when stream is capturing")

    graphs, room = Graphs(Refuses()), Room()
    first = graphs.run(room, inputs(), doubled)
    assert first is not None and torch.equal(first, doubled(inputs()))
    assert "not permitted" in graphs.why_not
    assert graphs.run(room, inputs(), doubled) is None


def test_a_recording_with_other_bits_is_never_used() -> None:
    class Wrong:
        def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
            return lambda: run() + 1e-6

    graphs, room = Graphs(Wrong()), Room()
    first = graphs.run(room, inputs(), doubled)
    assert first is not None and torch.equal(first, doubled(inputs()))
    assert "other bits" in graphs.why_not
    assert graphs.run(room, inputs(value=3.0), doubled) is None


def test_recordings_are_bounded_and_end_with_their_pool() -> None:
    tracer = Tracer()
    graphs, room = Graphs(tracer), Room()
    for number in range(60):
        graphs.run(room, inputs((number,)), doubled)
    assert tracer.recorded == 48
    assert graphs.run(room, inputs((59,)), doubled) is None
    again = graphs.run(room, inputs((3,), 5.0), doubled)
    assert again is not None and torch.equal(again, doubled(inputs(value=5.0)))
    del room
    assert graphs.run(Room(), inputs((59,)), doubled) is not None
