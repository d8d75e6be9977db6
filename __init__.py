"""Potluck: everyone brings a dish.

A peer-to-peer volunteer compute network for large language models. Peers each hold a few
transformer blocks; a client routes a session through them and keeps what it needs to go on
when any of them dies.

    with potluck.connect(join=[...]) as swarm:
        for piece in swarm.generate("org/name", "Hello", max_new_tokens=64, seed=1):
            print(piece.text, end="")

        model = potluck.RemoteModel(swarm, "org/name", prompts=16)  # a torch.nn.Module
        logits = model(ids)  # and loss.backward(), optimizer.step() as ever
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # typing's own, whose import takes longer than all else here (cli/main.py)

__version__ = "0.1.0"
__all__ = [
    "BlockingSwarm", "LoRA", "Piece", "RemoteModel", "Swarm", "connect", "hear", "open_swarm",
]  # fmt: skip

if TYPE_CHECKING:
    from typing import Any

    from .node.blocking import BlockingSwarm, connect
    from .node.client import Swarm, open_swarm
    from .node.compute.lora import LoRA
    from .node.compute.remote import RemoteModel
    from .node.generation import Piece, hear


_STANDS_IN = {
    "BlockingSwarm": "blocking",
    "LoRA": "compute.lora",
    "Piece": "generation",
    "RemoteModel": "compute.remote",
    "Swarm": "client",
    "connect": "blocking",
    "hear": "generation",
    "open_swarm": "client",
}


def __getattr__(name: str) -> Any:
    """The client's names, loaded when first asked for: the client needs torch, `--help` not."""
    if name in __all__:
        return getattr(import_module(f".node.{_STANDS_IN[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
