"""A slope that is measured over a swarm's blocks, without a backward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sim.training_swarm import training_world

from potluck.node.compute.average.flat import Flat
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.lora import LoRA
from potluck.node.compute.remote import RemoteModel
from potluck.node.compute.scalar import ScalarWeights, Scale, loss_over, signs
from potluck.node.compute.snapshot import Trained
from potluck.swarm.run.seeds import Rules

from .checkpoints import save_random
from .test_remote import Connected, beside, shake
from .trained import batch, loss_of

RULES = Rules(bytes(range(32)))


async def test_the_swarm_measures_what_gradients_would_give(tmp_path: Path) -> None:
    """Soft prompts and LoRA over three stages; the slope against the gradient, along one
    direction. A probe of a hundredth sees the curve besides, and fp32's last bits."""
    save_random(tmp_path, "llama")
    async with training_world(open_checkpoint(tmp_path), ((0, 1), (1, 2), (2, 3))) as world:
        connected = Connected(world)

        def run() -> tuple[float, float]:
            torch.manual_seed(1)
            model = RemoteModel(connected, "tiny", prompts=3, lora=LoRA(rank=2))
            shake(model)
            parameters = Trained.of(model).parameters
            flat = Flat.of(parameters)
            base = flat.join(parameters)
            loss_of(model, batch(1)).backward()
            gradient = flat.join({name: one.grad for name, one in parameters.items()})
            wanted = float(gradient @ signs(RULES.seed(4, 0), flat.count).float())
            weights = ScalarWeights(base, RULES, Scale(probe=1e-3))
            found = weights.slope(base, loss_over(model, parameters, batch(1)), 4, 0)
            return found, wanted

        found, wanted = await beside(run)
        assert found == pytest.approx(wanted, rel=0.05, abs=0.02)
