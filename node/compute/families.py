"""What sets the served families apart when config.json is silent, and what changes nothing.

Source: transformers 5, `configuration_{llama,mistral,mixtral,qwen2,qwen3,qwen3_moe,gemma2,gemma3,
phi3}.py`, of which the defaults are copied here; further harmless fields from published configs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .fields import ABSENT, WHOLE, Fields, Unserved


@dataclass(frozen=True, slots=True)
class Family:
    """Names and defaults of one family."""

    architecture: str
    eps: float = 1e-6
    theta: float = 10_000.0
    tied: bool = False
    window: int | None = None  # when the config does not say
    biased: bool = False  # whether `attention_bias` is read
    turned_in_part: bool = False  # whether `partial_rotary_factor` is read
    numbers: Mapping[str, int] = field(default_factory=dict)  # where others must speak
    harmless: frozenset[str] = frozenset()
    only_when: Mapping[str, tuple[object, ...]] = field(default_factory=dict)

    def number(self, name: str) -> Any:
        """The default of a whole number, or that it must be there."""
        return self.numbers.get(name, ABSENT)


_ROUTER_TRAINING = frozenset({"output_router_logits", "router_aux_loss_coef"})
_GEMMA_FIXED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("gelu_pytorch_tanh",),  # the family computes with `hidden_activation`
    "use_bidirectional_attention": (False,),
}

FAMILIES = {
    "llama": Family("LlamaForCausalLM", biased=True),
    "mistral": Family("MistralForCausalLM", window=4096),
    "qwen2": Family("Qwen2ForCausalLM", window=4096),
    "qwen3": Family("Qwen3ForCausalLM", window=4096, biased=True, numbers={"head_dim": 128}),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        tied=True,
        window=4096,
        biased=True,
        numbers={"head_dim": 256},
        harmless=frozenset({"cache_implementation"}),
        only_when=_GEMMA_FIXED | {"sliding_window_size": (4096,)},
    ),
    "gemma3": Family(
        "Gemma3ForCausalLM",
        tied=True,
        window=4096,
        biased=True,
        numbers={
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "vocab_size": 262_208,
            "max_position_embeddings": 131_072,
        },
        harmless=frozenset({"cache_implementation", "_sliding_window_pattern"}),
        only_when=_GEMMA_FIXED,
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        eps=1e-5,
        turned_in_part=True,
        # auto_map names the publisher's own code, from which transformers' (and this) was taken
        harmless=frozenset({"auto_map", "embd_pdrop", "resid_pdrop"}),
        only_when={
            "full_attn_mod": (1,),
            "interpolate_factor": (1,),
            "lm_head_bias": (False,),
        },
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        eps=1e-5,
        theta=1e6,
        harmless=_ROUTER_TRAINING | {"router_jitter_noise"},
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        window=4096,
        biased=True,
        harmless=_ROUTER_TRAINING | {"max_window_layers"},
    ),
}
TYPES = {name: name for name in FAMILIES if name != "gemma3"} | {"gemma3_text": "gemma3"}

# A Gemma 3 that also sees keeps its text model in a config within the config.
_SEEING = "Gemma3ForConditionalGeneration"
_SEEING_PREFIX = "language_model.model."
_SEEING_OWN = frozenset(
    re.findall(
        r"\S+",
        """architectures model_type text_config vision_config mm_tokens_per_image boi_token_index
        eoi_token_index image_token_index initializer_range""",
    )
)

# Fields that no family's arithmetic reads at inference: names, training, generation defaults.
# (quantization_config is read with the weights that it describes: quant/settings.py.)
HARMLESS = frozenset(
    re.findall(
        r"\S+",
        """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled
    _name_or_path attention_dropout attn_implementation bad_words_ids begin_suppress_tokens
    bos_token_id chunk_size_feed_forward classifier_dropout cls_token_id decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    id2label initializer_range is_llama_config label2id length_penalty mask_token_id max_length
    max_new_tokens max_sequence_length min_length model_type name_or_path no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix pretraining_tp problem_type
    quantization_config remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript transformers_version
    transformers.js_config typical_p unk_token_id unsloth_fixed unsloth_version use_bfloat16
    use_cache
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


def identify(config: Mapping[str, Any]) -> tuple[str, Fields, str]:
    """The family of a config, the fields of its text model, and the prefix of its tensors."""
    fields = Fields(config, WHOLE)
    kind = fields.text("model_type", "")
    named = fields.take("architectures", None)
    inner = config.get("text_config")
    if kind == "gemma3" and isinstance(inner, dict):
        if named and named != [_SEEING]:
            raise Unserved(f"config.json: architectures {named} is not served")
        outer = {key: value for key, value in config.items() if key not in _SEEING_OWN}
        text = {key: value for key, value in inner.items() if key != "architectures"}
        text |= {"eos_token_id": config.get("eos_token_id") or inner.get("eos_token_id")}
        fields = Fields(outer | text, "config.json text_config")
        if fields.text("model_type", "gemma3_text") != "gemma3_text":
            raise fields.wrong("model_type", "is not gemma3_text")
        return "gemma3", fields, _SEEING_PREFIX
    if not kind and isinstance(named, list) and len(named) == 1:
        found = (f for f, one in FAMILIES.items() if one.architecture == named[0])
        family = next(found, "")
    else:
        family = TYPES.get(kind, "")
    if not family:
        raise Unserved(
            f"config.json: model_type {kind or named!r} is not served;"
            f" choose one of {', '.join(FAMILIES)}"
        )
    wanted = FAMILIES[family].architecture
    if named and named != [wanted]:
        raise Unserved(f"config.json: architectures {named} is not served; it must be {wanted}")
    return family, fields, "model."
