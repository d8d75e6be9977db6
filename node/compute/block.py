"""One transformer block, driven by the model's spec: attention, then a gated feed-forward.

    hidden ── norm ── qkv ── turn ── attend ── out ──(+)── norm ── gate·up ── down ──(+)──▶
       └───────────────────────────────────────────┘ └──────────────────────────────┘

Few kernels, because at small widths the calls cost more than the numbers: one product for q, k
and v, one for gate and up, the residual added inside the product, rope as one complex product,
and the heads of a group that share a key as a batch, so that keys are never expanded.

Source: transformers 5, LlamaDecoderLayer and its kin; logits equal within 1e-4 in fp32
(tests/test_stage.py).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .rope import Turns, interleave
from .spec import ModelSpec

Shape = tuple[int, ...]
_MASK_MAX = 1 << 22  # rows times positions: 4 MiB as bool, and 16 MiB once inside a kernel
_MASK_ROWS_MIN = 16  # fewer rows at once would read all keys too often
_TILE = 64  # rows turned at once: a tile of it and its source fit the first cache


def weight_shapes(spec: ModelSpec, index: int) -> dict[str, Shape]:
    """Names and shapes of block `index` in the checkpoint."""
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, Shape] = {
        "input_layernorm.weight": (spec.hidden,),
        "self_attn.q_proj.weight": (q, spec.hidden),
        "self_attn.k_proj.weight": (kv, spec.hidden),
        "self_attn.v_proj.weight": (kv, spec.hidden),
        "self_attn.o_proj.weight": (spec.hidden, q),
        "post_attention_layernorm.weight": (spec.hidden,),
        "mlp.gate_proj.weight": (spec.ffn, spec.hidden),
        "mlp.up_proj.weight": (spec.ffn, spec.hidden),
        "mlp.down_proj.weight": (spec.hidden, spec.ffn),
    }
    if spec.qkv_bias:
        shapes |= {
            "self_attn.q_proj.bias": (q,),
            "self_attn.k_proj.bias": (kv,),
            "self_attn.v_proj.bias": (kv,),
        }
    if spec.out_bias:
        shapes["self_attn.o_proj.bias"] = (spec.hidden,)
    if spec.mlp_bias:
        shapes |= {
            "mlp.gate_proj.bias": (spec.ffn,),
            "mlp.up_proj.bias": (spec.ffn,),
            "mlp.down_proj.bias": (spec.hidden,),
        }
    if spec.qk_norm:
        shapes |= {
            "self_attn.q_norm.weight": (spec.head_dim,),
            "self_attn.k_norm.weight": (spec.head_dim,),
        }
    return {f"model.layers.{index}.{name}": shape for name, shape in shapes.items()}


@dataclass(frozen=True, slots=True)
class Sight:
    """What some rows of a step see of the remembered positions, in blocks of one window.

    Rows first..last of the step see positions start..stop; of those, row i sees start..start+i
    when `causal`, those that `mask` (rows, positions) says when there is one, else all.
    """

    first: int
    last: int
    start: int
    stop: int
    causal: bool = False
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What all blocks share in one step: where it stands, its turns, what its rows see."""

    at: int
    stop: int
    turns: Tensor  # (rows, 1, head_dim / 2), complex64
    sights: dict[int | None, tuple[Sight, ...]]  # by window; together they hold every row


def plan_step(turns: Turns, windows: frozenset[int | None], at: int, stop: int) -> Plan:
    """The plan of a step over positions at..stop."""
    return Plan(
        at=at,
        stop=stop,
        turns=turns.rows(at, stop),
        sights={window: _sights(window, at, stop, turns.device) for window in windows},
    )


def _sights(window: int | None, at: int, stop: int, device: torch.device) -> tuple[Sight, ...]:
    """Rows by rows, so that no mask is large: a long prompt over a long past would fill memory."""
    size = _MASK_MAX // stop
    if window is not None:  # so many rows see as many positions, and a window before them
        size = max(size, (math.isqrt(window * window + 4 * _MASK_MAX) - window) // 2)
    size = max(size, _MASK_ROWS_MIN)
    tokens = stop - at
    if at == 0 and (window is None or stop <= window) and tokens > 1:
        return (Sight(0, tokens, 0, stop, causal=True),)
    return tuple(
        _sight(window, at, first, min(first + size, tokens), device)
        for first in range(0, tokens, size)
    )


def _sight(window: int | None, at: int, first: int, last: int, device: torch.device) -> Sight:
    start = 0 if window is None else max(0, at + first + 1 - window)
    stop = at + last
    if last - first == 1:
        return Sight(first, last, start, stop)
    seen = torch.arange(start, stop, device=device)[None, :]
    row = torch.arange(at + first, stop, device=device)[:, None]
    mask = seen <= row
    if window is not None and stop > window:
        mask &= seen > row - window
    return Sight(first, last, start, stop, mask=mask)


class Block:
    """The weights of one block on a device, fused and laid out for products from the left."""

    def __init__(
        self,
        spec: ModelSpec,
        index: int,
        weights: dict[str, Tensor],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """weights: by the names of `weight_shapes`; they are copied, never kept."""
        part = {name.split(".", 3)[3]: tensor for name, tensor in weights.items()}
        head = spec.head_dim
        self._spec = spec
        self._window = spec.windows[index]
        self._q_width = spec.heads * head
        self._turned = spec.heads + spec.kv_heads  # heads that are turned: queries and keys
        self._scale = 1 / math.sqrt(head)

        def place(*parts: Tensor) -> Tensor:
            return torch.cat([one.to(dtype) for one in parts]).to(device)

        def product(*parts: Tensor) -> Tensor:
            return _transposed(parts, dtype).to(device)

        def biases(name: str) -> Tensor | None:
            return place(part[name]) if name in part else None

        self._norm_in = place(part["input_layernorm.weight"])
        self._norm_mid = place(part["post_attention_layernorm.weight"])
        q, k, v = (part[f"self_attn.{one}_proj.weight"] for one in "qkv")
        self._qkv = product(interleave(q, head), interleave(k, head), v)
        self._out = product(part["self_attn.o_proj.weight"])
        self._gate_up = product(part["mlp.gate_proj.weight"], part["mlp.up_proj.weight"])
        self._down = product(part["mlp.down_proj.weight"])
        self._qkv_bias = self._out_bias = self._gate_up_bias = self._down_bias = None
        self._qk_norm: Tensor | None = None
        if spec.qkv_bias:
            q, k, v = (part[f"self_attn.{one}_proj.bias"] for one in "qkv")
            self._qkv_bias = place(interleave(q, head), interleave(k, head), v)
        self._out_bias = biases("self_attn.o_proj.bias")
        if spec.mlp_bias:
            self._gate_up_bias = place(part["mlp.gate_proj.bias"], part["mlp.up_proj.bias"])
        self._down_bias = biases("mlp.down_proj.bias")
        if spec.qk_norm:
            q, k = (interleave(part[f"self_attn.{one}_norm.weight"], head) for one in "qk")
            self._qk_norm = place(
                q.expand(spec.heads, head).contiguous(), k.expand(spec.kv_heads, head).contiguous()
            )

    def forward(self, hidden: Tensor, rows: Tensor, plan: Plan) -> Tensor:
        """hidden: (tokens, width); rows: this block's rows of the cache, with room for the plan.

        Writes the keys and values of positions plan.at..plan.stop into `rows`.
        """
        spec = self._spec
        x = torch.rms_norm(hidden, (spec.hidden,), self._norm_in, spec.eps)
        qkv = _product(x, self._qkv, self._qkv_bias)
        queries = self._remember(qkv, rows, plan)
        x = self._attend(queries, rows, plan)
        hidden = torch.addmm(hidden, x, self._out)
        if self._out_bias is not None:
            hidden += self._out_bias
        x = torch.rms_norm(hidden, (spec.hidden,), self._norm_mid, spec.eps)
        gate, up = _product(x, self._gate_up, self._gate_up_bias).chunk(2, 1)
        hidden = torch.addmm(hidden, F.silu(gate).mul_(up), self._down)
        if self._down_bias is not None:
            hidden += self._down_bias
        return hidden

    def _remember(self, qkv: Tensor, rows: Tensor, plan: Plan) -> Tensor:
        """Turn queries and keys, write keys and values into the cache; returns the queries."""
        spec = self._spec
        tokens = len(qkv)
        turned_width = self._turned * spec.head_dim
        turned = qkv[:, :turned_width].view(tokens, self._turned, spec.head_dim)
        if self._qk_norm is not None:
            turned = torch.rms_norm(turned, (spec.head_dim,), None, spec.eps) * self._qk_norm
        in_place = self._qk_norm is None and qkv.dtype == torch.float32
        pairs = turned if turned.dtype == torch.float32 else turned.float()
        flat = torch.view_as_complex(pairs.view(tokens, self._turned, -1, 2))
        flat *= plan.turns
        if in_place:  # keys already stand beside the values
            rows[plan.at : plan.stop] = qkv[:, self._q_width :]
            return qkv[:, : self._q_width]
        done = pairs.to(qkv.dtype).view(tokens, turned_width)
        keys = turned_width - self._q_width
        rows[plan.at : plan.stop, :keys] = done[:, self._q_width :]
        rows[plan.at : plan.stop, keys:] = qkv[:, turned_width:]
        return done[:, : self._q_width]

    def _attend(self, queries: Tensor, rows: Tensor, plan: Plan) -> Tensor:
        """queries: (tokens, heads * head_dim); returns the same shape."""
        sights = plan.sights[self._window]
        if len(sights) == 1:
            return self._see(queries, rows, sights[0])
        return torch.cat([self._see(queries[s.first : s.last], rows, s) for s in sights])

    def _see(self, queries: Tensor, rows: Tensor, sight: Sight) -> Tensor:
        """Each group of heads that share a key is a batch, so that keys are never expanded."""
        spec = self._spec
        tokens, groups, head = len(queries), spec.kv_heads, spec.head_dim
        seen = rows[sight.start : sight.stop].view(-1, 2, groups, 1, head)
        keys, values = seen.permute(1, 2, 3, 0, 4).unbind(0)  # (groups, 1, positions, head)
        if tokens == 1:  # the heads of a group are the rows of one product
            x = F.scaled_dot_product_attention(
                queries.view(groups, 1, -1, head), keys, values, scale=self._scale
            )
            return x.reshape(1, self._q_width)
        members = spec.heads // groups
        q = queries.view(tokens, groups, members, head).permute(1, 2, 0, 3)
        shape = (groups, members, sight.stop - sight.start, head)
        x = F.scaled_dot_product_attention(
            q,
            keys.expand(shape),
            values.expand(shape),
            attn_mask=sight.mask,
            is_causal=sight.causal,
            scale=self._scale,
        )
        return x.permute(2, 0, 1, 3).reshape(tokens, self._q_width)


def _transposed(parts: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """Weights (out, in) one below the other, as (in, out): what `mm` reads fastest at batch 1.

    Tile by tile: 1.7 times as fast as joining and turning the whole, and without its memory.
    """
    whole = torch.empty((parts[0].shape[1], sum(map(len, parts))), dtype=dtype)
    at = 0
    for part in parts:
        for rows in torch.split(part, _TILE):
            whole[:, at : at + len(rows)] = rows.to(dtype).t().contiguous()
            at += len(rows)
    return whole


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)
