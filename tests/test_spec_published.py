"""The configs of well-known models, as published, mean what transformers makes of them."""

import copy
import json
import math
from typing import Any

import pytest
import transformers

from potluck.errors import UserError
from potluck.node.compute.layout import weight_shapes
from potluck.node.compute.ropespec import RopeSpec
from potluck.node.compute.spec import ModelSpec

# As published: gemma-2-2b, gemma-3-1b-it, gemma-3-4b-it, Phi-3-mini-128k, Phi-4-mini, Mixtral-8x7B
# and Qwen3-30B-A3B (their factors of longrope replaced).
PUBLISHED: dict[str, dict[str, Any]] = {
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "initializer_range": 0.02,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "model_type": "gemma2",
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "torch_dtype": "float32",
        "transformers_version": "4.42.4",
        "use_cache": True,
        "vocab_size": 256000,
    },
    "gemma3-text": {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 106],
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "initializer_range": 0.02,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16",
        "vocab_size": 262144,
    },
    "gemma3": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "torch_dtype": "bfloat16",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "bos_token_id": 1,
        "embd_pdrop": 0.0,
        "eos_token_id": 32000,
        "hidden_act": "silu",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "model_type": "phi3",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096,
        "pad_token_id": 32000,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "long_factor": [2.0] * 48,
            "short_factor": [1.0] * 48,
            "type": "longrope",
        },
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": False,
        "vocab_size": 32064,
    },
    "phi4": {
        "architectures": ["Phi3ForCausalLM"],
        "full_attn_mod": 1,
        "hidden_act": "silu",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "phi3",
        "num_attention_heads": 24,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "long_factor": [2.0] * 48,
            "short_factor": [1.0] * 48,
            "type": "longrope",
        },
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": True,
        "vocab_size": 200064,
    },
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mixtral",
        "num_attention_heads": 32,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "output_router_logits": False,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.02,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "qwen3-moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "output_router_logits": False,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
}


def published(name: str, **changes: Any) -> ModelSpec:
    return ModelSpec.from_config(PUBLISHED[name] | changes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_means_what_transformers_means(name: str) -> None:
    """Read by us, and written anew by transformers with every default, then read by us."""
    ours = published(name)
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    config = known[PUBLISHED[name]["model_type"]].from_dict(copy.deepcopy(PUBLISHED[name]))
    again = ModelSpec.from_config(json.loads(config.to_json_string(use_diff=False)))
    assert again.canonical() == ours.canonical()
    assert (again.context, again.prefix) == (ours.context, ours.prefix)


def test_gemmas_look_far_in_some_blocks_and_near_in_the_others() -> None:
    second, third = published("gemma2"), published("gemma3")
    assert second.windows[:4] == (4096, None, 4096, None)
    assert third.windows[:7] == (1024,) * 5 + (None, 1024)
    assert (second.attn_softcap, second.logit_softcap) == (50.0, 30.0)
    assert (third.attn_softcap, third.logit_softcap) == (None, None)
    assert third.rope_of(5) == RopeSpec(kind="linear", theta=1e6, factor=8.0)
    assert third.rope_of(4) == third.rope_of(6) == RopeSpec()
    assert (third.heads, third.kv_heads, third.head_dim) == (8, 4, 256)
    assert (third.context, third.eos) == (131_072, (1, 106))
    assert third.prefix == "language_model.model."
    assert second.scale == 1 / 16
    assert not second.qk_norm and third.qk_norm


def test_phis_turn_by_two_lists_and_the_fourth_in_part() -> None:
    third, fourth = published("phi3"), published("phi4")
    assert third.rope.kind == fourth.rope.kind == "longrope"
    assert (third.rope.factor, third.rope.original_positions) == (32.0, 4096)
    assert (third.head_dim, third.rotary_dim) == (96, 96)
    assert (fourth.head_dim, fourth.rotary_dim) == (128, 96)
    assert (
        published("phi3", rope_scaling=PUBLISHED["phi3"]["rope_scaling"] | {"type": "su"}) == third
    )


def test_a_mixture_has_experts_where_it_says_so() -> None:
    found = published("qwen3-moe", mlp_only_layers=[3, 5], decoder_sparse_step=2)
    assert [found.experts_of(index) for index in range(6)] == [0, 128, 0, 0, 0, 0]
    assert (found.ffn_of(0), found.ffn_of(1)) == (6144, 768)
    assert found.block_parameters_of(1) > found.block_parameters_of(0)
    assert found.block_parameters == found.block_parameters_of(1)
    mixtral = published("mixtral")
    assert (mixtral.experts, mixtral.experts_per_token, mixtral.renormalise) == (8, 2, True)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameters_of_a_published_block_are_those_of_its_tensors(name: str) -> None:
    found = published(name)
    for index in (0, found.blocks - 1):
        shapes = weight_shapes(found, index)
        assert found.block_parameters_of(index) == sum(map(math.prod, shapes.values()))


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("gemma2", {"hidden_activation": "silu"}, "hidden_activation 'silu'"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"sliding_window": None}, "no sliding_window"),
        ("gemma3-text", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping 30"),
        ("gemma3-text", {"rope_parameters": {"rope_type": "default"}}, "two kinds of block"),
        ("gemma3", {"architectures": ["Gemma3ForSequenceClassification"]}, "architectures"),
        ("phi3", {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "short_factor"),
        ("phi3", {"lm_head_bias": True}, "lm_head_bias"),
        ("phi4", {"partial_rotary_factor": 0.001}, "turns 0 of 128"),
        ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
        ("mixtral", {"num_experts": 4}, "differs from num_local_experts"),
        ("qwen3-moe", {"mlp_only_layers": "all"}, "mlp_only_layers"),
        ("qwen3-moe", {"decoder_sparse_step": 100}, "leaves no block with experts"),
        ("qwen3-moe", {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size"),
    ],
)
def test_what_these_families_do_not_do_is_refused_by_name(
    name: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError) as failure:
        published(name, **changes)
    assert named in str(failure.value)
    assert "\n" not in str(failure.value)
