"""One transformer block, driven by the model's spec: attention, then a gated feed-forward.

    hidden ── norm ── qkv ── turn ── attend ── out ──(+)── norm ── feed-forward ──(+)──▶
       └───────────────────────────────────────────┘ └──────────────────────────────┘

Few kernels, because at small widths the calls cost more than the numbers: one product for q, k
and v, one for gate and up, the residual added inside the product, rope as one complex product.
Gemma norms what a half gives before it adds; a mixture has many feed-forwards (feed.py).

Source: transformers 5, LlamaDecoderLayer and its kin; logits equal within 1e-4 in fp32
(tests/test_block.py).
"""

import torch
from torch import Tensor

from .adapted import NOTHING, Addends, plus
from .attend import attend
from .feed import feed_of
from .layout import BlockWeights
from .product import Product, product
from .rope import interleave
from .sight import Plan
from .spec import ModelSpec
from .tiles import Tiles
from .weight import Weight


class Norm:
    """Root mean square norm; where the family adds to its weight, in fp32 as the family does."""

    def __init__(
        self, weight: Tensor, spec: ModelSpec, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._wide = spec.norm_offset != 0 and dtype != torch.float32
        numbers = weight.float() + spec.norm_offset if spec.norm_offset else weight
        self._weight = numbers.to(device, torch.float32 if self._wide else dtype, copy=True)
        self._shape = (weight.shape[-1],)
        self._eps = spec.eps

    def __call__(self, x: Tensor) -> Tensor:
        if self._wide:
            return torch.rms_norm(x.float(), self._shape, self._weight, self._eps).to(x.dtype)
        return torch.rms_norm(x, self._shape, self._weight, self._eps)


class Block:
    """The weights of one block on a device, joined and laid out for products from the left."""

    def __init__(
        self,
        spec: ModelSpec,
        index: int,
        weights: BlockWeights,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """weights: as stored; they are copied, never kept."""
        vectors = weights.vectors
        self._spec = spec
        self.window = spec.windows[index]
        self._rope = int(spec.rope_of(index) is not spec.rope)
        self._q_width = spec.heads * spec.head_dim
        self._turned = spec.heads + spec.kv_heads  # heads that are turned: queries and keys

        def norm(name: str) -> Norm:
            return Norm(vectors[name], spec, dtype=dtype, device=device)

        def turned(numbers: Tensor) -> Tensor:
            return interleave(numbers, spec.head_dim, spec.rotary_dim)

        self._norm_in, self._norm_mid = norm("norm_in"), norm("norm_mid")
        self._norm_attended = norm("norm_attended") if spec.post_norms else None
        self._norm_fed = norm("norm_fed") if spec.post_norms else None
        qkv_bias = None
        if spec.qkv_bias:
            q, k, v = (vectors[f"{one}_bias"] for one in "qkv")
            qkv_bias = torch.cat([turned(q), turned(k), v]).to(device, dtype)
        out_bias = vectors["out_bias"].to(device, dtype, copy=True) if spec.out_bias else None
        of = weights.matrices
        parts = [_reordered(of["q"], spec), _reordered(of["k"], spec), of["v"]]
        self._qkv = product(parts, qkv_bias, dtype=dtype, device=device)
        self._out = product([of["out"]], out_bias, dtype=dtype, device=device)
        self._feed = feed_of(spec, index, weights, dtype=dtype, device=device)
        self._qk_norm: Tensor | None = None
        if spec.qk_norm:
            q, k = (turned(vectors[f"{one}_norm"]).float() + spec.norm_offset for one in "qk")
            each = [q.expand(spec.heads, -1), k.expand(spec.kv_heads, -1)]
            self._qk_norm = torch.cat(each).to(device, dtype)

    @property
    def products(self) -> list[Product]:
        """Every product of the block with a matrix of its weights."""
        return [self._qkv, self._out, *self._feed.products]

    def forward(
        self, hidden: Tensor, rows: Tensor, plan: Plan, addends: Addends = NOTHING
    ) -> Tensor:
        """hidden: (tokens, width); rows: this block's rows of the cache, with room for the plan;
        addends: what the session's adapter adds.

        Writes the keys and values of positions plan.at..plan.stop into `rows`.
        """
        queries, remembered = self.before(hidden, plan.turns, addends)
        rows[plan.at : plan.stop] = remembered
        x = attend(self._spec, queries, rows, plan.sights[self.window])
        return self.after(hidden, x, addends)

    def before(
        self, hidden: Tensor, turns: tuple[Tensor, ...], addends: Addends = NOTHING
    ) -> tuple[Tensor, Tensor]:
        """What comes before attention, for rows of whatever sessions: queries, and what is to be
        remembered, keys beside values. turns: of each row, by kind of rope (rope.py)."""
        x = self._norm_in(hidden)
        qkv = plus(self._qkv(x), x, addends.qkv)
        self._turn(qkv, turns[self._rope])
        return qkv[:, : self._q_width], qkv[:, self._q_width :]

    def after(
        self,
        hidden: Tensor,
        attended: Tensor,
        addends: Addends = NOTHING,
        tiles: Tiles | None = None,
    ) -> Tensor:
        """What comes after it. attended: (tokens, heads * head_dim); tiles: of how many rows a
        product may be that not all of these go through."""
        x = attended
        if self._norm_attended is None:
            hidden = plus(self._out.add(hidden, x), x, addends.out)
        else:
            hidden = hidden + self._norm_attended(plus(self._out(x), x, addends.out))
        x = self._norm_mid(hidden)
        if self._norm_fed is None:
            return self._feed.add(hidden, x, addends, tiles)
        return hidden + self._norm_fed(self._feed(x, addends, tiles))

    def _turn(self, qkv: Tensor, turns: Tensor) -> None:
        """Turn queries and keys, in place."""
        spec = self._spec
        width = self._turned * spec.head_dim
        heads = qkv[:, :width].view(len(qkv), self._turned, spec.head_dim)
        turned = heads
        if self._qk_norm is not None:
            turned = torch.rms_norm(turned, (spec.head_dim,), None, spec.eps) * self._qk_norm
        pairs = turned.float()  # itself, if it is
        flat = torch.view_as_complex(pairs.view(len(qkv), self._turned, -1, 2))
        flat *= turns
        if pairs is not heads:
            heads.copy_(pairs)


def _reordered(weight: Weight, spec: ModelSpec) -> Weight:
    """Rows of queries or keys with the halves of a pair side by side, in whatever format."""

    def turned(numbers: Tensor) -> Tensor:
        return interleave(numbers, spec.head_dim, spec.rotary_dim)

    scales = None if weight.scales is None else turned(weight.scales)
    return Weight(weight.format, weight.rows, weight.columns, turned(weight.codes), scales)
