"""Hidden states to wire bytes and back, checked against a shape.

On the wire a tensor is its rows in little-endian order and nothing else: its shape and the tag of
its dtype stand in the frame's header. Neither direction copies what is already in that form.

A row in groups ("int8", "int4") is its scales, then its codes; the last group is as long as it is.
Each row lies for itself, so that a step may be cut, hashed and sent again row by row.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import LocalError, RemoteError
from ...swarm.rows import GROUP, GROUP_BITS, SCALE_BYTES, is_coded, row_bytes
from .groups import fold, quantize, restore, unfold

TAGS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_TAG_OF = {dtype: tag for tag, dtype in TAGS.items()}
Payload = bytes | bytearray | memoryview


def tag_of(dtype: torch.dtype) -> str:
    """The wire's name of a dtype."""
    return _TAG_OF[dtype]


def payload_bytes(tokens: int, width: int, tag: str) -> int:
    """Bytes of a payload of this shape. Raises RemoteError for an unknown tag."""
    return tokens * row_bytes(width, tag)


def pack(tensor: Tensor, tag: str | None = None) -> memoryview:
    """The bytes of (tokens, width); they live as long as the view. tag: convert to it first."""
    if sys.byteorder != "little":
        raise LocalError("the wire is little-endian, and so must this machine be")
    if tag is not None and is_coded(tag):
        return _pack_groups(tensor, tag)
    wanted = tensor.dtype if tag is None else TAGS[tag]
    plain = tensor.detach().to(device="cpu", dtype=wanted).contiguous()
    raw: NDArray[np.uint8] = plain.view(torch.uint8).view(-1).numpy()  # numpy has no bf16
    return raw.data


def unpack(payload: Payload, tokens: int, width: int, tag: str) -> Tensor:
    """The tensor (tokens, width) of these bytes; do not write to it, it may share them.

    Raises RemoteError when the size is not exact or a number is not finite.
    """
    expected = payload_bytes(tokens, width, tag)
    if tokens < 1 or width < 1:
        raise RemoteError(f"hidden states of shape {tokens} x {width}")
    view = memoryview(payload)
    if view.nbytes != expected:
        raise RemoteError(f"payload of {view.nbytes} bytes, {expected} expected")
    if is_coded(tag):
        return _unpack_groups(view, tokens, width, tag)
    if view.readonly:  # torch wants memory that it may write; a copy is also aligned for kernels
        copy = torch.empty(expected, dtype=torch.uint8)
        copy.numpy()[:] = np.frombuffer(view, dtype=np.uint8)
        flat = copy.view(TAGS[tag])
    else:
        flat = torch.frombuffer(view, dtype=TAGS[tag])
    # A sum of finite numbers may overflow, but one that is finite has only finite parts.
    total = float(flat.sum(dtype=torch.float32))
    if total - total != 0 and not bool(flat.isfinite().all()):
        raise RemoteError("hidden states that are not finite")
    return flat.view(tokens, width)


def _pack_groups(tensor: Tensor, tag: str) -> memoryview:
    bits = GROUP_BITS[tag]
    rows = tensor.detach().to(device="cpu", dtype=torch.float32)
    tokens, width = rows.shape
    filled = torch.nn.functional.pad(rows, (0, -width % GROUP)).reshape(
        tokens, -(-width // GROUP), GROUP
    )
    scales, grouped = quantize(filled, bits)
    codes = grouped.flatten(1)[:, : width + width % 2 if bits == 4 else width]
    if bits == 4:
        codes = fold(codes)
    parts = (scales.flatten(1).view(torch.uint8), codes.contiguous().view(torch.uint8))
    raw: NDArray[np.uint8] = torch.cat(parts, 1).view(-1).numpy()
    return raw.data


def _unpack_groups(view: memoryview, tokens: int, width: int, tag: str) -> Tensor:
    raw = torch.frombuffer(bytearray(view), dtype=torch.uint8).view(tokens, -1)
    groups = -(-width // GROUP)
    scales = raw[:, : groups * SCALE_BYTES].reshape(-1).view(torch.float16)
    codes = raw[:, groups * SCALE_BYTES :].contiguous().view(torch.int8)
    if GROUP_BITS[tag] == 4:
        codes = unfold(codes)
    if bool(codes[:, width:].any()):
        raise RemoteError("codes that nobody writes")
    filled = torch.nn.functional.pad(codes, (0, groups * GROUP - codes.shape[1]))
    found = restore(
        scales.view(tokens, groups, 1), filled.reshape(tokens, groups, GROUP), GROUP_BITS[tag]
    )
    return found.flatten(1)[:, :width].contiguous()


def check_hidden(payload: Payload, tokens: int, width: int, tag: str) -> None:
    """Raise RemoteError unless these bytes are `tokens` finite rows of `width` numbers."""
    unpack(payload, tokens, width, tag)
