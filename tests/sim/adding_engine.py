"""A stage that adds: output row = input row + sum over its blocks of (block + 1) * f(cache).

Under an adapter each block adds the sum of its part's bytes besides.

Its hidden states are f32 rows like a real one's. What comes out depends on every row remembered, on
the order and on the piece sizes, so a wrong replay shows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
import trio

from potluck.errors import RemoteError
from potluck.node.compute.tensor import pack, unpack
from potluck.swarm.blocks import BlockRange
from potluck.swarm.rows import row_bytes
from potluck.swarm.wire import Step

WIDTH = 4


@dataclass(eq=False)
class AddingCache:
    blocks: BlockRange
    rows: dict[int, list[bytes]] = field(default_factory=dict)
    worn: AddingAdapter | None = None


@dataclass(eq=False)
class AddingAdapter:
    sums: dict[int, int]
    bytes: int


class AddingEngine:
    """Implements server.Engine without a device."""

    width = WIDTH
    context = 4096

    def __init__(self, blocks: BlockRange, numerics: str = "adding") -> None:
        self.blocks = blocks
        self.numerics = numerics
        self.caches: list[AddingCache] = []

    def dress(self, name: str, parts: dict[int, bytes]) -> AddingAdapter:
        sums = {block: sum(part) for block, part in parts.items()}
        return AddingAdapter(sums, sum(map(len, parts.values())))

    def open_cache(
        self, blocks: BlockRange, tokens: int, adapter: AddingAdapter | None = None
    ) -> AddingCache:
        cache = AddingCache(blocks, {b: [] for b in range(blocks.start, blocks.stop)}, adapter)
        self.caches.append(cache)
        return cache

    def close_cache(self, cache: AddingCache) -> None:
        self.caches.remove(cache)

    def run(
        self, cache: AddingCache, payload: memoryview, step: Step, dtype: str
    ) -> tuple[memoryview, float]:
        if len(payload) != sum(step.sizes) * row_bytes(WIDTH, dtype):
            raise RemoteError("payload of the wrong size")
        rows = unpack(payload, sum(step.sizes), WIDTH, dtype).float().numpy()
        at, out, start = step.at, [], 0
        for size in step.sizes:
            piece = rows[start : start + size]
            for block in range(cache.blocks.start, cache.blocks.stop):
                piece = self._block(cache.rows[block], block, at, piece)
                piece = piece + (cache.worn.sums.get(block, 0) if cache.worn else 0)
            out.append(piece)
            at, start = at + size, start + size
        whole = np.concatenate(out).astype("<f4")
        return pack(torch.from_numpy(whole[len(whole) - step.rows :]), dtype), 0.0

    def _block(self, kept: list[bytes], block: int, at: int, piece: np.ndarray) -> np.ndarray:
        assert len(kept) >= at, "a hole in the cache"
        del kept[at:]
        outputs = []
        for row in piece:
            kept.append(row.tobytes() + bytes([len(piece) % 256]))
            digest = hashlib.blake2b(b"".join(kept), digest_size=WIDTH).digest()
            outputs.append((row + np.frombuffer(digest, "u1") * (block + 1)) % 65536)
        return np.stack(outputs).astype("<f4")

    def truncate(self, cache: AddingCache, at: int) -> None:
        for kept in cache.rows.values():
            del kept[at:]


class InstantDevice:
    """A worker that runs at once, or takes `step_s` of virtual time."""

    def __init__(self, engine: AddingEngine, step_s: float = 0.0) -> None:
        self.engine = engine
        self.step_s = step_s
        self.waiting = 0
        self.ran: list[Step] = []

    async def run(self, function, *args):  # type: ignore[no-untyped-def]
        self.waiting += 1
        try:
            await trio.sleep(self.step_s)
            return function(*args)
        finally:
            self.waiting -= 1

    def post(self, function, *args):  # type: ignore[no-untyped-def]
        function(*args)

    async def step(  # type: ignore[no-untyped-def]
        self, cache, peer, payload, step, dtype, *, within_s
    ):
        self.waiting += 1
        try:
            await trio.sleep(self.step_s)
            self.ran.append(step)
            return self.engine.run(cache, payload, step, dtype)
        finally:
            self.waiting -= 1
