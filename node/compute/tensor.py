"""Hidden states to wire bytes and back, checked against a shape.

On the wire a tensor is its rows in little-endian order and nothing else: its shape and the tag of
its dtype stand in the frame's header. Neither direction copies what is already in that form.
"""

import sys
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import LocalError, RemoteError

TAGS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_TAG_OF = {dtype: tag for tag, dtype in TAGS.items()}


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
    raw: NDArray[np.uint8] = plain.view(torch.uint8).numpy()  # as bytes: numpy has no bf16
    return raw.data.cast("B")


def unpack(payload: bytes | bytearray | memoryview, tokens: int, width: int, tag: str) -> Tensor:
    """The tensor (tokens, width) over these bytes, which it may share; do not write to it.

    Raises RemoteError when the size is not exact or a number is not finite.
    """
    expected = payload_bytes(tokens, width, tag)
    if len(payload) != expected:
        raise RemoteError(f"payload of {len(payload)} bytes, {expected} expected")
    if tokens < 1 or width < 1:
        raise RemoteError(f"hidden states of shape {tokens} x {width}")
    with warnings.catch_warnings():
        # torch warns that the bytes are read-only; nothing here or in a stage writes to its input
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        flat = torch.frombuffer(payload, dtype=TAGS[tag])
    # 0 * x is 0 for every finite x and NaN for the others: one pass, no mask
    if not bool((flat * 0).sum() == 0):
        raise RemoteError("hidden states that are not finite")
    return flat.view(tokens, width)
