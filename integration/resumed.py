"""Issue F, bar 8: a training saved under four stages, gone on with under three.

    python -m integration.resumed [--before 6] [--after 6]      one JSON line

A swarm of four nodes serves a small random model, a stage each; soft prompts, LoRA and a head are
trained over it and saved, and trained on. Then another swarm of three nodes serves the same model,
and what was saved goes on there, from the same place of the data. The losses are to be equal to the
bit, for what is lost or added by a checkpoint would show in every step behind it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import potluck
from potluck.node.compute.snapshot import Trained, put_back, take
from potluck.node.runs.store import Checkpoints
from potluck.node.testnet.launcher import Plan, open_testnet

from .row import Row

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # its helpers, as pytest has them

RUN = bytes(32)
MODEL = {"vocab_size": 320, "num_hidden_layers": 6}
WANTED = {"rank": 4, "alpha": 8.0, "targets": ("q_proj", "v_proj", "down_proj")}


def measure(before: int = 6, after: int = 6) -> dict[str, Any]:
    from checkpoints import save_random, save_tokenizer

    with tempfile.TemporaryDirectory(prefix="potluck-resumed-") as folder:
        home, source = Path(folder), Path(folder) / "model"
        save_random(source, "llama", **MODEL)
        save_tokenizer(source)
        expected = _life(home / "four", source, 4, home / "run", (before, after))
        found = _life(home / "three", source, 3, home / "run", (0, after))
        kept = Checkpoints(home / "run", RUN)
        return {
            "losses": expected[before:],
            "losses_resumed": found,
            "equal": expected[before:] == found,
            "checkpoint_bytes": kept.chunks.used_bytes(),
        }


def _life(
    home: Path, source: Path, stages: int, folder: Path, steps: tuple[int, int]
) -> list[float]:
    """Train over a swarm of so many stages; saved after the first steps, or begun by what was."""
    before, after = steps
    plan = Plan(home, str(source), "trained", MODEL["num_hidden_layers"], nodes=stages)
    torch.manual_seed(stages)
    with open_testnet(plan) as net, potluck.connect(net.join, home=home) as swarm:
        model = potluck.RemoteModel(swarm, "trained", prompts=4, lora=potluck.LoRA(**WANTED))
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        trained, kept = Trained.of(model), Checkpoints(folder, RUN)
        if before:
            losses = _steps(model, optimizer, 0, before)
            kept.save(take(RUN, 0, before, trained, optimizer))
            return losses + _steps(model, optimizer, before, after)
        saved = kept.latest()
        assert saved is not None
        put_back(saved, trained, optimizer)
        return _steps(model, optimizer, saved.step, after)


def _steps(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, first: int, count: int
) -> list[float]:
    from trained import batch, loss_of

    losses = []
    for step in range(first, first + count):
        loss = loss_of(model, batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def f8_resumes() -> Iterator[Row]:
    found = measure()
    losses = found["losses"]
    yield Row(
        "F8a",
        "a checkpoint saved under 4 stages resumes under 3 with equal loss",
        f"{len(losses)} losses {'equal to the bit' if found['equal'] else 'differ'}, from "
        f"{losses[0]:.4f} to {losses[-1]:.4f}; {found['checkpoint_bytes']} bytes on disk",
        found["equal"],
        "python -m integration.resumed",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=int, default=6)
    parser.add_argument("--after", type=int, default=6)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.before, asked.after)))


if __name__ == "__main__":
    main()
