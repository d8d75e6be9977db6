"""The second half of a block: one gated feed-forward, or a few chosen out of many.

    x ── router ── softmax ── the best few ──▶ shares
    x of the tokens that chose an expert ── gate·up ── down ── times their share ──▶ summed

Source: Shazeer et al., 2020 (gated units); Fedus et al., 2021, and Mixtral (experts).
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapted import NOTHING, Addends, Adds, plus
from .layout import BlockWeights
from .product import Product, product
from .spec import ModelSpec
from .tiles import Tiles, filled
from .weight import Weight

_ROUTER_STEP = 16  # experts: a narrower product is summed up otherwise in some rows of a tile


class Feed(Protocol):
    """The feed-forward of a block."""

    @property
    def products(self) -> list[Product]:
        """Every product with a matrix of its weights, as tiles go through it."""
        ...

    def __call__(self, x: Tensor, addends: Addends, tiles: Tiles | None = None) -> Tensor: ...

    def add(self, to: Tensor, x: Tensor, addends: Addends, tiles: Tiles | None = None) -> Tensor:
        """`to` plus what comes out, as a new tensor. addends: what an adapter adds; tiles: of how
        many rows a product may be that not all of these go through."""
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

    @property
    def products(self) -> list[Product]:
        return [self._gate_up, self._down]

    def __call__(self, x: Tensor, addends: Addends = NOTHING, tiles: Tiles | None = None) -> Tensor:
        inner = self._inner(x, addends.gate_up)
        return plus(self._down(inner), inner, addends.down)

    def add(self, to: Tensor, x: Tensor, addends: Addends, tiles: Tiles | None = None) -> Tensor:
        inner = self._inner(x, addends.gate_up)
        return plus(self._down.add(to, inner), inner, addends.down)

    def _inner(self, x: Tensor, addend: Adds | None) -> Tensor:
        gate, up = plus(self._gate_up(x), x, addend).chunk(2, 1)
        opened = F.gelu(gate, approximate="tanh") if self._tanh else F.silu(gate)
        return opened.mul_(up)


class Mixture:
    """Experts and the router that chooses among them for each token. No adapter adds to them."""

    def __init__(
        self, spec: ModelSpec, weights: BlockWeights, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        router = weights.matrices["router"]
        count = router.rows
        self._chosen = spec.experts_per_token
        self._renormalise = spec.renormalise
        wide = Weight.plain(filled(router.codes, -(-count // _ROUTER_STEP) * _ROUTER_STEP))
        self._router = product([router], None, dtype=dtype, device=device)
        self._tiled_router = product([wide], None, dtype=dtype, device=device)
        self._experts = [
            Gated(spec, weights, f"{one}.", dtype=dtype, device=device) for one in range(count)
        ]

    @property
    def products(self) -> list[Product]:
        return [self._tiled_router, *(one for expert in self._experts for one in expert.products)]

    def __call__(self, x: Tensor, addends: Addends, tiles: Tiles | None = None) -> Tensor:
        return self.add(torch.zeros_like(x), x, addends, tiles)

    def add(self, to: Tensor, x: Tensor, addends: Addends, tiles: Tiles | None = None) -> Tensor:
        router = self._router if tiles is None else self._tiled_router
        scores = router(x)[:, : len(self._experts)].float()
        shares, chosen = torch.softmax(scores, -1).topk(self._chosen, -1)
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
                fed = expert(x[mine]) if tiles is None else tiles.through(expert, x[mine])
                whole[mine] += fed * weights[at : at + count]
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
