"""Models that only transformers' code knows: the same tokens as its own, however they are split."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from potluck.errors import RemoteError, UserError
from potluck.node.compute.cache import Cache
from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.choice import StageWish, open_stage
from potluck.node.compute.general import spec_of
from potluck.node.compute.head import Ends
from potluck.node.compute.spec import ModelSpec
from potluck.node.compute.stage import Stage
from potluck.swarm.blocks import BlockRange

TOLERANCE = 1e-4
PROMPT = (3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26)
NEW_TOKENS = 24
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OLDER: dict[str, Any] = {
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "vocab_size": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": OLDER | {"scale_attn_by_inverse_layer_idx": True},  # layers that know their number
    "gpt_neox": SMALL,
    "opt": SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "falcon": SMALL | {"multi_query": True, "new_decoder_architecture": False},
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 96},
    "stablelm": SMALL | {"num_key_value_heads": 2},
    "cohere2": SMALL | {"num_hidden_layers": 5, "sliding_window": 8},  # two kinds of layer
    "granite": SMALL | {"embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "olmoe": SMALL | {"num_experts": 4, "num_experts_per_tok": 2},  # tensors that are joined
}


def save(path: Path, family: str, **settings: Any) -> Any:
    """A random model of transformers, saved, and the model."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **(MODELS.get(family, SMALL) | settings))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape) * 1.5 / weight.shape[-1] ** 0.5)
            elif name.endswith("bias"):
                weight.copy_(torch.randn(weight.shape) * 0.2)
    model.generation_config.eos_token_id = None
    model.save_pretrained(path, max_shard_size="20KB")
    return model


def stages(checkpoint: Checkpoint, cuts: list[int]) -> list[tuple[Stage, Cache]]:
    found = []
    for start, stop in itertools.pairwise(cuts):
        stage = Stage.load(checkpoint, start, stop, device="cpu")
        found.append((stage, stage.open_cache(start, stop, len(PROMPT) + NEW_TOKENS)))
    return found


@pytest.mark.parametrize("family", MODELS)
def test_tokens_and_logits_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = save(tmp_path, family)
    prompt = torch.tensor([PROMPT])
    with torch.no_grad():
        whole = model.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
        expected = model(whole).logits[0]
    checkpoint = open_checkpoint(tmp_path)
    blocks = checkpoint.spec.blocks
    ends = Ends.load(checkpoint)
    for cuts in ([0, blocks], [0, 1, blocks], list(range(blocks + 1))):
        chain = stages(checkpoint, cuts)
        step, at, tokens = list(PROMPT), 0, list(PROMPT)
        while len(tokens) < len(PROMPT) + NEW_TOKENS:
            hidden = ends.embed(step)
            for stage, cache in chain:
                if at == len(PROMPT):  # a draft that is taken back
                    stage.forward(torch.randn(5, 32), cache, at)
                hidden = stage.forward(hidden, cache, at)
            at += len(step)
            logits = ends.logits(hidden[-1])
            torch.testing.assert_close(logits, expected[at - 1], atol=TOLERANCE, rtol=0)
            step = [int(logits.argmax())]
            tokens += step
        assert tokens == whole[0].tolist()


def test_a_session_may_use_some_of_a_stages_blocks(tmp_path: Path) -> None:
    save(tmp_path, "gpt2")
    checkpoint = open_checkpoint(tmp_path)
    hidden = Ends.load(checkpoint).embed(PROMPT)
    ((whole, cache),) = stages(checkpoint, [0, 3])
    expected = whole.forward(hidden, cache, 0)
    ((tail, _),) = stages(checkpoint, [1, 3])
    first, middle = whole.open_cache(0, 1, 20), tail.open_cache(1, 2, 20)
    last = whole.open_cache(2, 3, 20)
    x = whole.forward(hidden, first, 0)
    x = tail.forward(x, middle, 0)
    torch.testing.assert_close(whole.forward(x, last, 0), expected, atol=1e-5, rtol=0)


def test_what_a_position_costs_is_measured(tmp_path: Path) -> None:
    save(tmp_path, "falcon")
    ((stage, cache),) = stages(open_checkpoint(tmp_path), [1, 3])
    assert stage.spec.kv_width == 2 * 8  # one key head of 8, and its values
    assert cache.bytes_for(10) == 10 * 2 * 16 * 4
    assert all(rate > 0 for rate in stage.measure())
    assert stage.numerics


def test_positions_that_were_not_agreed_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "gpt_neox")
    ((stage, cache),) = stages(open_checkpoint(tmp_path), [1, 3])
    hidden = torch.randn(30, 32)
    stage.forward(hidden, cache, 0)
    for at, rows in ((30, hidden), (31, hidden[:1])):
        with pytest.raises(RemoteError, match="position"):
            stage.forward(rows, cache, at)
    with pytest.raises(RemoteError, match="truncation"):
        cache.truncate(31)
    with pytest.raises(RemoteError, match="shape 1 x 31"):
        stage.forward(hidden[:1, 1:], cache, 30)
    assert cache.length == 30


def test_only_the_files_of_the_range_are_read(tmp_path: Path) -> None:
    save(tmp_path, "gpt_neox")
    checkpoint = open_checkpoint(tmp_path)
    needed = {checkpoint.path_of(name) for name in checkpoint.names if ".layers.1." in name}
    for path in set(tmp_path.glob("*.safetensors")) - needed:
        path.unlink()
    stage = Stage.load(open_checkpoint(tmp_path), 1, 2, device="cpu")
    assert (stage.start, stage.stop) == (1, 2)


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    save(tmp_path, "gpt2")
    index = tmp_path / "model.safetensors.index.json"
    files = json.loads(index.read_text())
    del files["weight_map"]["transformer.h.1.mlp.c_fc.weight"]
    index.write_text(json.dumps(files))
    with pytest.raises(UserError, match=r"h\.1\.mlp\.c_fc\.weight is missing"):
        Stage.load(open_checkpoint(tmp_path), 1, 2, device="cpu")
    Stage.load(open_checkpoint(tmp_path), 2, 3, device="cpu")


@pytest.mark.parametrize(
    ("family", "settings", "why"),
    [
        ("opt", {"word_embed_proj_dim": 16}, "embeds in 16 numbers, but its blocks take 32"),
        ("mamba", {}, "a state that cannot be taken back"),
    ],
)
def test_what_cannot_be_split_is_refused_in_a_line(
    family: str, settings: dict[str, Any], why: str, tmp_path: Path
) -> None:
    save(tmp_path, family, **settings)
    with pytest.raises(UserError, match=why) as failure:
        Stage.load(open_checkpoint(tmp_path), 0, 1, device="cpu")
    assert "\n" not in str(failure.value)


def test_such_a_model_is_not_quantized(tmp_path: Path) -> None:
    save(tmp_path, "gpt2")
    with pytest.raises(UserError, match="use --quantization none"):
        Stage.load(open_checkpoint(tmp_path), 0, 1, device="cpu", quantization="nf4")


def test_without_transformers_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'potluck\[hf\]'") as failure:
        spec_of(config)
    assert "\n" not in str(failure.value)


def test_a_type_that_nobody_knows_is_refused_and_its_code_not_run() -> None:
    config = {"model_type": "novel", "auto_map": {"AutoConfig": "code.Config"}}
    with pytest.raises(UserError, match="'novel' is not known to transformers"):
        spec_of(config)


def test_a_family_of_ours_stays_ours_and_its_odd_cousin_goes_the_general_way() -> None:
    config = {"model_type": "llama", **SMALL}
    assert spec_of(config) == ModelSpec.from_config(config)
    odd = spec_of(config | {"hidden_act": "gelu"})
    assert odd.general is not None
    assert (odd.hidden, odd.blocks, odd.vocab, odd.context) == (32, 3, 96, 128)
    assert (odd.eos, odd.bos, odd.kv_width) == ((2,), 1, 64)

    for strange in (
        {"hidden_act": "gelu", "secret_scale": 2.0},
        {"hidden_act": "gelu", "auto_map": {"AutoModel": "code.Model"}},
        {"rope_scaling": {"rope_type": "default", "mrope_section": [1]}},
        {"architectures": ["LlamaForSequenceClassification"]},
    ):
        with pytest.raises(UserError):  # transformers would not look at it
            spec_of(config | strange)


def test_the_digest_is_of_the_arithmetic_of_the_config() -> None:
    config = {"model_type": "gpt2", **OLDER}
    base = spec_of(config).canonical()
    assert spec_of(config | {"transformers_version": "4.1", "eos_token_id": 5}).canonical() == base
    assert spec_of(config | {"activation_function": "relu"}).canonical() != base


def test_a_node_opens_it_without_being_told_how(tmp_path: Path) -> None:
    save(tmp_path, "gpt2")
    wish = StageWish(device="cpu", cache_bytes=1 << 20)
    opened = open_stage(open_checkpoint(tmp_path), BlockRange(1, 3), wish)
    assert "transformers' own code" in opened.why
    assert (opened.quantization, opened.engine.width) == ("none", 32)
    assert opened.cache_tokens == (1 << 20) // (64 * 4)
    with pytest.raises(UserError, match="--engine native cannot serve"):
        open_stage(
            open_checkpoint(tmp_path), BlockRange(1, 3), StageWish(device="cpu", engine="native")
        )
