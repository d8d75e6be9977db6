"""A span on the processor by our C: rows of many sessions in one pass, the same bits each time.

What comes out for a row depends on its session's rows up to it: not on who shares the pass, how a
prompt was cut, how many threads there are, or which processor it is (native/block.h). So steps may
be merged and cut freely, and `numerics` names the format alone. Keys and values lie in pages
(pages.py). Everything here runs on the one thread that is given the device (worker.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import UserError
from .adapter import Adapter
from .checkpoint import Checkpoint
from .layout import BlockWeights, layout_of
from .loading import counted
from .memory import processors, require_memory
from .native.adapter import PackedAdapter
from .native.blocks import RUN, PackedBlock, PackedBlocks, page_bytes
from .native.linear import Pool as Threads
from .pages import Lease, Pool, pages_for
from .quant.formats import QUANTIZATIONS, Quantization, choose
from .quant.larder import Key, Larder
from .quant.quantizers import NotFinite
from .quant.reading import weights_of
from .rating import decode_and_prefill, median_s
from .rope import Ropes, is_stretched
from .spec import ModelSpec
from .weight import Format, Weight

KERNELS = "c1"  # counts up whenever some format's bits change
PACKED = (
    "tiles1"  # how packed matrices lie on disk: counts up when quantizers or pack.c change that
)

_ROPE_ROWS = 1024  # by which tables grow
_PASS_ROWS = 256  # of one pass: bounds its memory, and reads weights seldom enough


class NativeStage:
    """The blocks start..stop of a model, packed for our C."""

    exact = True

    def __init__(
        self,
        spec: ModelSpec,
        start: int,
        blocks: Sequence[PackedBlock],
        threads: Threads,
        *,
        format: Format,
        byte_pages: bool = False,
    ) -> None:
        self.spec = spec
        self.start = start
        self.stop = start + len(blocks)
        self.format = format
        self.byte_pages = byte_pages
        self.page_bytes = page_bytes(spec, byte_pages=byte_pages)  # what a page of a block holds
        self.weight_bytes = sum(block.bytes for block in blocks)
        self._threads = threads
        self._blocks = PackedBlocks(spec, blocks, threads, byte_pages=byte_pages)
        self._ropes = _RopeTables(spec)

    @staticmethod
    def load(
        checkpoint: Checkpoint,
        start: int,
        stop: int,
        *,
        quantization: str | None = None,
        threads: int | None = None,
        cache_dir: Path | None = None,
        byte_pages: bool = False,
    ) -> NativeStage:
        """Load blocks start..stop and nothing else, one after another. Raises UserError.

        quantization: `none`, `int8`, `nf4`; None or `auto`: as the checkpoint is stored.
        threads: None: one for each processor that we may use. cache_dir: where quantized blocks are
        kept. byte_pages: keys and values in 8 bits.
        """
        spec = checkpoint.spec
        if not 0 <= start < stop <= spec.blocks:
            raise UserError(
                f"{checkpoint.name}: blocks {start}:{stop} are outside 0:{spec.blocks};"
                " choose a range inside"
            )
        chosen = choose(quantization, checkpoint.stored_format)
        layouts = {index: layout_of(spec, index) for index in range(start, stop)}
        for layout in layouts.values():
            checkpoint.require(layout.shapes)
        pool = Threads(threads or processors())
        loader = _Loader(checkpoint, chosen, pool, cache_dir)
        needed = sum(loader.bytes_of(layout.shapes) for layout in layouts.values())
        require_memory(needed, torch.device("cpu"), f"{checkpoint.name}: blocks {start}:{stop}")
        with torch.inference_mode():
            blocks = [loader.block(index) for index in counted(layouts)]
        return NativeStage(spec, start, blocks, pool, format=chosen.format, byte_pages=byte_pages)

    @property
    def numerics(self) -> str:
        """Stages of equal strings give equal bits for equal rows."""
        pages = " kv8" if self.byte_pages else ""
        return f"{self.format} {KERNELS}{pages}"

    def load_adapter(self, adapter: Adapter) -> PackedAdapter:
        """What leases may wear (`Lease.adapter`), so that their rows go through it."""
        return PackedAdapter(self.spec, adapter, self.start, self.stop)

    def forward_rows(self, hidden: Tensor, sessions: Sequence[tuple[Lease, int, int]]) -> Tensor:
        """Run rows of several sessions through their blocks, which are the same for all.

        hidden: float32 (rows, width), sessions one after another; sessions: (lease, at, count),
        whose pages for positions at..at+count are there. Returns the same shape. Writes their keys
        and values; sets no length.
        """
        out = hidden.detach().to(torch.float32).clone(memory_format=torch.contiguous_format)
        rows: NDArray[np.float32] = out.numpy()
        lease = sessions[0][0]
        start, stop, pool = lease.start - self.start, lease.stop - self.start, lease.pool
        first = 0
        for runs in _passes(sessions):
            last = first + sum(count for _, _, count in runs)
            self._blocks.run(
                rows[first:last],
                b"".join(self._packed(*run) for run in runs),
                pages=pool.base,
                page_bytes=pool.page_bytes,
                start=start,
                stop=stop,
                rank=max(0 if lease.adapter is None else lease.adapter.rank for lease, *_ in runs),
            )
            first = last
        return out

    def measure(self) -> tuple[float, float]:
        """Tokens per second and block: decoding one by one, and in a prefill of 128."""
        return decode_and_prefill(self._rate, self.spec.context)

    def _rate(self, tokens: int, blocks: int) -> float:
        stop = min(self.start + blocks, self.stop)
        pages = (stop - self.start) * pages_for(tokens)
        pool = Pool(
            budget_bytes=(pages + 1) * (self.page_bytes + (1 << 16)), page_bytes=self.page_bytes
        )
        lease = pool.open(self.start, stop, tokens)
        lease.reserve(0, tokens)
        hidden = torch.linspace(-1, 1, self.spec.hidden).expand(tokens, -1)
        spent_s = median_s(lambda: self.forward_rows(hidden, [(lease, 0, tokens)]))
        return tokens * (stop - self.start) / spent_s

    def _packed(self, lease: Lease, at: int, count: int) -> bytes:
        table = lease.table
        cosines, sines = self._ropes.addresses(at + count, lease.max_tokens)
        adapter = 0 if lease.adapter is None else lease.adapter.address(lease.start)
        return RUN.pack(table.ctypes.data, table.shape[1], *cosines, *sines, adapter, at, count)


def _passes(
    sessions: Sequence[tuple[Lease, int, int]],
) -> list[list[tuple[Lease, int, int]]]:
    """Sessions cut so that no pass has too many rows."""
    found: list[list[tuple[Lease, int, int]]] = [[]]
    room = _PASS_ROWS
    for lease, at, count in sessions:
        done = 0
        while done < count:
            if not room:
                found.append([])
                room = _PASS_ROWS
            part = min(room, count - done)
            found[-1].append((lease, at + done, part))
            done += part
            room -= part
    return found


class _Loader:
    """Blocks in a format, packed: from a checkpoint, or from what was kept of it.

    Kept are the packed matrices of int8 and nf4, which are mapped next time: no byte of them is
    computed or copied again. What the checkpoint stores as it is served is read from it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        quantization: Quantization,
        pool: Threads,
        cache_dir: Path | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._quantization = quantization
        self._pool = pool
        stored = checkpoint.verbatim and quantization.format == checkpoint.stored_format
        keeps = cache_dir is not None and quantization.format != "none" and not stored
        self._larder = Larder(cache_dir, pool=pool) if cache_dir is not None and keeps else None
        self._digest = checkpoint.digest() if keeps else "unkept"

    def bytes_of(self, shapes: dict[str, tuple[int, ...]]) -> int:
        """What the matrices of a block will take."""
        matrices = [shape for shape in shapes.values() if len(shape) == 2]
        return sum(self._quantization.bytes_of(*shape) for shape in matrices)

    def block(self, index: int) -> PackedBlock:
        """Block `index`, mapped or made and kept. Raises UserError."""
        spec = self._checkpoint.spec
        layout = layout_of(spec, index)
        exact = self._checkpoint.tensors(layout.exact)
        plain = QUANTIZATIONS["none"]
        matrices = {name: plain.quantize(one) for name, one in exact.items() if one.ndim == 2}
        key = Key(self._digest, index, self._quantization.format, PACKED)
        kept = None if self._larder is None else self._larder.get(key)
        coded = [name for name in layout.shapes if name not in layout.exact]
        if kept is None:
            matrices |= self._matrices(coded)
        weights = BlockWeights.of(layout, matrices, exact)
        try:
            block = PackedBlock(
                spec, index, weights, self._pool, coding=self._quantization, kept=kept
            )
        except NotFinite:
            dict(weights_of(self._checkpoint, coded, self._quantization))  # which names it
            raise
        if kept is None and self._larder is not None:
            self._larder.put(key, *block.to_keep())
        return block

    def _matrices(self, names: Sequence[str]) -> dict[str, Weight]:
        """Numbers are mapped from the files, to be quantized as they are packed; where some are
        codes, each is brought into the format, one after another."""
        files = self._checkpoint
        if all(files.stored_names(name) == (name,) for name in names):
            return {name: Weight.plain(one) for name, one in files.tensors(names).items()}
        return dict(weights_of(files, names, self._quantization))


class _RopeTables:
    """Where the tables of rotary embedding lie, for sessions of either kind."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._ropes = Ropes(spec)
        self._found: dict[bool, tuple[int, tuple[int, int], tuple[int, int]]] = {}
        self._kept: dict[bool, list[NDArray[np.float32]]] = {}

    def addresses(self, stop: int, session_tokens: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Cosines and sines of positions below `stop`: of blocks that see all, and of others."""
        stretched = is_stretched(self._spec.rope, session_tokens)
        room, cosines, sines = self._found.get(stretched, (0, (0, 0), (0, 0)))
        if stop > room:
            room, cosines, sines = self._found[stretched] = self._grow(
                stop, session_tokens, stretched
            )
        return cosines, sines

    def _grow(
        self, stop: int, session_tokens: int, stretched: bool
    ) -> tuple[int, tuple[int, int], tuple[int, int]]:
        spec = self._spec
        room = -(-stop // _ROPE_ROWS) * _ROPE_ROWS
        local = spec.rope if spec.local_rope is None else spec.local_rope
        tables = [
            self._ropes.angles(rope, session_tokens).rows(0, room) for rope in (spec.rope, local)
        ]
        kept = [np.ascontiguousarray(one) for table in tables for one in table]
        self._kept[stretched] = kept
        at = [one.ctypes.data for one in kept]
        return room, (at[0], at[2]), (at[1], at[3])
