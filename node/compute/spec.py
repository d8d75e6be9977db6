"""What a model computes: the arithmetic of config.json, as one frozen fact.

The families share one block (Llama 2 and 3, Mistral, Mixtral, Qwen2, Qwen3 and its mixture, Gemma
2 and 3, Phi-3 and 4); they differ in the numbers and switches below. A config field is used, or
known to change nothing, or it is refused by name: a model that is served slightly wrong is worse
than a model that is refused.

Source: transformers 5, `configuration_*.py` and `modeling_*.py` of these families.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from .families import FAMILIES, HARMLESS, ONLY_WHEN, Family, identify
from .fields import Fields
from .ropespec import RopeSpec, rope_from, ropes_from, rotary_from

_BLOCKS_MAX = 4096  # guess: an order above the deepest model known
_WIDTH_MAX = 1 << 20  # guess: above any hidden, ffn or head count known
_VOCAB_MAX = 1 << 24
_CONTEXT_MAX = 1 << 27
_EXPERTS_MAX = 1 << 16
_NO_ARITHMETIC = ("eos", "bos", "prefix")
_FIRST_LATER = "norm_offset"  # the fields from here on came later: see `canonical`


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The numbers and switches of one model. Widths are in elements."""

    family: str
    hidden: int
    blocks: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int  # of a dense block
    vocab: int
    eps: float
    rope: RopeSpec
    windows: tuple[int | None, ...]  # per block: how many positions back attention sees; None: all
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied: bool  # the head is the embedding
    positions: int  # max_position_embeddings
    eos: tuple[int, ...] = ()
    bos: int | None = None
    prefix: str = "model."  # of the names of tensors: `{prefix}layers.0...`
    norm_offset: float = 0.0  # added to the weight of every norm (Gemma: 1), q's and k's too
    post_norms: bool = False  # attention's and the feed-forward's output is normed before it adds
    activation: str = "silu"  # of the gate: silu or gelu_tanh
    attn_softcap: float | None = None  # scores become cap * tanh(score / cap)
    logit_softcap: float | None = None  # and so do logits
    query_scale: float | None = None  # on scores; None: 1 / sqrt(head_dim)
    embed_scale: float = 1.0  # on embeddings
    partial_rotary: int | None = None  # elements of a head that are turned, its first; None: all
    local_rope: RopeSpec | None = None  # of blocks with a window; None: `rope`
    experts: int = 0  # feed-forwards of a block that is a mixture; 0: no block is
    experts_per_token: int = 0
    expert_ffn: int = 0
    renormalise: bool = False  # the chosen experts' shares are made to sum to 1
    dense: tuple[int, ...] = ()  # blocks that are no mixture although `experts` is set
    general: str | None = None  # config.json of a model that only transformers' code computes

    @staticmethod
    def from_config(config: dict[str, Any]) -> "ModelSpec":
        """Read config.json's object. Raises UserError naming the first field that is not served."""
        name, fields, prefix = identify(config)
        family = FAMILIES[name]
        hidden = fields.whole("hidden_size", family.number("hidden_size"), top=_WIDTH_MAX)
        blocks = fields.whole(
            "num_hidden_layers", family.number("num_hidden_layers"), top=_BLOCKS_MAX
        )
        heads = fields.whole(
            "num_attention_heads", family.number("num_attention_heads"), top=_WIDTH_MAX
        )
        kv_default = family.numbers.get("num_key_value_heads", heads)
        kv_heads = fields.whole("num_key_value_heads", kv_default, top=_WIDTH_MAX)
        head_default = hidden // heads if hidden % heads == 0 else family.number("head_dim")
        head_dim = fields.whole(
            "head_dim", family.numbers.get("head_dim", head_default), top=_WIDTH_MAX
        )
        ffn = fields.whole("intermediate_size", family.number("intermediate_size"), top=_WIDTH_MAX)
        vocab = fields.whole("vocab_size", family.number("vocab_size"), top=_VOCAB_MAX)
        positions = fields.whole(
            "max_position_embeddings", family.number("max_position_embeddings"), top=_CONTEXT_MAX
        )
        bias = family.biased and fields.switch("attention_bias", False)
        rotary = rotary_from(fields, head_dim) if family.turned_in_part else head_dim
        rope, local_rope = _ropes(fields, name, family, positions, rotary)
        later = (
            _gemma(fields, hidden, second=name == "gemma2") if name in ("gemma2", "gemma3") else {}
        )
        if name in ("mixtral", "qwen3_moe"):
            later = _mixture(fields, name, blocks, ffn)
        spec = ModelSpec(
            family=name,
            hidden=hidden,
            blocks=blocks,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn=ffn,
            vocab=vocab,
            eps=fields.number("rms_norm_eps", family.eps),
            rope=rope,
            windows=_windows(fields, name, family, blocks),
            qkv_bias=bias or name == "qwen2",
            out_bias=bias,
            mlp_bias=name == "llama" and fields.switch("mlp_bias", False),
            qk_norm=name in ("qwen3", "qwen3_moe", "gemma3"),
            tied=fields.switch("tie_word_embeddings", family.tied),
            positions=positions,
            eos=fields.ids("eos_token_id", vocab),
            bos=next(iter(fields.ids("bos_token_id", vocab)), None),
            prefix=prefix,
            partial_rotary=None if rotary == head_dim else rotary,
            local_rope=local_rope,
            **later,
        )
        fields.refuse_unknown(HARMLESS | family.harmless, {**ONLY_WHEN, **family.only_when})
        if heads % kv_heads:
            raise fields.wrong("num_key_value_heads", f"does not divide {heads} attention heads")
        if head_dim % 2:
            raise fields.wrong("head_dim", "is odd, and rotary embedding turns pairs")
        return spec

    @property
    def context(self) -> int:
        """How many positions a session may have.

        Source: vLLM's `_get_and_verify_max_len`: linear and dynamic scaling stretch the positions
        of the config by their factor, yarn those of its training; the other kinds count them
        already, and so does Gemma 3.
        """
        rope = self.rope
        if rope.kind in ("linear", "dynamic") and self.family != "gemma3":
            return int(self.positions * rope.factor)
        if rope.kind == "yarn":
            return max(self.positions, int(rope.original_positions * rope.factor))
        return self.positions

    @property
    def scale(self) -> float:
        """The factor on the products of queries with keys."""
        return 1 / math.sqrt(self.head_dim) if self.query_scale is None else self.query_scale

    @property
    def rotary_dim(self) -> int:
        """How many of a head's first elements are turned: the others pass."""
        return self.head_dim if self.partial_rotary is None else self.partial_rotary

    def rope_of(self, index: int) -> RopeSpec:
        """The rotary embedding of a block."""
        if self.local_rope is not None and self.windows[index] is not None:
            return self.local_rope
        return self.rope

    def experts_of(self, index: int) -> int:
        """How many feed-forwards block `index` chooses from; 0: it has one, and no router."""
        return 0 if index in self.dense else self.experts

    def ffn_of(self, index: int) -> int:
        """The width of each feed-forward of block `index`."""
        return self.expert_ffn if self.experts_of(index) else self.ffn

    def block_parameters_of(self, index: int) -> int:
        """How many numbers the weights of block `index` are."""
        heads = self.heads + 2 * self.kv_heads
        attention = self.hidden * self.head_dim * (heads + self.heads)
        biases = self.qkv_bias * heads * self.head_dim + self.out_bias * self.hidden
        norms = (4 if self.post_norms else 2) * self.hidden + 2 * self.qk_norm * self.head_dim
        experts, ffn = self.experts_of(index), self.ffn_of(index)
        feed = 3 * self.hidden * ffn + self.mlp_bias * (2 * ffn + self.hidden)
        feeds = feed * experts + self.hidden * experts if experts else feed
        return attention + biases + norms + feeds

    @property
    def block_parameters(self) -> int:
        """How many numbers the weights of the largest block are."""
        kinds = {self.experts_of(index): index for index in range(self.blocks)}
        return max(self.block_parameters_of(index) for index in kinds.values())

    @property
    def kv_width(self) -> int:
        """Numbers that one block remembers for one position: its keys and its values."""
        return 2 * self.kv_heads * self.head_dim

    def canonical(self) -> dict[str, Any]:
        """The fields that the arithmetic depends on, for the digest.

        Those that came after the first four families show only where they say something, so that
        a model keeps its digest. A model of the general path is its config.
        """
        if self.general is not None:
            return {"general": self.general}
        fact: dict[str, Any] = {}
        later = False
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            later = later or field.name == _FIRST_LATER
            if field.name in _NO_ARITHMETIC or (later and value == field.default):
                continue
            if isinstance(value, RopeSpec):
                value = value.canonical()
            fact[field.name] = list(value) if isinstance(value, tuple) else value
        return fact


def _ropes(
    fields: Fields, name: str, family: Family, positions: int, rotary: int
) -> tuple[RopeSpec, RopeSpec | None]:
    if name == "gemma3":
        return ropes_from(fields, positions, rotary, theta=1e6, local_theta=10_000.0)
    return rope_from(fields, positions, rotary, family.theta, su=name == "phi3"), None


def _gemma(fields: Fields, hidden: int, *, second: bool) -> dict[str, Any]:
    """What sets Gemma 2 and 3 apart from all others."""
    activation = fields.text("hidden_activation", "gelu_pytorch_tanh")
    if activation != "gelu_pytorch_tanh":
        raise fields.unserved("hidden_activation", f"{activation!r} is not served")
    attention = fields.optional_number("attn_logit_softcapping", 50.0 if second else None)
    if attention is not None and not second:
        raise fields.unserved("attn_logit_softcapping", f"{attention:g} is not served")
    return {
        "norm_offset": 1.0,
        "post_norms": True,
        "activation": "gelu_tanh",
        "attn_softcap": attention,
        "logit_softcap": fields.optional_number(
            "final_logit_softcapping", 30.0 if second else None
        ),
        "query_scale": 1 / math.sqrt(fields.number("query_pre_attn_scalar", 256)),
        "embed_scale": math.sqrt(hidden),
    }


def _mixture(fields: Fields, name: str, blocks: int, ffn: int) -> dict[str, Any]:
    """The experts of Mixtral and of Qwen3's mixture."""
    counts = {
        one: fields.whole(one, top=_EXPERTS_MAX)
        for one in ("num_experts", "num_local_experts")
        if fields.has(one)
    }
    if len(set(counts.values())) > 1:
        raise fields.wrong("num_experts", "differs from num_local_experts")
    mixtral = name == "mixtral"
    experts = next(iter(counts.values()), 8 if mixtral else 128)
    chosen = fields.whole("num_experts_per_tok", 2 if mixtral else 8, top=experts)
    dense: set[int] = set()
    if not mixtral:
        every = fields.whole("decoder_sparse_step", 1, top=_BLOCKS_MAX)
        dense = {index for index in range(blocks) if (index + 1) % every}
        named = fields.take("mlp_only_layers", [])
        if not isinstance(named, list) or not all(type(one) is int for one in named):
            raise fields.wrong("mlp_only_layers", f"is {named!r}, not a list of blocks")
        dense |= set(named) & set(range(blocks))
    if len(dense) == blocks:
        raise fields.unserved("mlp_only_layers", "leaves no block with experts")
    return {
        "experts": experts,
        "experts_per_token": chosen,
        "expert_ffn": ffn
        if mixtral
        else fields.whole("moe_intermediate_size", 768, top=_WIDTH_MAX),
        "renormalise": True if mixtral else fields.switch("norm_topk_prob", False),
        "dense": tuple(sorted(dense)),
    }


def _windows(fields: Fields, name: str, family: Family, blocks: int) -> tuple[int | None, ...]:
    """For each block, the window of its attention."""
    kinds = fields.take("layer_types", None)
    window: int | None = None
    if name != "llama":
        window = fields.optional_whole("sliding_window", family.window, top=_CONTEXT_MAX)
    if name in ("qwen2", "qwen3", "qwen3_moe") and not fields.switch("use_sliding_window", False):
        window = None
    near = 0 if window is not None else blocks  # the first block with a window
    every = blocks + 1  # one of so many sees everything
    if name in ("qwen2", "qwen3"):
        near = max(near, fields.whole("max_window_layers", 28, least=0, top=_BLOCKS_MAX))
    elif name == "gemma2":
        near, every = 0, 2
    elif name == "gemma3":
        near, every = 0, fields.whole("sliding_window_pattern", 6, top=_BLOCKS_MAX)
    default = [
        "sliding_attention" if index >= near and (index + 1) % every else "full_attention"
        for index in range(blocks)
    ]
    if kinds is None:
        kinds = default
    elif name in ("llama", "mistral", "mixtral", "phi3", "qwen3_moe") and kinds != default:
        raise fields.unserved("layer_types", f"differs from {default[0]} in every block")
    if not isinstance(kinds, list) or len(kinds) != blocks:
        raise fields.wrong("layer_types", f"does not name {blocks} blocks")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise fields.unserved("layer_types", f"has {kind!r}, which is not served")
        if kind == "sliding_attention" and window is None:
            raise fields.wrong("layer_types", "has sliding_attention, but no sliding_window is set")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
