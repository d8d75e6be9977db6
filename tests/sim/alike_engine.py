"""A stage whose rows have the same bits in any step.

What comes out of a row depends on every row remembered, at every hop, so that a wrong replay or a
row of a guess that was not taken back shows in the words.
"""

from __future__ import annotations

import hashlib

import numpy as np

from .adding_engine import WIDTH, AddingEngine
from .memory_swarm import Node, World

NUMERICS = "none c1"


class AlikeEngine(AddingEngine):
    """The first number of a row is its token, and goes through as it is."""

    def _block(self, kept: list[bytes], block: int, at: int, piece: np.ndarray) -> np.ndarray:
        assert len(kept) >= at, "a hole in the cache"
        del kept[at:]
        outputs = []
        for row in piece:
            kept.append(row.tobytes())
            digest = hashlib.blake2b(b"".join(kept), digest_size=WIDTH).digest()
            out = (row + np.frombuffer(digest, "u1") * (block + 1)) % 65536
            out[0] = row[0]
            outputs.append(out)
        return np.stack(outputs).astype("<f4")


async def add_alike(made: World, start: int, stop: int, *, step_s: float = 0.02) -> Node:
    node = await made.add(start, stop, numerics=NUMERICS, step_s=step_s)
    node.engine.__class__ = AlikeEngine
    return node
