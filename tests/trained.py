"""transformers' own model under one autograd, with what a remote model trains hooked in."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potluck.node.compute.remote import RemoteModel


class Local(torch.nn.Module):
    """transformers' model, with the same parameters hooked in, under one autograd."""

    def __init__(self, model: Any, remote: RemoteModel) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        for name, one in remote.named_parameters():
            setattr(self, name.replace(".", "_"), torch.nn.Parameter(one.detach().clone()))
        for index, layer in enumerate(model.model.layers):
            layer.register_forward_pre_hook(self._before(index))
        places = [] if remote.lora is None else remote.lora.places
        for number, place in enumerate(places):
            hook = self._adding(2 * number, place.scale)
            model.get_submodule(place.module).register_forward_hook(hook)

    def _before(self, index: int) -> Any:
        def hook(layer: Any, args: Any) -> Any:
            if not hasattr(self, "deep"):
                return args
            count = self.deep.shape[1]
            first = args[0][:, :count] + self.deep[index]
            return (torch.cat([first, args[0][:, count:]], 1), *args[1:])

        return hook

    def _adding(self, at: int, scale: float) -> Any:
        def hook(module: Any, args: Any, y: Tensor) -> Tensor:
            down, up = (getattr(self, f"lora_halves_{one}") for one in (at, at + 1))
            return y + scale * (args[0] @ down.t()) @ up.t()

        return hook

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.model.get_input_embeddings()(ids)
        before = 0
        if hasattr(self, "prompts"):
            before = len(self.prompts)
            hidden = torch.cat([self.prompts.expand(len(ids), -1, -1), hidden], 1)
        if hasattr(self, "head"):
            hidden = self.model.model(inputs_embeds=hidden, use_cache=False).last_hidden_state
            return F.linear(hidden, self.head)[:, before:]
        return self.model(inputs_embeds=hidden, use_cache=False).logits[:, before:]


def loss_of(model: torch.nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def batch(seed: int, sequences: int = 4, tokens: int = 20) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randint(3, 150, (sequences, tokens), generator=dice)
