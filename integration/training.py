"""Issue F, bar 1: soft prompts and LoRA trained over a swarm, and in one process beside it.

    python -m integration.training [--steps 200] [--kill-every 20]      one JSON line

Six nodes serve three stages of a small random model, two each. The same batches go through the
swarm and through transformers' own model; before every so many steps a node is killed in mid-step,
each time of another stage, and started anew when the step is done.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import potluck
from potluck.node.testnet.launcher import LocalSwarm, Plan, open_testnet

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # its helpers, as pytest has them

STAGES, REPLICAS = 3, 2
PROMPTS = 4
MODEL = {"vocab_size": 320, "num_hidden_layers": 6}
WANTED = {"rank": 4, "alpha": 8.0, "targets": ("q_proj", "v_proj", "down_proj")}


def measure(
    steps: int = 200, kill_every: int = 20, *, restarts: bool = True, lr: float = 2e-3
) -> dict[str, Any]:
    from checkpoints import save_random, save_tokenizer

    torch.manual_seed(11)
    with tempfile.TemporaryDirectory(prefix="potluck-train-") as folder:
        home, source = Path(folder), Path(folder) / "model"
        oracle = save_random(source, "llama", **MODEL)
        save_tokenizer(source)
        blocks, nodes = MODEL["num_hidden_layers"], STAGES * REPLICAS
        plan = Plan(home, str(source), "trained", blocks, nodes=nodes, replicas=REPLICAS)
        with open_testnet(plan) as net, potluck.connect(net.join, home=home) as swarm:
            return _train(net, swarm, oracle, steps, kill_every, restarts=restarts, lr=lr)


def _train(
    net: LocalSwarm,
    swarm: potluck.BlockingSwarm,
    oracle: Any,
    steps: int,
    kill_every: int,
    *,
    restarts: bool,
    lr: float,
) -> dict[str, Any]:
    from trained import Local, batch

    remote = potluck.RemoteModel(
        swarm, "trained", prompts=PROMPTS, lora=potluck.LoRA(**WANTED), microbatch=1
    )
    with torch.no_grad():  # B is zero at birth, and so would A's gradient be
        for one in remote.parameters():
            one += 0.02 * torch.randn(one.shape)
    local = Local(oracle, remote)
    optimizers = [torch.optim.AdamW(one.parameters(), lr=lr) for one in (remote, local)]
    apart: dict[str, float] = {}
    losses: list[tuple[float, float]] = []
    killed: list[str] = []
    for step in range(steps):
        doomed = ""
        if kill_every and step and step % kill_every == 0:
            stage = len(killed) % STAGES
            doomed = net.seats[stage + STAGES * (len(killed) // STAGES % REPLICAS)].name
            killed.append(doomed)
        pair = _step(net, remote, local, batch(step), doomed, forward=len(killed) % 2 == 1)
        if step == 0:
            apart = _apart(remote, local)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(pair)
        if doomed and restarts:
            net.restart(doomed)
    return {
        "gradients_apart_max": max(apart.values()),
        "losses_apart_max": max(abs(one - other) / other for one, other in losses),
        "first_loss": losses[0][1],
        "last_loss": losses[-1][1],
        "steps": steps,
        "killed": len(killed),
        "pieces_resent": remote._network.resent,  # type: ignore[attr-defined]
    }


def _step(
    net: LocalSwarm, remote: Any, local: Any, ids: torch.Tensor, doomed: str, *, forward: bool
) -> tuple[float, float]:
    """Both losses; gradients lie on the parameters. doomed: dies on the way there, or back."""
    from trained import loss_of

    loss = _under_fire(net, doomed if forward else "", lambda: loss_of(remote, ids))
    _under_fire(net, "" if forward else doomed, loss.backward)
    beside = loss_of(local, ids)
    beside.backward()
    return float(loss.detach()), float(beside.detach())


def _under_fire(net: LocalSwarm, doomed: str, go: Callable[[], Any]) -> Any:
    """Kill a node while this is on its way; it may be a moment before, or after."""
    if not doomed:
        return go()
    killer = threading.Thread(target=net.send, args=(doomed, signal.SIGKILL))
    killer.start()
    try:
        return go()
    finally:
        killer.join()


def _apart(remote: Any, local: Any) -> dict[str, float]:
    """Of each parameter's gradient, relative to the oracle's."""
    found = {}
    for name, one in remote.named_parameters():
        wanted = getattr(local, name.replace(".", "_")).grad
        found[name] = float((one.grad - wanted).norm() / wanted.norm().clamp(min=1e-30))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kill-every", type=int, default=20)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.steps, asked.kill_every)))


if __name__ == "__main__":
    main()
