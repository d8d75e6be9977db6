"""Random models of a given shape, for benchmarks: right in form, meaningless in words."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file

from ...errors import UserError
from .layout import weight_shapes
from .spec import ModelSpec

# hidden, blocks, heads, kv_heads, ffn, vocabulary
SHAPES = {
    "tiny": (256, 8, 8, 4, 688, 2048),  # petals.md 5: the shape that Petals was measured on
    "small": (1024, 8, 16, 8, 2752, 2048),
    "brisk": (1024, 6, 16, 8, 2752, 2048),  # about 77 tokens a second, as Mesh-LLM's (peers.md)
    "medium": (2048, 8, 32, 16, 5504, 2048),  # about 16 ms for two blocks (algorithms.md 9)
}
CONTEXT = 2048


def write_random(folder: Path, shape: str, *, seed: int = 0, context: int = CONTEXT) -> None:
    """Write a Llama checkpoint with random fp32 weights and a byte-level tokenizer."""
    if shape not in SHAPES:
        raise UserError(f"no shape {shape}: choose one of {', '.join(SHAPES)}")
    hidden, blocks, heads, kv_heads, ffn, vocabulary = SHAPES[shape]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    _write_weights(folder, ModelSpec.from_config(config), seed)
    _write_tokenizer(folder)


def _write_weights(folder: Path, spec: ModelSpec, seed: int) -> None:
    dice = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (spec.vocab, spec.hidden),
        "model.norm.weight": (spec.hidden,),
    }
    for index in range(spec.blocks):
        shapes |= weight_shapes(spec, index)
    weights = {
        name: torch.ones(shape)
        if len(shape) == 1
        else torch.randn(shape, generator=dice) * shape[1] ** -0.5
        for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _write_tokenizer(folder: Path) -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for letter in sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
