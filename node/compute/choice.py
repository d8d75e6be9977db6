"""Which stage serves a node, and how much it may remember.

There are two kinds (engine.py): ours in C, for CPUs, and torch's, for every device. `auto` takes
ours where it can be had, because it computes many sessions in one pass and the same bits on every
machine. Torch's serves many sessions in one pass too (tiled_stage.py): on CUDA by itself, where a
row's bits were seen to be its own and one session alone loses a tenth at most; wherever a row's
bits are its own by `tiled`; nowhere by `torch`. The memory is the owner's: at most `memory_bytes`
for weights and sessions together, of which sessions get what is asked for, or a quarter of what is
free once the weights are there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from ...errors import UserError
from ...swarm.admission import Part
from ...swarm.blocks import BlockRange
from .cache import bytes_per_token
from .checkpoint import Checkpoint
from .device import choose_device
from .engine import BatchEngine, Engine, StageEngine
from .joined import JoinedPools
from .memory import free_bytes, processors
from .native.library import why_not
from .native_stage import NativeStage
from .pages import PAGE_TOKENS, Pages, Pool, page_stride
from .prefix_cache import PrefixCache
from .rope import is_stretched
from .spill import Budget, Residents
from .stage import Stage
from .tiled_engine import TiledEngine
from .tiled_stage import TiledStage

CACHE_SHARE = 0.25  # of free memory, for sessions: the rest is the owner's
ENGINES = ("auto", "native", "torch", "tiled")
LOSS_MAX = 0.1  # of a single session's rates, for which many may share a pass on CUDA
_PASS_SHARE = 0.1  # guess: of a GPU's free memory, for what passes compute with
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class StageWish:
    """What the owner asks for. 0 and "": nothing in particular.

    memory_bytes: for weights and sessions, all of it. part_bytes: of the free memory, where several
    models share it: of that sessions take but their share. cache_bytes: for sessions. cache_bits:
    of a number that a session remembers, 32 or 8. spill_bytes: of the host's memory, for sessions
    at rest that a GPU has no room for; None: a quarter of what is free. cache_dir: where quantized
    weights may be kept.
    """

    device: str = "auto"
    dtype: str = ""
    engine: str = "auto"
    quantization: str = "auto"
    threads: int = 0
    memory_bytes: int = 0
    part_bytes: int = 0
    cache_bytes: int = 0
    cache_bits: int = 32
    spill_bytes: int | None = None
    cache_dir: Path | None = None

    @property
    def most_bytes(self) -> int:
        """For weights and sessions together; 0: what is free."""
        return self.memory_bytes or self.part_bytes

    def check(self) -> None:
        """Raises UserError for what no machine has."""
        if self.engine not in ENGINES:
            raise UserError(f"--engine {self.engine} is not known; use one of {', '.join(ENGINES)}")
        if self.cache_bits not in (8, 32):
            raise UserError(f"--cache-bits {self.cache_bits} is not known; use 32 or 8")


@dataclass(frozen=True, slots=True)
class Opened:
    """A stage that is ready. rates: tokens a second through one block, decoding and in a prefill.

    cache_tokens: positions times blocks that sessions may hold. page_tokens: in steps of how many
    positions they are counted. token_bytes: of one of them. session_tokens_max: of them in one
    session; None: all. pool: where they lie, if in pages. why: of the choice, for the log.
    parts: what each of several devices remembers (spread.py); cache_tokens is the least of them.
    prefixes: where beginnings of prompts can be kept.
    """

    engine: Engine
    device: str
    dtype: str
    quantization: str
    rates: tuple[float, float]
    cache_tokens: int
    page_tokens: int
    token_bytes: int
    pool: Pages | JoinedPools | None
    why: str
    session_tokens_max: int | None = None
    parts: tuple[Part, ...] = ()
    prefixes: PrefixCache | None = None


def open_stage(checkpoint: Checkpoint, blocks: BlockRange, wish: StageWish) -> Opened:
    """Load the blocks. Raises UserError for whatever the owner can mend."""
    wish.check()
    asked = wish.engine in ("torch", "tiled")
    against = f"it was asked for {wish.engine}" if asked else refusal(wish)
    if checkpoint.spec.general is not None:
        against = f"{checkpoint.spec.family} is computed by transformers' own code"
    if wish.engine == "native" and against:
        raise UserError(f"--engine native cannot serve here: {against}; use --engine auto")
    quantization = None if wish.quantization == "auto" else wish.quantization
    if against:
        return _open_torch(checkpoint, blocks, wish, quantization, f"torch: {against}")
    return _open_native(checkpoint, blocks, wish, quantization, "native: it can be had here")


def refusal(wish: StageWish) -> str:
    """Why our own kernels cannot compute what is asked for; empty when they can."""
    device = choose_device(wish.device)
    if device.type != "cpu":
        return f"it is for processors, and the device is {device}"
    if wish.dtype not in ("", "fp32"):
        return f"it computes in fp32, not {wish.dtype}"
    return why_not() or ""


def _open_native(
    checkpoint: Checkpoint, blocks: BlockRange, wish: StageWish, quantization: str | None, why: str
) -> Opened:
    stage = NativeStage.load(
        checkpoint,
        blocks.start,
        blocks.stop,
        quantization=quantization,
        threads=wish.threads or processors(),
        cache_dir=wish.cache_dir,
        byte_pages=wish.cache_bits == 8,
    )
    free = free_bytes(torch.device("cpu"))
    cache_bytes = cache_room(wish, blocks, free=free, weights=stage.weight_bytes)
    page_bytes = page_stride(stage.page_bytes)
    if cache_bytes < page_bytes * len(blocks):
        raise _too_small(cache_bytes, blocks, f"one page of {PAGE_TOKENS} positions")
    pool = Pool(budget_bytes=cache_bytes, page_bytes=page_bytes)
    return Opened(
        engine=BatchEngine(stage, pool),
        device="cpu",
        dtype="float32",
        quantization=stage.format,
        rates=stage.measure(),
        cache_tokens=pool.pages * PAGE_TOKENS,
        page_tokens=PAGE_TOKENS,
        token_bytes=page_bytes // PAGE_TOKENS,
        pool=pool,
        why=why,
        prefixes=PrefixCache(pool, partial(is_stretched, checkpoint.spec.rope)),
    )


def _open_torch(
    checkpoint: Checkpoint, blocks: BlockRange, wish: StageWish, quantization: str | None, why: str
) -> Opened:
    if wish.cache_bits == 8:
        raise UserError(f"--cache-bits 8 needs our own kernels ({why}); use --cache-bits 32")
    stage = Stage.load(
        checkpoint,
        blocks.start,
        blocks.stop,
        device=wish.device,
        dtype=wish.dtype or None,
        quantization=quantization,
        cache_dir=wish.cache_dir,
    )
    weights = stage.weight_bytes
    cache_bytes = cache_room(wish, blocks, free=free_bytes(stage.device), weights=weights)
    rates = stage.measure()
    tiled = _tiled(stage, wish, rates)
    budget = Budget(cache_bytes, _spill_bytes(wish, stage))
    if isinstance(tiled, TiledStage):
        return _open_tiled(tiled, blocks, budget, stage, why)
    token_bytes = bytes_per_token(stage.spec, 1, stage.dtype.itemsize)
    if cache_bytes < token_bytes * len(blocks):
        raise _too_small(cache_bytes, blocks, "one position")
    return Opened(
        engine=StageEngine(stage, Residents(budget) if budget.spills else None),
        device=stage.device.type,
        dtype=str(stage.dtype).removeprefix("torch."),
        quantization=stage.quantization,
        rates=rates,
        cache_tokens=budget.promised_bytes // token_bytes,
        session_tokens_max=budget.session_bytes_max // token_bytes,
        page_tokens=1,
        token_bytes=token_bytes,
        pool=None,
        why="; ".join(filter(None, [why, stage.told, tiled])),
    )


def _tiled(stage: Stage, wish: StageWish, rates: tuple[float, float]) -> TiledStage | str:
    """The stage for many sessions at once, or why not. rates: of one session without tiles.

    Raises UserError where it was asked for and cannot be.
    """
    if wish.engine != "tiled" and (wish.engine == "torch" or stage.device.type != "cuda"):
        return ""
    found = TiledStage.of(stage)
    if isinstance(found, TiledStage) and wish.engine != "tiled":
        loss = 1 - min(its / one for its, one in zip(found.measure(), rates, strict=True))
        if loss > LOSS_MAX:
            return f"one session at a time: in tiles one alone would lose {loss:.0%}"
    if isinstance(found, str):
        if wish.engine == "tiled":
            raise UserError(f"--engine tiled cannot serve here: {found}; use --engine auto")
        return f"one session at a time: {found}"
    return found


def _open_tiled(
    tiled: TiledStage, blocks: BlockRange, budget: Budget, stage: Stage, why: str
) -> Opened:
    if stage.device.type == "cuda":  # its pages are all taken now: a pass needs memory beside them
        room = int(free_bytes(stage.device) * (1 - _PASS_SHARE))
        budget = replace(budget, device_bytes=min(budget.device_bytes, room))
    least = tiled.page_bytes * len(blocks)
    if budget.session_bytes_max < least:
        raise _too_small(budget.device_bytes, blocks, f"one page of {PAGE_TOKENS} positions")
    pool = tiled.pool(budget)
    token_bytes = tiled.page_bytes // PAGE_TOKENS
    return Opened(
        engine=TiledEngine(tiled, pool),
        device=stage.device.type,
        dtype=str(stage.dtype).removeprefix("torch."),
        quantization=stage.quantization,
        rates=tiled.measure(),
        cache_tokens=pool.promised_max * PAGE_TOKENS,
        session_tokens_max=budget.session_bytes_max // tiled.page_bytes * PAGE_TOKENS,
        page_tokens=PAGE_TOKENS,
        token_bytes=token_bytes,
        pool=pool,
        why="; ".join(filter(None, [why, tiled.told])),
    )


def _spill_bytes(wish: StageWish, stage: Stage) -> int:
    """Of the host's memory, for sessions that rest: a processor's and a Mac's GPU's is the same."""
    if stage.device.type != "cuda" or stage.spec.general is not None:
        return 0
    return host_share() if wish.spill_bytes is None else wish.spill_bytes


def host_share() -> int:
    """Bytes of the host's free memory that sessions may have."""
    return int(free_bytes(torch.device("cpu")) * CACHE_SHARE)


def cache_room(wish: StageWish, blocks: BlockRange, *, free: int, weights: int) -> int:
    """Bytes for sessions, once the weights are loaded. Raises UserError when there are none.

    free: what the device has left. weights: what the blocks took.
    """
    if most := wish.most_bytes:
        free = min(free, most - weights)
        if free <= 0:
            limit = "--max-memory" if wish.memory_bytes else "this model's part of the memory is"
            raise UserError(
                f"{limit} {most // _MIB} MiB: the weights of blocks {blocks} "
                f"alone take {weights / _MIB:.0f} MiB; give more, or serve fewer blocks"
            )
    if wish.cache_bytes > free:
        raise UserError(
            f"--cache-mib {wish.cache_bytes // _MIB} is more than the {free // _MIB} MiB that are "
            "free: give less, or 0 for a quarter of what is free"
        )
    if wish.cache_bytes:
        return wish.cache_bytes
    return free if wish.memory_bytes else int(free * CACHE_SHARE)


def _too_small(cache_bytes: int, blocks: BlockRange, least: str) -> UserError:
    return UserError(
        f"{cache_bytes / _MIB:.1f} MiB of cache hold not {least} of {len(blocks)} blocks: "
        "give more by --cache-mib, or serve fewer blocks"
    )
