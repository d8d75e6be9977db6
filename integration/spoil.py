"""A model's files, spoiled in every way that a download, a disk or a person spoils them."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from pathlib import Path
from typing import Any


def cut(path: Path, size: int) -> None:
    """Only the first bytes of a file; below zero, all but the last."""
    path.write_bytes(path.read_bytes()[:size])


def header_of(weights: Path) -> tuple[dict[str, Any], bytes]:
    """A weight file's header and body."""
    raw = weights.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def write_weights(weights: Path, header: dict[str, object], body: bytes) -> None:
    packed = json.dumps(header).encode()
    weights.write_bytes(struct.pack("<Q", len(packed)) + packed + body)


def write_hole(model: Path, ffn: int, blocks: int) -> None:
    """Weights of so many blocks of this inner width: zeros that take no disk."""
    given, _ = header_of(model / "model.safetensors")
    names = [name for name in given if name.startswith("model.")]
    names += [
        name.replace(".0.", f".{block}.")
        for block in range(8, blocks)
        for name in names
        if name.startswith("model.layers.0.")
    ]
    header: dict[str, object] = {}
    at = 0
    for name in names:
        known = re.sub(r"layers\.\d+", "layers.0", name)
        shape = [ffn if size == 688 else size for size in given[known]["shape"]]
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    write_weights(model / "model.safetensors", header, b"")
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) + at)


def edit_config(model: Path, **changes: object) -> None:
    """Change fields of a model's config.json."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))


def rename_tensor(weights: Path) -> None:
    """A checkpoint without one of the tensors that it should have."""
    header, body = header_of(weights)
    header["elsewhere"] = header.pop("model.layers.3.mlp.up_proj.weight")
    write_weights(weights, header, body)


def spoil_header(weights: Path) -> None:
    """A header that is no JSON."""
    raw = bytearray(weights.read_bytes())
    raw[9:60] = b"\xff" * 51
    weights.write_bytes(raw)


def promise_much(weights: Path) -> None:
    """A header that is said to be longer than any file."""
    weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])


def other_tokenizer(model: Path) -> None:
    """A tokenizer with a token that the model does not know."""
    path = model / "tokenizer.json"
    told = json.loads(path.read_text())
    told["model"]["vocab"]["beyond"] = 5000
    path.write_text(json.dumps(told))
