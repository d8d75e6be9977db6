"""A training that goes on under another division of the blocks, as if it had never stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from sim.training_swarm import training_world

from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.lora import LoRA, LowRank
from potluck.node.compute.remote import RemoteModel
from potluck.node.compute.snapshot import Trained, put_back, take
from potluck.node.runs.store import Checkpoints

from .checkpoints import save_random
from .test_remote import Connected, beside
from .trained import batch, loss_of

RUN = bytes(range(32))
FOUR = ((0, 2), (2, 3), (3, 5), (5, 6))
THREE = ((0, 2), (2, 4), (4, 6))
WANTED = LoRA(rank=4, alpha=8, targets=("q_proj", "v_proj", "down_proj"))


class Session:
    """One process's life of a training: a model and its optimizer, and where they are kept."""

    def __init__(self, connected: Connected, folder: Path, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = RemoteModel(connected, "tiny", prompts=3, deep=True, lora=WANTED, head=True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-3)
        self.trained = Trained.of(self.model)
        self.kept = Checkpoints(folder, RUN)
        self.step = 0

    def go(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            loss = loss_of(self.model, batch(self.step))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss.detach()))
            self.step += 1
        return losses

    def save(self) -> None:
        self.kept.save(take(RUN, 0, self.step, self.trained, self.optimizer))

    def load(self) -> None:
        found = self.kept.latest()
        assert found is not None
        put_back(found, self.trained, self.optimizer)
        self.step = found.step


async def lives(
    checkpoint: Checkpoint, folder: Path, stages: Sequence[tuple[int, int]], resumes: bool
) -> tuple[list[float], list[float]]:
    """Losses of two steps, and of three behind a checkpoint."""
    async with training_world(checkpoint, stages) as world:
        connected = Connected(world)

        def run() -> tuple[list[float], list[float]]:
            session = Session(connected, folder, seed=2 if resumes else 1)
            if resumes:
                session.load()
                return [], session.go(3)
            before = session.go(2)
            session.save()
            return before, session.go(3)

        return await beside(run)


async def test_a_checkpoint_saved_under_four_stages_resumes_under_three_with_equal_loss(
    tmp_path: Path,
) -> None:
    """Issue F, bar 8: equal to the bit, with soft and deep prompts, LoRA, a head and AdamW."""
    save_random(tmp_path / "model", "llama", num_hidden_layers=6)
    checkpoint = open_checkpoint(tmp_path / "model")
    before, expected = await lives(checkpoint, tmp_path / "run", FOUR, resumes=False)
    _, found = await lives(checkpoint, tmp_path / "run", THREE, resumes=True)
    assert found == expected
    assert len({*before, *expected}) == 5, "it learns"


def test_names_do_not_depend_on_anything_but_the_model(tmp_path: Path) -> None:
    """They are PEFT's for low-rank matrices, so a checkpoint can be read without us."""
    save_random(tmp_path / "model", "llama", num_hidden_layers=6)
    spec = open_checkpoint(tmp_path / "model").spec
    lora = type("Worn", (), {})()
    lora.lora, lora.prompts, lora.deep, lora.head = LowRank.new(spec, WANTED), None, None, None
    trained = Trained.of(lora)
    assert len(trained.parameters) == 6 * 3 * 2
    name = "model.layers.4.mlp.down_proj.lora_B"
    assert trained.blocks[name] == 4 and trained.parameters[name].shape == (48, 4)
    assert trained.parameters[name.removesuffix("B") + "A"].shape == (4, 80)
