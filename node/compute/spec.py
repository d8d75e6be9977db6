"""What a model computes: the arithmetic of config.json, as one frozen fact.

Four families share one block (Llama 2 and 3, Mistral, Qwen2, Qwen3); they differ in the numbers
and switches below. A config field is used, or known to change nothing, or it is refused by name:
a model that is served slightly wrong is worse than a model that is refused.

Source: transformers 5, `configuration_{llama,mistral,qwen2,qwen3}.py`, of which the defaults are
copied here; the names of weights follow its checkpoints.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from ...errors import UserError
from .fields import ABSENT, Fields
from .ropespec import RopeSpec, rope_from

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

# Fields that no family's arithmetic reads at inference: names, training, generation defaults.
HARMLESS = frozenset(
    re.findall(
        r"\S+",
        """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled
    _name_or_path attention_dropout attn_implementation bad_words_ids begin_suppress_tokens
    bos_token_id chunk_size_feed_forward classifier_dropout cls_token_id decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    id2label initializer_range is_llama_config label2id length_penalty mask_token_id
    max_length max_new_tokens max_sequence_length min_length model_type name_or_path
    no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix pretraining_tp problem_type
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p
    torch_dtype torchscript transformers_version transformers.js_config typical_p unk_token_id
    unsloth_fixed unsloth_version use_bfloat16 use_cache
    """,
    )
)

# Fields that are harmless as long as they say what the families do anyway.
ONLY_WHEN: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),  # of families that do not read it
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "partial_rotary_factor": (1,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "use_qk_norm": (False,),
    "per_layer_config": ({},),
}

_BLOCKS_MAX = 4096  # guess: an order above the deepest model known
_WIDTH_MAX = 1 << 20  # guess: above any hidden, ffn or head count known
_VOCAB_MAX = 1 << 24
_CONTEXT_MAX = 1 << 27


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The numbers and switches of one model. Widths are in elements."""

    family: str
    hidden: int
    blocks: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
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

    @staticmethod
    def from_config(config: dict[str, Any]) -> "ModelSpec":
        """Read config.json's object. Raises UserError naming the first field that is not served."""
        fields = Fields(config, "config.json")
        family = _family(fields)
        hidden = fields.whole("hidden_size", top=_WIDTH_MAX)
        blocks = fields.whole("num_hidden_layers", top=_BLOCKS_MAX)
        heads = fields.whole("num_attention_heads", top=_WIDTH_MAX)
        kv_heads = fields.whole("num_key_value_heads", heads, top=_WIDTH_MAX)
        head_dim = fields.whole("head_dim", _head_dim(family, hidden, heads), top=_WIDTH_MAX)
        ffn = fields.whole("intermediate_size", top=_WIDTH_MAX)
        vocab = fields.whole("vocab_size", top=_VOCAB_MAX)
        positions = fields.whole("max_position_embeddings", top=_CONTEXT_MAX)
        eps = fields.number("rms_norm_eps", 1e-6)
        tied = fields.switch("tie_word_embeddings", False)
        attention_bias = family in ("llama", "qwen3") and fields.switch("attention_bias", False)
        mlp_bias = family == "llama" and fields.switch("mlp_bias", False)
        windows = _windows(fields, family, blocks)
        rope = rope_from(fields, positions, head_dim)
        eos = fields.ids("eos_token_id", vocab)
        bos = fields.ids("bos_token_id", vocab)
        fields.refuse_unknown(HARMLESS, ONLY_WHEN)
        if heads % kv_heads:
            raise fields.wrong("num_key_value_heads", f"does not divide {heads} attention heads")
        if head_dim % 2:
            raise fields.wrong("head_dim", "is odd, and rotary embedding turns pairs")
        return ModelSpec(
            family=family,
            hidden=hidden,
            blocks=blocks,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn=ffn,
            vocab=vocab,
            eps=eps,
            rope=rope,
            windows=windows,
            qkv_bias=attention_bias or family == "qwen2",
            out_bias=attention_bias,
            mlp_bias=mlp_bias,
            qk_norm=family == "qwen3",
            tied=tied,
            positions=positions,
            eos=eos,
            bos=bos[0] if bos else None,
        )

    @property
    def context(self) -> int:
        """How many positions a session may have.

        Source: vLLM's `_get_and_verify_max_len`: linear and dynamic scaling stretch the positions
        of the config by their factor, yarn those of its training; llama3 counts them already.
        """
        rope = self.rope
        if rope.kind in ("linear", "dynamic"):
            return int(self.positions * rope.factor)
        if rope.kind == "yarn":
            return max(self.positions, int(rope.original_positions * rope.factor))
        return self.positions

    @property
    def block_parameters(self) -> int:
        """How many numbers the weights of one block are."""
        heads = self.heads + 2 * self.kv_heads
        attention = self.hidden * self.head_dim * (heads + self.heads)
        biases = self.qkv_bias * heads * self.head_dim + self.out_bias * self.hidden
        feed = 3 * self.hidden * self.ffn + self.mlp_bias * (2 * self.ffn + self.hidden)
        return attention + biases + feed + 2 * self.hidden + 2 * self.qk_norm * self.head_dim

    @property
    def kv_width(self) -> int:
        """Numbers that one block remembers for one position: its keys and its values."""
        return 2 * self.kv_heads * self.head_dim

    def canonical(self) -> dict[str, Any]:
        """The fields that the arithmetic depends on, for the digest."""
        fact = dataclasses.asdict(self)
        del fact["eos"], fact["bos"]
        fact["windows"] = list(self.windows)
        return fact


def _head_dim(family: str, hidden: int, heads: int) -> int | object:
    """The head's width when the config is silent; a family without a default must name it."""
    if family == "qwen3":
        return 128  # Qwen3Config's default, whatever the width
    return hidden // heads if hidden % heads == 0 else ABSENT


def _family(fields: Fields) -> str:
    family = fields.text("model_type", "")
    named = fields.take("architectures", None)
    if not family and isinstance(named, list) and len(named) == 1:
        family = next((f for f, name in ARCHITECTURES.items() if name == named[0]), "")
    if family not in ARCHITECTURES:
        raise UserError(
            f"config.json: model_type {family or named!r} is not served;"
            f" choose one of {', '.join(ARCHITECTURES)}"
        )
    if named and named != [ARCHITECTURES[family]]:
        raise UserError(
            f"config.json: architectures {named} is not served; it must be {ARCHITECTURES[family]}"
        )
    return family


def _windows(fields: Fields, family: str, blocks: int) -> tuple[int | None, ...]:
    """For each block, the window of its attention."""
    kinds = fields.take("layer_types", None)
    if family == "llama":
        window = None
        default = ["full_attention"] * blocks
    elif family == "mistral":
        window = fields.optional_whole("sliding_window", 4096, top=_CONTEXT_MAX)
        default = ["full_attention" if window is None else "sliding_attention"] * blocks
    else:
        used = fields.switch("use_sliding_window", False)
        window = fields.optional_whole("sliding_window", 4096, top=_CONTEXT_MAX)
        first = fields.whole("max_window_layers", 28, least=0, top=_BLOCKS_MAX)
        window = window if used else None
        default = [
            "sliding_attention" if window is not None and index >= first else "full_attention"
            for index in range(blocks)
        ]
    if kinds is None:
        kinds = default
    elif family in ("llama", "mistral") and kinds != default:
        raise fields.wrong("layer_types", f"differs from {default[0]} in every block")
    if not isinstance(kinds, list) or len(kinds) != blocks:
        raise fields.wrong("layer_types", f"does not name {blocks} blocks")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise fields.wrong("layer_types", f"has {kind!r}, which is not served")
        if kind == "sliding_attention" and window is None:
            raise fields.wrong("layer_types", "has sliding_attention, but no sliding_window is set")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
