"""Packers of quantized checkpoints, written from the formats' descriptions: bit by bit, slowly.

They share nothing with what reads them: numbers become digits of a Python int.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # digit i of an int32 is column AWQ_ORDER[i] of its eight


def digits(values: list[int], bits: int) -> int:
    """An int32 of these digits, the lowest first."""
    word = sum(value << (bits * place) for place, value in enumerate(values))
    return word - (1 << 32) if word >= 1 << 31 else word


def by_column(codes: np.ndarray[Any, Any], bits: int, order: tuple[int, ...]) -> torch.Tensor:
    """(a, b) to (a, b·bits/32): neighbours of a row in one word."""
    per = 32 // bits
    rows = [
        [
            digits([int(row[at + order[i]]) for i in range(per)], bits)
            for at in range(0, len(row), per)
        ]
        for row in codes
    ]
    return torch.tensor(rows, dtype=torch.int32)


def plain_order(bits: int) -> tuple[int, ...]:
    return tuple(range(32 // bits))


def gptq(
    codes: np.ndarray[Any, Any],  # (k, n)
    zeros: np.ndarray[Any, Any],  # (g, n)
    scales: torch.Tensor,  # (g, n)
    *,
    bits: int,
    first: bool,
    groups: np.ndarray[Any, Any] | None,
) -> dict[str, torch.Tensor]:
    """first: version 1 of the layout, which keeps each zero less one."""
    kept = (zeros - 1) % (1 << bits) if first else zeros
    parts = {
        "qweight": by_column(codes.T, bits, plain_order(bits)).t().contiguous(),
        "qzeros": by_column(kept, bits, plain_order(bits)),
        "scales": scales,
    }
    if groups is not None:
        parts["g_idx"] = torch.tensor(groups, dtype=torch.int32)
    return parts


def awq(
    codes: np.ndarray[Any, Any], zeros: np.ndarray[Any, Any], scales: torch.Tensor
) -> dict[str, torch.Tensor]:
    return {
        "qweight": by_column(codes, 4, AWQ_ORDER),
        "qzeros": by_column(zeros, 4, AWQ_ORDER),
        "scales": scales,
    }


def numbers(
    codes: np.ndarray[Any, Any],
    zeros: np.ndarray[Any, Any],
    scales: torch.Tensor,
    groups: np.ndarray[Any, Any],
) -> torch.Tensor:
    """The matrix (n, k) that they stand for, exactly, then rounded to the scales' dtype."""
    whole = (codes.astype(np.int64) - zeros[groups].astype(np.int64)).astype(np.float64)
    exact = whole * scales.double().numpy()[groups]
    return torch.from_numpy(exact.T.copy()).to(scales.dtype)


def bits4(
    codes: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int], **settings: Any
) -> dict[str, torch.Tensor]:
    """What bitsandbytes stores beside the packed bytes, the scales as they are."""
    from potluck.node.compute.weight import NF4

    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(shape)}
    text = json.dumps(state | settings).encode()
    return {
        "weight": codes.reshape(-1, 1),
        "weight.absmax": scales.reshape(-1),
        "weight.quant_map": torch.tensor(NF4),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(text), dtype=torch.uint8),
    }


def rewrite(path: Path, config: dict[str, Any], parts: dict[str, dict[str, torch.Tensor]]) -> None:
    """Put the parts of these matrices (`x.weight`) into a checkpoint in the matrices' place."""
    file = path / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    for name, made in parts.items():
        del tensors[name]
        base = name.removesuffix("weight")
        tensors |= {base + part: tensor.contiguous() for part, tensor in made.items()}
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"quantization_config": config}))
