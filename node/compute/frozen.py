"""One transformer block that gradients go through: frozen weights in any format, and no cache.

The same arithmetic as block.py, for whole sequences from their first position on, in fp32 and
without a step that writes over what backward will read. Weights are those of the files, in the
files' order; each product turns them back to numbers in panels, forward and backward, so that no
format takes more memory for being trained through. What an adapter adds is added module by module,
from two matrices that gradients are wanted of.

    hidden ── norm ── q k v ── turn ── attend ── out ──(+)── norm ── feed-forward ──(+)──▶
       └─────────────────────────────────────────────┘ └──────────────────────────────┘

Source: transformers 5, LlamaDecoderLayer and its kin; gradients equal autograd's through their
models within 1e-4 in fp32 (tests/test_gradients.py). Recomputing: T. Chen et al., 2016.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import ROUTER, BlockWeights, Layout
from .rope import Ropes
from .spec import ModelSpec
from .weight import Weight

_PANEL_BYTES = 4 << 20  # of fp32: rows of a weight that are turned back at once


@dataclass(frozen=True, slots=True)
class Leaf:
    """What an adapter adds to a module, as tensors that gradients are wanted of, or are not."""

    down: Tensor  # (rank, inputs)
    up: Tensor  # (outputs, rank)
    scale: float


Leaves = Mapping[str, Leaf]  # by module


class _Through(torch.autograd.Function):
    """x · wᵀ, whose gradient is wanted by x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight) -> Tensor:
        ctx.weight = weight
        out = x.new_empty((len(x), weight.rows))
        for start, stop, panel in _panels(weight):
            torch.mm(x, panel.t(), out=out[:, start:stop])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), weight = grads, ctx.weight
        out = grad.new_zeros((len(grad), weight.columns))
        for start, stop, panel in _panels(weight):
            out.addmm_(grad[:, start:stop], panel)
        return out, None


def _panels(weight: Weight) -> Iterator[tuple[int, int, Tensor]]:
    """Rows start..stop as fp32 numbers, one panel after another."""
    size = max(1, _PANEL_BYTES // (4 * weight.columns))
    for start in range(0, weight.rows, size):
        stop = min(start + size, weight.rows)
        yield start, stop, weight.pick(start, stop).dequantize()


def through(x: Tensor, weight: Weight) -> Tensor:
    """x (rows, k), fp32, times the weight's rows: (rows, n)."""
    if weight.format == "none" and weight.codes.dtype == torch.float32:
        return F.linear(x, weight.codes)  # nothing to turn back, and no step of Python either way
    found: Tensor = _Through.apply(x, weight)  # type: ignore[no-untyped-call]
    return found


class FrozenBlock:
    """Block `index`, of weights that lie where they were loaded."""

    def __init__(
        self,
        spec: ModelSpec,
        index: int,
        layout: Layout,
        weights: BlockWeights,
        device: torch.device,
    ) -> None:
        self._spec = spec
        self._window = spec.windows[index]
        self._rope = spec.rope_of(index)
        self._parts = layout.matrices
        self._matrices = {name: _placed(one, device) for name, one in weights.matrices.items()}
        self._vectors = {
            name: (one.float() + (spec.norm_offset if "norm" in name else 0.0)).to(device)
            for name, one in weights.vectors.items()
        }
        self._experts = spec.experts_of(index)

    def forward(self, hidden: Tensor, ropes: Ropes, leaves: Leaves) -> Tensor:
        """hidden: (batch, tokens, width), fp32; returns the same shape. leaves: of an adapter."""
        spec, (batch, tokens, width) = self._spec, hidden.shape
        x = self._norm(hidden, "norm_in").view(-1, width)
        seen = self._attend(x, batch, tokens, ropes, leaves)
        out = self._product("out", seen, leaves).view_as(hidden)
        hidden = hidden + (self._norm(out, "norm_attended") if spec.post_norms else out)
        x = self._norm(hidden, "norm_mid").view(-1, width)
        fed = (self._mix(x) if self._experts else self._feed("", x, leaves)).view_as(hidden)
        return hidden + (self._norm(fed, "norm_fed") if spec.post_norms else fed)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return torch.rms_norm(x, x.shape[-1:], self._vectors[name], self._spec.eps)

    def _product(self, name: str, x: Tensor, leaves: Leaves) -> Tensor:
        """A product with its bias, and what an adapter adds to its module."""
        y = through(x, self._matrices[name])
        if (bias := self._vectors.get(f"{name}_bias")) is not None:
            y = y + bias
        part = self._parts[name]
        leaf = leaves.get(part.tensor.removesuffix(".weight"))
        if leaf is None:
            return y
        up = leaf.up[part.start : part.stop]
        return torch.addmm(y, x @ leaf.down.t(), up.t(), alpha=leaf.scale)

    def _attend(self, x: Tensor, batch: int, tokens: int, ropes: Ropes, leaves: Leaves) -> Tensor:
        spec, head = self._spec, self._spec.head_dim

        def heads(name: str, count: int) -> Tensor:
            return self._product(name, x, leaves).view(batch, tokens, count, head)

        q, k = heads("q", spec.heads), heads("k", spec.kv_heads)
        v = heads("v", spec.kv_heads)
        if spec.qk_norm:
            q, k = self._norm(q, "q_norm"), self._norm(k, "k_norm")
        cos, sin = (
            torch.from_numpy(one.copy()).to(x.device)[:, None]
            for one in ropes.angles(self._rope, tokens).rows(0, tokens)
        )
        cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        q, k = (_turned(one, cos, sin).transpose(1, 2) for one in (q, k))
        seen = self._see(q, k, v.transpose(1, 2), tokens)
        return seen.transpose(1, 2).reshape(batch * tokens, spec.heads * head)

    def _see(self, q: Tensor, k: Tensor, v: Tensor, tokens: int) -> Tensor:
        """All (batch, heads, tokens, head); of k and v fewer heads."""
        spec, window = self._spec, self._window
        near = window is not None and window < tokens
        plain = spec.attn_softcap is None and not near
        if plain and q.device.type == "cpu":  # elsewhere fp32 has no fast kernel for groups
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=spec.scale, enable_gqa=True
            )
        k, v = (one.repeat_interleave(spec.heads // spec.kv_heads, 1) for one in (k, v))
        if plain:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=spec.scale)
        mask = torch.ones((tokens, tokens), dtype=torch.bool, device=q.device).tril_()
        if near and window is not None:
            mask = mask.triu_(1 - window)
        if spec.attn_softcap is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=spec.scale)
        scores = torch.matmul(q, k.transpose(2, 3)) * (spec.scale / spec.attn_softcap)
        scores = (torch.tanh(scores) * spec.attn_softcap).masked_fill(~mask, -torch.inf)
        return torch.matmul(torch.softmax(scores, -1), v)

    def _feed(self, expert: str, x: Tensor, leaves: Leaves) -> Tensor:
        """expert: the prefix of its matrices' names."""
        gate = self._product(f"{expert}gate", x, leaves)
        up = self._product(f"{expert}up", x, leaves)
        tanh = self._spec.activation == "gelu_tanh"
        opened = F.gelu(gate, approximate="tanh") if tanh else F.silu(gate)
        return self._product(f"{expert}down", opened * up, leaves)

    def _mix(self, x: Tensor) -> Tensor:
        """What the chosen experts give, by their shares. No adapter adds to them."""
        spec = self._spec
        router = torch.softmax(through(x, self._matrices[ROUTER]), -1)
        shares, chosen = router.topk(spec.experts_per_token, -1)
        if spec.renormalise:
            shares = shares / shares.sum(-1, keepdim=True)
        whole = torch.zeros_like(x)
        for expert in range(self._experts):
            tokens, place = torch.where(chosen == expert)
            if len(tokens):
                given = self._feed(f"{expert}.", x[tokens], {})
                whole = whole.index_add(0, tokens, given * shares[tokens, place, None])
        return whole


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: (batch, tokens, heads, head_dim); cos and sin: (tokens, 1, turned), of its halves."""
    turned = cos.shape[-1]
    first = x[..., :turned]
    found = torch.addcmul(first * cos, first.roll(turned // 2, -1), sin)
    return found if turned == x.shape[-1] else torch.cat([found, x[..., turned:]], -1)


def _placed(weight: Weight, device: torch.device) -> Weight:
    if weight.codes.device == device:
        return weight
    scales = None if weight.scales is None else weight.scales.to(device)
    codes = weight.codes.to(device)
    return Weight(weight.format, weight.rows, weight.columns, codes, scales)
