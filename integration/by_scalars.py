"""The demo model learns the language of a licence by one byte a step and peer.

    python -m integration.by_scalars [--peers 4] [--rounds 60]      one JSON line

Peers in one process, over memory roads: each measures its own windows of the text and knows of the
others only what they said. What is trained are the norms' 3,264 numbers. Beside the losses, what
went over the wire for each peer and round, all letters counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers
import torch
import trio
from torch import Tensor

from potluck.node.compute.average.flat import Flat
from potluck.node.compute.demo.network import Llama, Shape
from potluck.node.compute.scalar import Loss, Scale, loss_over
from potluck.swarm.run.seeds import Rules

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # its helpers, as pytest has them

ROOT = Path(__file__).parent.parent
WINDOW, WINDOWS = 64, 4  # tokens, of which so many are one measure's
SCALE = Scale(step=2e-2, probe=1e-3, grain=1e-3)


class Learner:
    """The demo model and the text. One thread at a time measures: all peers share the model."""

    def __init__(self, rounds: int) -> None:
        folder = ROOT / "node" / "compute" / "demo"
        self.model = Llama(Shape()).requires_grad_(False)
        stored = safetensors.torch.load_file(folder / "model.safetensors")
        self.model.load_state_dict(
            {name.removeprefix("model."): one.float() for name, one in stored.items()}
        )
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = torch.tensor(tokenizer.encode((ROOT / "LICENSE").read_text()).ids)
        rows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
        self.held_out = rows[::4]
        self.train = torch.cat([rows[1::4], rows[2::4], rows[3::4]])
        self.parameters = {n: p for n, p in self.model.named_parameters() if "norm" in n}
        self.base = Flat.of(self.parameters).join(self.parameters)
        self.rules = Rules(bytes(32), least=2, rounds=2 * rounds)

    def losses(self, number: int, round_: int) -> Loss:
        drawn = torch.Generator().manual_seed(1000 * round_ + number)
        return self.loss(self.train[torch.randint(len(self.train), (WINDOWS,), generator=drawn)])

    def loss(self, ids: Tensor) -> Loss:
        return loss_over(self.model, self.parameters, ids)


def measure(peers: int = 4, rounds: int = 60) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="potluck-scalars-") as folder:
        return trio.run(_measure, Path(folder), peers, rounds)


async def _measure(folder: Path, peers: int, rounds: int) -> dict[str, Any]:
    from scalar_world import Task, equal, world

    learner = Learner(rounds)
    held_out = learner.loss(learner.held_out)
    one_at_a_time: Callable[..., Loss] = _in_turn(learner.losses)
    task = Task(learner.base, SCALE, one_at_a_time, learner.rules)
    began_s = time.monotonic()
    async with world(folder, peers, task) as made:
        everybody = range(peers)
        await made.go(*everybody, rounds=rounds)
        took_s = time.monotonic() - began_s
        sent = sum(made.members[one].run.hearing.sent_bytes for one in everybody)
        members = list(made.members.values())
        return {
            "peers": peers,
            "rounds": rounds,
            "numbers": len(learner.base),
            "loss_before": round(held_out(learner.base), 4),
            "loss_after": round(held_out(members[0].weights.weights()), 4),
            "equal_bits": equal(*members),
            "bytes_per_peer_and_round": round(sent / peers / rounds),
            "seconds": round(took_s, 1),
        }


def _in_turn(losses: Callable[[int, int], Loss]) -> Callable[[int, int], Loss]:
    """As before, but no two at the same time."""
    lock = threading.Lock()

    def of(number: int, round_: int) -> Loss:
        loss = losses(number, round_)

        def alone(weights: Tensor) -> float:
            with lock:
                return loss(weights)

        return alone

    return of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=60)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.peers, asked.rounds)))


if __name__ == "__main__":
    main()
