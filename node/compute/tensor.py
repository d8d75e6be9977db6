"""Hidden states to wire bytes and back, checked against a shape.

On the wire a tensor is its rows in little-endian order and nothing else: its shape and the tag of
its dtype stand in the frame's header. Neither direction copies what is already in that form.
"""

import sys

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import LocalError, RemoteError

TAGS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_TAG_OF = {dtype: tag for tag, dtype in TAGS.items()}
Payload = bytes | bytearray | memoryview


def tag_of(dtype: torch.dtype) -> str:
    """The wire's name of a dtype."""
    return _TAG_OF[dtype]


def payload_bytes(tokens: int, width: int, tag: str) -> int:
    """Bytes of a payload of this shape. Raises RemoteError for an unknown tag."""
    if tag not in TAGS:
        raise RemoteError(f"dtype {tag!r} is not known")
    return tokens * width * TAGS[tag].itemsize


def pack(tensor: Tensor, tag: str | None = None) -> memoryview:
    """The bytes of (tokens, width); they live as long as the view. tag: convert to it first."""
    if sys.byteorder != "little":
        raise LocalError("the wire is little-endian, and so must this machine be")
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


def check_hidden(payload: Payload, tokens: int, width: int, tag: str) -> None:
    """Raise RemoteError unless these bytes are `tokens` finite rows of `width` numbers."""
    unpack(payload, tokens, width, tag)
