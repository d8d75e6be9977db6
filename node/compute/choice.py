"""Which stage serves a node, and how much it may remember.

There are two kinds (engine.py): ours in C, for CPUs, and torch's, for every device. `auto` takes
ours where it can be had, because it computes many sessions in one pass and the same bits on every
machine. The memory is the owner's: at most `memory_bytes` for weights and sessions together, of
which sessions get what is asked for, or a quarter of what is free once the weights are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError
from ...swarm.blocks import BlockRange
from .cache import bytes_per_token
from .checkpoint import Checkpoint
from .engine import Engine, StageEngine
from .memory import free_bytes
from .pages import Pool
from .stage import Stage

CACHE_SHARE = 0.25  # of free memory, for sessions: the rest is the owner's
ENGINES = ("auto", "native", "torch")
QUANTIZATIONS = ("auto", "none", "int8", "nf4")
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class StageWish:
    """What the owner asks for. 0 and "": nothing in particular.

    memory_bytes: for weights and sessions. cache_bytes: for sessions. cache_dir: where quantized
    weights may be kept.
    """

    device: str = "auto"
    dtype: str = ""
    engine: str = "auto"
    quantization: str = "auto"
    threads: int = 0
    memory_bytes: int = 0
    cache_bytes: int = 0
    cache_dir: Path | None = None

    def check(self) -> None:
        """Raises UserError for what no machine has."""
        for name, value, known in (
            ("engine", self.engine, ENGINES),
            ("quantization", self.quantization, QUANTIZATIONS),
        ):
            if value not in known:
                raise UserError(f"--{name} {value} is not known; use one of {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class Opened:
    """A stage that is ready. rates: tokens a second through one block, decoding and in a prefill.

    cache_tokens: positions times blocks that sessions may hold. page_tokens: in steps of how many
    positions they are counted. pool: where they lie, if in pages. why: of the choice, for the log.
    """

    engine: Engine
    device: str
    dtype: str
    quantization: str
    rates: tuple[float, float]
    cache_tokens: int
    page_tokens: int
    pool: Pool | None
    why: str


def open_stage(checkpoint: Checkpoint, blocks: BlockRange, wish: StageWish) -> Opened:
    """Load the blocks. Raises UserError for whatever the owner can mend."""
    wish.check()
    return _open_torch(checkpoint, blocks, wish, "")


def _open_torch(checkpoint: Checkpoint, blocks: BlockRange, wish: StageWish, why: str) -> Opened:
    if wish.quantization in ("int8", "nf4"):
        raise UserError(
            f"--quantization {wish.quantization} needs the native engine: {why or 'ask for it'}; "
            "use --quantization none"
        )
    stage = Stage.load(
        checkpoint, blocks.start, blocks.stop, device=wish.device, dtype=wish.dtype or None
    )
    spec = checkpoint.spec
    weights = sum(map(spec.block_parameters_of, range(blocks.start, blocks.stop)))
    cache_bytes = cache_room(
        wish, blocks, free=free_bytes(stage.device), weights=weights * stage.dtype.itemsize
    )
    token_bytes = bytes_per_token(spec, 1, stage.dtype.itemsize)
    if cache_bytes < token_bytes * len(blocks):
        raise _too_small(cache_bytes, blocks)
    return Opened(
        engine=StageEngine(stage),
        device=stage.device.type,
        dtype=str(stage.dtype).removeprefix("torch."),
        quantization="none",
        rates=stage.measure(),
        cache_tokens=cache_bytes // token_bytes,
        page_tokens=1,
        pool=None,
        why=why,
    )


def cache_room(wish: StageWish, blocks: BlockRange, *, free: int, weights: int) -> int:
    """Bytes for sessions, once the weights are loaded. Raises UserError when there are none.

    free: what the device has left. weights: what the blocks took.
    """
    if wish.memory_bytes:
        free = min(free, wish.memory_bytes - weights)
        if free <= 0:
            raise UserError(
                f"--max-memory {wish.memory_bytes // _MIB} MiB: the weights of blocks {blocks} "
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


def _too_small(cache_bytes: int, blocks: BlockRange) -> UserError:
    return UserError(
        f"{cache_bytes / _MIB:.1f} MiB of cache hold not one position of {len(blocks)} blocks: "
        "give more by --cache-mib, or serve fewer blocks"
    )
