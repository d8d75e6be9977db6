"""How many blocks of a model fit here, and giving the room back.

A block's size is known from its shapes alone, before anything is downloaded. Sessions need room
beside the weights; what is left of the machine is its owner's.
"""

from __future__ import annotations

import ctypes
import gc
import sys

import torch

from ...swarm.blocks import BlockRange
from ...swarm.placement import span_length
from .checkpoint import Checkpoint
from .choice import CACHE_SHARE, StageWish, cache_room, refusal
from .device import choose_device, choose_dtype, devices_of
from .general import skeleton
from .layout import layout_of
from .loading import block_bytes
from .memory import free_bytes, require_memory
from .quant.formats import choose

OWNERS_SHARE = 0.1  # of what is free: guess; what we take by ourselves shall slow nobody down
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
_STORED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def blocks_that_fit(checkpoint: Checkpoint, wish: StageWish) -> int:
    """How many blocks this machine can serve, with sessions; at least one. Raises UserError."""
    budget = _budget(wish)
    sessions = wish.cache_bytes or int(budget * CACHE_SHARE)
    return span_length(checkpoint.spec.blocks, budget - sessions, largest_block(checkpoint, wish))


def weights_that_fit(checkpoint: Checkpoint, wish: StageWish, held: int = 0) -> int:
    """How many blocks can be loaded, with no session, while `held` others of the model are served.
    Raises UserError."""
    each = largest_block(checkpoint, wish)
    budget = _budget(wish)
    if wish.most_bytes:
        budget = min(budget, wish.most_bytes - held * each)
    return max(0, budget // max(1, each))


def require_room(checkpoint: Checkpoint, blocks: BlockRange, wish: StageWish) -> None:
    """Raise UserError when these blocks do not fit, before anything is read or downloaded."""
    needed = sum(block_sizes(checkpoint, wish)[blocks.start : blocks.stop])
    device = choose_device(wish.device)
    require_memory(needed, device, f"{checkpoint.name}: blocks {blocks}")
    cache_room(wish, blocks, free=free_bytes(device), weights=needed)  # what the owner gives


def largest_block(checkpoint: Checkpoint, wish: StageWish) -> int:
    """Bytes of the largest block as it would be served. Raises UserError."""
    return max(block_sizes(checkpoint, wish))


def block_sizes(checkpoint: Checkpoint, wish: StageWish) -> list[int]:
    """Bytes of each block as it would be served. Raises UserError."""
    spec, device = checkpoint.spec, choose_device(wish.device)
    dtype = choose_dtype(wish.dtype or None, device, wide=False)
    if spec.general is not None:
        bones = skeleton(spec, dtype)
        layers = bones.model.get_submodule(bones.layers).children()
        return [sum(one.numel() * dtype.itemsize for one in each.parameters()) for each in layers]
    if wish.engine not in ("torch", "tiled") and not refusal(
        wish
    ):  # our own kernels keep 16 bits as they are
        config = checkpoint.json("config.json") or {}
        dtype = _STORED.get(str(config.get("dtype") or config.get("torch_dtype")), torch.float32)
    quantization = None if wish.quantization == "auto" else wish.quantization
    coding = choose(quantization, checkpoint.stored_format)
    return [block_bytes(layout_of(spec, index), coding, dtype) for index in range(spec.blocks)]


def give_back() -> None:
    """Give the device's memory back once nobody holds the stage any more."""
    gc.collect()  # an engine and its lane know each other
    if _trim is not None:
        _trim(0)  # what glibc keeps for later
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def free_on(devices: str) -> int:
    """Bytes that may be taken on the devices that `--device` names, together. Raises UserError."""
    names = dict.fromkeys(devices_of(devices))
    return int(sum(free_bytes(torch.device(name)) for name in names) * (1 - OWNERS_SHARE))


def _budget(wish: StageWish) -> int:
    free = free_on(wish.device)
    return min(free, wish.most_bytes) if wish.most_bytes else free
