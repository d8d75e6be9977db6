"""Attention of some rows over the remembered positions, without expanding a key.

The heads of a group that share a key are a batch (or, at one row, the rows of one product).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .sight import Sight
from .spec import ModelSpec

_SCORES_MAX = 1 << 22  # of one group at once where scores are capped: 16 MiB, three times


def attend(spec: ModelSpec, queries: Tensor, rows: Tensor, sights: tuple[Sight, ...]) -> Tensor:
    """queries: (tokens, heads * head_dim); returns the same shape. rows: of the cache."""
    see = _see if spec.attn_softcap is None else _see_capped
    if len(sights) == 1:
        return see(spec, queries, rows, sights[0])
    return torch.cat([see(spec, queries[s.first : s.last], rows, s) for s in sights])


def _see(spec: ModelSpec, queries: Tensor, rows: Tensor, sight: Sight) -> Tensor:
    tokens, groups, head = len(queries), spec.kv_heads, spec.head_dim
    seen = rows[sight.start : sight.stop].view(-1, 2, groups, 1, head)
    keys, values = seen.permute(1, 2, 3, 0, 4).unbind(0)  # (groups, 1, positions, head)
    if tokens == 1:
        x = F.scaled_dot_product_attention(
            queries.view(groups, 1, -1, head), keys, values, scale=spec.scale
        )
        return x.reshape(1, -1)
    members = spec.heads // groups
    q = queries.view(tokens, groups, members, head).permute(1, 2, 0, 3)
    shape = (groups, members, sight.stop - sight.start, head)
    x = F.scaled_dot_product_attention(
        q,
        keys.expand(shape),
        values.expand(shape),
        attn_mask=sight.mask,
        is_causal=sight.causal,
        scale=spec.scale,
    )
    return x.permute(2, 0, 1, 3).reshape(tokens, -1)


def _see_capped(spec: ModelSpec, queries: Tensor, rows: Tensor, sight: Sight) -> Tensor:
    """The same with scores capped, which no fused kernel knows: group by group, rows by rows."""
    tokens, groups, head = len(queries), spec.kv_heads, spec.head_dim
    members, positions = spec.heads // groups, sight.stop - sight.start
    cap = spec.attn_softcap or 1.0
    keys, values = rows[sight.start : sight.stop].view(-1, 2, groups, head).unbind(1)
    q = queries.view(tokens, groups, members, head).permute(1, 2, 0, 3)  # group, member, row, head
    found = queries.new_empty((tokens, groups, members, head))
    size = max(1, _SCORES_MAX // (members * positions))
    for first in range(0, tokens, size):
        last = min(first + size, tokens)
        mask = _shown(sight, first, last, positions, queries.device)
        for group in range(groups):
            scores = torch.matmul(q[group, :, first:last], keys[:, group].t()).float()
            scores = torch.tanh(scores.mul_(spec.scale / cap)).mul_(cap)
            if mask is not None:
                scores.masked_fill_(~mask, -torch.inf)
            shares = torch.softmax(scores, -1).to(values.dtype)
            seen = torch.matmul(shares, values[:, group])  # (members, rows, head)
            found[first:last, group] = seen.transpose(0, 1)
    return found.view(tokens, -1)


def _shown(
    sight: Sight, first: int, last: int, positions: int, device: torch.device
) -> Tensor | None:
    if sight.causal:
        shown = torch.ones((last - first, positions), dtype=torch.bool, device=device)
        return shown.tril_(first)
    return None if sight.mask is None else sight.mask[first:last]
