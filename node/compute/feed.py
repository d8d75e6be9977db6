"""The second half of a block: one gated feed-forward, or a few chosen out of many.

    x ── router ── softmax ── the best few ──▶ shares
    x of the tokens that chose an expert ── gate·up ── down ── times their share ──▶ summed

Source: Shazeer et al., 2020 (gated units); Fedus et al., 2021, and Mixtral (experts).
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import BlockWeights
from .product import product
from .spec import ModelSpec


class Feed(Protocol):
    """The feed-forward of a block."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def add(self, to: Tensor, x: Tensor) -> Tensor:
        """`to` plus what comes out, as a new tensor."""
        ...


class Gated:
    """down(act(gate(x)) * up(x))."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: BlockWeights,
        expert: str,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """expert: the prefix of its matrices' names."""
        of, vectors = weights.matrices, weights.vectors
        gate_up_bias = down_bias = None
        if spec.mlp_bias:
            both = torch.cat([vectors["gate_bias"], vectors["up_bias"]])
            gate_up_bias = both.to(device, dtype)
            down_bias = vectors["down_bias"].to(device, dtype, copy=True)
        gate, up, down = (of[f"{expert}{one}"] for one in ("gate", "up", "down"))
        self._tanh = spec.activation == "gelu_tanh"
        self._gate_up = product([gate, up], gate_up_bias, dtype=dtype, device=device)
        self._down = product([down], down_bias, dtype=dtype, device=device)

    def __call__(self, x: Tensor) -> Tensor:
        return self._down(self._inner(x))

    def add(self, to: Tensor, x: Tensor) -> Tensor:
        return self._down.add(to, self._inner(x))

    def _inner(self, x: Tensor) -> Tensor:
        gate, up = self._gate_up(x).chunk(2, 1)
        opened = F.gelu(gate, approximate="tanh") if self._tanh else F.silu(gate)
        return opened.mul_(up)


class Mixture:
    """Experts and the router that chooses among them for each token."""

    def __init__(
        self, spec: ModelSpec, weights: BlockWeights, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        count = weights.matrices["router"].rows
        self._chosen = spec.experts_per_token
        self._renormalise = spec.renormalise
        self._router = product([weights.matrices["router"]], None, dtype=dtype, device=device)
        self._experts = [
            Gated(spec, weights, f"{one}.", dtype=dtype, device=device) for one in range(count)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        return self.add(torch.zeros_like(x), x)

    def add(self, to: Tensor, x: Tensor) -> Tensor:
        shares, chosen = torch.softmax(self._router(x).float(), -1).topk(self._chosen, -1)
        if self._renormalise:
            shares /= shares.sum(-1, keepdim=True)
        whole = to.clone()
        picks = chosen.flatten()
        order = picks.argsort(stable=True)  # by expert, and of one expert by token
        tokens = order // self._chosen
        counts = torch.bincount(picks, minlength=len(self._experts)).tolist()
        weights = shares.flatten()[order].to(x.dtype)[:, None]
        at = 0
        for expert, count in zip(self._experts, counts, strict=True):
            if count:
                mine = tokens[at : at + count]  # no token twice
                whole[mine] += expert(x[mine]) * weights[at : at + count]
                at += count
        return whole


def feed_of(
    spec: ModelSpec,
    index: int,
    weights: BlockWeights,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Feed:
    """The feed-forward of block `index`."""
    if spec.experts_of(index):
        return Mixture(spec, weights, dtype=dtype, device=device)
    return Gated(spec, weights, "", dtype=dtype, device=device)
