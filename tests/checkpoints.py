"""Random checkpoints of every family, written by transformers: what the model tests run on."""

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

transformers.utils.logging.disable_progress_bar()

SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

_CONFIGS = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "gemma2": transformers.Gemma2Config,
    "gemma3": transformers.Gemma3TextConfig,
    "phi3": transformers.Phi3Config,
    "mixtral": transformers.MixtralConfig,
    "qwen3_moe": transformers.Qwen3MoeConfig,
}
_ARCHITECTURES = {"gemma3": "Gemma3ForCausalLM"}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma2": {"pad_token_id": 0},
    "gemma3": {"pad_token_id": 0},
    "phi3": {"pad_token_id": 0},
    "qwen3_moe": {"moe_intermediate_size": 24},
}


def save_random(
    path: Path,
    family: str,
    *,
    seed: int = 0,
    shard: str | None = None,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Any:
    """Write a random checkpoint of `family` to `path`, and return transformers' model of it.

    shard: the largest size of a file, such as "50KB"; None: one file. dtype: of what is stored.
    """
    torch.manual_seed(seed)
    config = _CONFIGS[family](**(SMALL | _DEFAULTS.get(family, {}) | settings))
    plain = f"{type(config).__name__.removesuffix('Config')}ForCausalLM"
    config.architectures = [_ARCHITECTURES.get(family, plain)]
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():  # livelier than at birth, where a text soon stays on one token
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape)
            if "norm" in name:
                weight.copy_(noise * 0.2 + (not family.startswith("gemma")))
            elif name.endswith("bias"):
                weight.copy_(noise * 0.5)
            elif "embed_tokens" in name:
                scale = getattr(model.get_input_embeddings(), "scalar_embed_scale", 1.0)
                weight.copy_(noise * 0.3 / scale)
            else:
                weight.copy_(noise * 1.5 / weight.shape[-1] ** 0.5)
    model.generation_config.eos_token_id = None  # tests decide themselves when to stop
    model.save_pretrained(path, max_shard_size=shard or "5GB")
    return model.eval()


def edit_config(path: Path, **changes: Any) -> None:
    """Change fields of a checkpoint's config.json; None removes a field."""
    file = path / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def save_tokenizer(path: Path, *, size: int = 0) -> None:
    """Write a byte-level tokenizer: <unk>, <s>, </s>, the 256 bytes, and `size` further words."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {letter: index + 3 for index, letter in enumerate(letters)}
    vocabulary |= {f"word{index}": len(vocabulary) + index for index in range(size)}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
