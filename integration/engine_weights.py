"""The weights that engines are measured on: a Llama of 1.1B parameters, each number random.

Without its vocabulary (512 tokens, so that what is measured is the blocks): hidden 2048, 16 blocks,
ffn 5632, 32 heads of which 4 have keys. The numbers' values do not matter to the speed; that every
block has its own does.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, BLOCKS, FFN, HEADS, KV_HEADS, VOCAB = 2048, 16, 5632, 32, 4, 512
HEAD = HIDDEN // HEADS
MATRICES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "num_hidden_layers": BLOCKS,
    "intermediate_size": FFN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def write_checkpoint(folder: Path) -> None:
    """Random weights of the shape, bf16; there as a whole once config.json is."""
    folder.mkdir(parents=True, exist_ok=True)
    dice = torch.Generator().manual_seed(1)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=dice).mul_(columns**-0.5).to(torch.bfloat16)

    tensors = {
        "model.embed_tokens.weight": matrix(VOCAB, HIDDEN),
        "lm_head.weight": matrix(VOCAB, HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
    }
    for index in range(BLOCKS):
        place = f"model.layers.{index}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{place}{name}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        for name, (rows, columns) in MATRICES.items():
            tensors[f"{place}{name}.weight"] = matrix(rows, columns)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
