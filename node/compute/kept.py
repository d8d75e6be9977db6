"""Vectors and bytes of a run as one file's content, and back: safetensors, with the facts as text.

vectors: F32 [n]    raw bytes: U8 [n]    facts: strings, in the header's metadata
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

from ...errors import UserError
from .mixing import Vector

_HEAD_BYTES = 8  # the header's length, little-endian: safetensors' own form


def pack_kept(
    vectors: Mapping[str, Vector], raw: Mapping[str, bytes], facts: Mapping[str, str]
) -> bytes:
    """Names are different ones in each. Blocks for as long as copying takes."""
    tensors: dict[str, Tensor] = {name: one.clone() for name, one in vectors.items()}
    for name, content in raw.items():
        tensors[name] = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)
    return save(tensors, metadata=dict(facts))


def unpack_kept(content: bytes) -> tuple[dict[str, Vector], dict[str, bytes], dict[str, str]]:
    """Raises UserError for what `pack_kept` does not write."""
    try:
        tensors = load(content)
        size = int.from_bytes(content[:_HEAD_BYTES], "little")
        facts = json.loads(content[_HEAD_BYTES : _HEAD_BYTES + size]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"is no checkpoint ({error})") from error
    vectors = {name: one for name, one in tensors.items() if one.dtype == torch.float32}
    raw = {name: one.numpy().tobytes() for name, one in tensors.items() if one.dtype == torch.uint8}
    return vectors, raw, facts
