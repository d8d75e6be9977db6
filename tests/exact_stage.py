"""Sessions on a stage whose rows have bits of their own: a pass, and a session in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from potluck.node.compute.pages import Lease, Pages


def step(stage: Any, hidden: Tensor, *sessions: tuple[Lease, int]) -> Tensor:
    """One pass: sessions and how many rows each has, after what it remembers."""
    runs = []
    for lease, count in sessions:
        runs.append((lease, lease.length, count))
        lease.reserve(lease.length, lease.length + count)
    out: Tensor = stage.forward_rows(hidden, runs)
    for lease, count in sessions:
        lease.length += count
    return out


def through_pages(stage: Any, pool: Pages, hidden: Tensor, chunks: Sequence[int]) -> Tensor:
    """The whole of a session's rows, in chunks of these sizes over and over."""
    lease = pool.open(stage.start, stage.stop, len(hidden))
    sizes: list[int] = []
    while sum(sizes) < len(hidden):
        sizes.append(min(chunks[len(sizes) % len(chunks)], len(hidden) - sum(sizes)))
    return torch.cat([step(stage, rows, (lease, len(rows))) for rows in hidden.split(sizes)])
