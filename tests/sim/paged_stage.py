"""An exact stage without a model: what it remembers lies in pages, and every row depends on all.

Row p of a block is x(p) + (block + 1) * sum over q <= p of (q + 1) * x(q), modulo a prime: whole
numbers, exact whatever shares the pass, and wrong as soon as one page is another's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch

from potluck.node.compute.pages import PAGE_TOKENS, Lease, Pool

WIDTH = 4
PRIME = 8191
CONTEXT = 8192


@dataclass
class PagedStage:
    """Implements engine.ExactStage. before_pass: called with the sessions of each pass."""

    start: int = 0
    stop: int = 3
    numerics: str = "paged"
    before_pass: Callable[[Sequence[tuple[Lease, int, int]]], None] = lambda sessions: None
    passes: list[list[tuple[int, int]]] = field(default_factory=list)  # (at, count) of each
    spec: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(hidden=WIDTH, context=CONTEXT)
    )
    page_bytes: int = PAGE_TOKENS * WIDTH * 4

    def pool(self, pages: int) -> Pool:
        return Pool(budget_bytes=pages * 4096 * 4, page_bytes=self.page_bytes)

    def forward_rows(
        self, hidden: torch.Tensor, sessions: Sequence[tuple[Lease, int, int]]
    ) -> torch.Tensor:
        self.before_pass(sessions)
        self.passes.append([(at, count) for _, at, count in sessions])
        assert hidden.dtype == torch.float32
        assert hidden.shape == (sum(count for _, _, count in sessions), WIDTH)
        out = []
        first = 0
        for lease, at, count in sessions:
            rows = hidden[first : first + count].numpy().astype(np.int64)
            first += count
            for index, table in enumerate(lease.table):
                rows = _block(lease.pool, table, lease.start + index, at, rows)
            out.append(rows)
        return torch.from_numpy(np.concatenate(out).astype(np.float32))


def _block(pool: Pool, table: np.ndarray, block: int, at: int, rows: np.ndarray) -> np.ndarray:
    stop = at + len(rows)
    kept = np.concatenate([_page(pool, page) for page in table[: -(-stop // PAGE_TOKENS)]])
    kept[at:stop] = rows
    for column in range(at // PAGE_TOKENS, -(-stop // PAGE_TOKENS)):
        assert table[column] >= 0 and pool.owners(int(table[column])) == 1
        _page(pool, table[column])[:] = kept[column * PAGE_TOKENS : (column + 1) * PAGE_TOKENS]
    weights = np.arange(1, stop + 1)[:, None]
    sums = np.cumsum(kept[:stop].astype(np.int64) * weights, axis=0)[at:]
    return (rows + (block + 1) * sums) % PRIME


def _page(pool: Pool, number: int) -> np.ndarray:
    raw = pool.page(int(number))[: PAGE_TOKENS * WIDTH * 4]
    return np.frombuffer(raw, np.float32).reshape(PAGE_TOKENS, WIDTH)


def alone(rows: np.ndarray, start: int = 0, stop: int = 3) -> np.ndarray:
    """What a session of these rows gets, computed without pages, passes or slices."""
    rows = rows.astype(np.int64)
    weights = np.arange(1, len(rows) + 1)[:, None]
    for block in range(start, stop):
        rows = (rows + (block + 1) * np.cumsum(rows * weights, axis=0)) % PRIME
    return rows.astype(np.float32)
