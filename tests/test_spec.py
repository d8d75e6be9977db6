"""What a config says is used, known to be harmless, or refused by name."""

import hashlib
import json
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import UserError
from potluck.node.compute.families import HARMLESS
from potluck.node.compute.ropespec import RopeSpec
from potluck.node.compute.spec import ModelSpec

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
MISTRAL = LLAMA | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
QWEN2 = LLAMA | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
QWEN3 = LLAMA | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
YARN = {"factor": 4.0, "original_max_position_embeddings": 256}


def spec(base: dict[str, Any] = LLAMA, **changes: Any) -> ModelSpec:
    return ModelSpec.from_config(base | changes)


def test_the_numbers_are_those_of_the_config() -> None:
    found = spec(eos_token_id=[2, 7], bos_token_id=1)
    assert (found.hidden, found.ffn, found.blocks, found.vocab) == (64, 96, 4, 300)
    assert (found.heads, found.kv_heads, found.head_dim) == (8, 2, 8)
    assert (found.eps, found.tied, found.positions, found.context) == (1e-5, False, 1024, 1024)
    assert (found.eos, found.bos) == ((2, 7), 1)
    assert found.rope == RopeSpec(theta=10_000.0)
    assert found.windows == (None,) * 4
    assert found.kv_width == 2 * 2 * 8


def test_the_switches_are_those_of_the_family() -> None:
    def switches(found: ModelSpec) -> tuple[bool, ...]:
        return (found.qkv_bias, found.out_bias, found.mlp_bias, found.qk_norm)

    assert switches(spec()) == (False, False, False, False)
    assert switches(spec(attention_bias=True, mlp_bias=True)) == (True, True, True, False)
    assert switches(spec(MISTRAL)) == (False, False, False, False)
    assert switches(spec(QWEN2)) == (True, False, False, False)
    assert switches(spec(QWEN3)) == (False, False, False, True)
    assert switches(spec(QWEN3, attention_bias=True)) == (True, True, False, True)


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        (MISTRAL, (4096,) * 4),
        (MISTRAL | {"sliding_window": 9}, (9,) * 4),
        (MISTRAL | {"sliding_window": None}, (None,) * 4),
        (QWEN2, (None,) * 4),
        (QWEN2 | {"sliding_window": 9, "max_window_layers": 1}, (None,) * 4),
        (
            QWEN2 | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
            (None, 9, 9, 9),
        ),
        (QWEN3 | {"use_sliding_window": True, "max_window_layers": 0}, (4096,) * 4),
        (
            QWEN2
            | {
                "use_sliding_window": True,
                "sliding_window": 9,
                "layer_types": ["sliding_attention", *["full_attention"] * 3],
            },
            (9, None, None, None),
        ),
    ],
)
def test_windows_are_those_of_each_block(
    config: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    assert ModelSpec.from_config(config).windows == windows


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_silent_config_means_what_transformers_means(family: str) -> None:
    config = transformers.AutoConfig.for_model(family)
    needed = {"model_type", "hidden_size", "intermediate_size", "num_hidden_layers"}
    needed |= {"num_attention_heads", "num_key_value_heads", "vocab_size"}
    needed |= {"max_position_embeddings"}
    full = json.loads(config.to_json_string(use_diff=False))
    named = {key: value for key, value in full.items() if key in needed}
    explicit = ModelSpec.from_config(json.loads(config.to_json_string()))
    silent = ModelSpec.from_config(named)
    assert silent.canonical() == explicit.canonical()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_type": "default"}),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0},
        ),
        (
            {"rope_scaling": {"rope_type": "dynamic", "type": "dynamic", "factor": 2.0}},
            {"rope_type": "dynamic", "factor": 2.0},
        ),
        (
            {"rope_scaling": {"type": "yarn", **YARN}, "rope_theta": 1e6},
            {"rope_type": "yarn", "rope_theta": 1e6, **YARN},
        ),
        (
            {
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": None},
                "original_max_position_embeddings": 256,
            },
            {"rope_type": "yarn", **YARN},
        ),
    ],
)
def test_old_and_new_rope_settings_mean_the_same(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert spec(**old) == spec(rope_parameters=new)
    assert spec(**old).rope.kind == new["rope_type"]


def test_the_context_is_what_scaling_makes_of_the_positions() -> None:
    assert spec(rope_scaling={"type": "linear", "factor": 2.5}).context == 2560
    assert spec(rope_scaling={"type": "dynamic", "factor": 2.0}).context == 2048
    assert spec(rope_scaling={"type": "yarn", **YARN}).context == 1024
    assert spec(rope_scaling={"type": "yarn", **YARN | {"factor": 8.0}}).context == 2048


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"model_type": None, "architectures": None}, "model_type"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_multiplier": 0.5}, "attention_multiplier"),
        ({"logit_scale": 0.1}, "logit_scale"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "auto_map"),
        ({"num_experts": 8}, "num_experts"),
        ({"something_new": 1}, "something_new 1 is a field this version does not know"),
        ({"rope_scaling": {"type": "proportional", "factor": 2.0}}, "'proportional'"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "short_factor is missing"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]}},
            "short_factor is not a list of 4 numbers",
        ),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling: factor"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor is '2'"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "alpha": 1}}, "alpha"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [1]}}, "mrope_section"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial"),
        ({"rope_parameters": []}, "rope_parameters"),
        ({"sliding_window": 8}, "sliding_window"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"num_attention_heads": 6}, "head_dim is missing"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"eos_token_id": ["x"]}, "eos_token_id"),
    ],
)
def test_what_is_not_served_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as failure:
        spec(**changes)
    assert named in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("base", "changes", "named"),
    [
        (MISTRAL, {"attention_bias": True}, "attention_bias"),
        (MISTRAL, {"layer_types": ["full_attention"] * 4}, "layer_types"),
        (QWEN2, {"mlp_bias": True}, "mlp_bias"),
        (QWEN2, {"layer_types": ["full_attention"] * 3}, "layer_types"),
        (QWEN2, {"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        (QWEN2, {"layer_types": ["sliding_attention"] * 4}, "no sliding_window"),
    ],
)
def test_what_another_family_does_is_refused_by_name(
    base: dict[str, Any], changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        spec(base, **changes)


@given(st.sampled_from(sorted(HARMLESS - {"model_type", "eos_token_id", "bos_token_id"})))
def test_harmless_fields_change_nothing(name: str) -> None:
    assert spec(**{name: 1}) == spec()


@given(st.dictionaries(st.sampled_from(sorted(LLAMA)), st.none() | st.integers() | st.text()))
def test_no_config_is_worse_than_refused(changes: dict[str, Any]) -> None:
    try:
        spec(**changes)
    except UserError as error:
        assert "config.json" in str(error)


def test_every_arithmetic_field_shows_in_the_canonical_form() -> None:
    base = spec().canonical()
    json.dumps(base, allow_nan=False)
    for changes in (
        {"rms_norm_eps": 1e-6},
        {"rope_theta": 1e6},
        {"max_position_embeddings": 2048},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"head_dim": 16},
    ):
        assert spec(**changes).canonical() != base
    assert spec(MISTRAL, sliding_window=5).canonical() != spec(MISTRAL).canonical()
    assert spec(eos_token_id=5, bos_token_id=4).canonical() == base


def test_the_parameters_of_a_block_are_counted() -> None:
    for base, extra in ((LLAMA, {"attention_bias": True, "mlp_bias": True}), (QWEN2, {})):
        config = transformers.AutoConfig.for_model(**(base | extra))
        model = transformers.AutoModelForCausalLM.from_config(config)
        counted = sum(weight.numel() for weight in model.model.layers[0].parameters())
        assert spec(base, **extra).block_parameters == counted
    config = transformers.AutoConfig.for_model(**QWEN3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    counted = sum(weight.numel() for weight in model.model.layers[0].parameters())
    assert spec(QWEN3).block_parameters == counted


def test_a_model_keeps_its_digest() -> None:
    """The canonical forms of the first version: whatever came later must not show in them."""
    long = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    forms = {
        "fddf1135a5ff167a": spec(),
        "3714947b5bf374a5": spec(
            rope_scaling=long | {"original_max_position_embeddings": 64},
            attention_bias=True,
            mlp_bias=True,
        ),
        "e3af453d4703dc5d": spec(MISTRAL, sliding_window=9),
        "81c24dff641eda66": spec(QWEN2, tie_word_embeddings=True),
        "361f78b878fe7ef3": spec(QWEN3, rope_scaling={"type": "yarn", **YARN}),
    }
    for digest, found in forms.items():
        text = json.dumps(found.canonical(), sort_keys=True, separators=(",", ":"))
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest
