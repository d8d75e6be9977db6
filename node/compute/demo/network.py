"""A Llama for training: whole windows in, logits out, no cache.

The parameters bear the names of the Hugging Face layout, so that saving is a change of dtype and
nothing else. The swarm computes with the folder above; this is only as general as the demo needs.

Source: Touvron et al., 2023; transformers, LlamaForCausalLM, equal to it within 1e-4 in float32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the network. As they stand: 3.7 million parameters, 7.1 MiB in bfloat16."""

    vocabulary: int = 3072
    width: int = 192
    blocks: int = 8
    heads: int = 6
    kv_heads: int = 2
    head_width: int = 32
    inner_width: int = 512
    context: int = 1024
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5


class Attention(nn.Module):
    """Causal self-attention with grouped keys and values, and rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.width, shape.heads * shape.head_width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.kv_heads * shape.head_width, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.kv_heads * shape.head_width, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_width, shape.width, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """hidden: (rows, tokens, width); cos and sin: (tokens, head_width)."""
        rows, tokens, _ = hidden.shape
        q, k, v = (
            projected.view(rows, tokens, -1, self.shape.head_width).transpose(1, 2)
            for projected in (self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden))
        )
        group = self.shape.heads // self.shape.kv_heads
        q, k = rotate(q, cos, sin), rotate(k, cos, sin).repeat_interleave(group, dim=1)
        v = v.float().repeat_interleave(group, dim=1)
        with torch.autocast("cpu", enabled=False):  # this kernel is the faster one in float32
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(rows, tokens, -1))
        return out


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.inner_width, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.inner_width, bias=False)
        self.down_proj = nn.Linear(shape.inner_width, shape.width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        gate = nn.functional.silu(self.gate_proj(hidden))
        out: Tensor = self.down_proj(gate * self.up_proj(hidden))
        return out


class Block(nn.Module):
    """Attention, then the MLP, each on a normed copy of the stream it adds to."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.width, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, shape.norm_eps)
        self.mlp = Mlp(shape)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin)
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


class Llama(nn.Module):
    """The whole network; the embedding is also the head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.blocks))
        self.norm = nn.RMSNorm(shape.width, shape.norm_eps)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)  # each block starts as the identity

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (rows, tokens). Returns logits: (rows, tokens, vocabulary)."""
        hidden: Tensor = self.embed_tokens(ids)
        cos, sin = rotary_table(self.shape, ids.shape[1])
        for block in self.layers:
            hidden = block(hidden, cos, sin)
        return nn.functional.linear(self.norm(hidden), self.embed_tokens.weight)


def rotary_table(shape: Shape, tokens: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (tokens, head_width), the two halves of a head alike."""
    exponents = torch.arange(0, shape.head_width, 2) / shape.head_width
    angles = torch.outer(torch.arange(tokens), shape.rope_theta**-exponents).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-high, low), dim=-1) * sin
