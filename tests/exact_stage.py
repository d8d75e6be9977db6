"""Sessions on a stage whose rows have bits of their own: a pass, and a session in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Same:
    """What any such stage must do: the same bits, however its session came there."""

    def __init__(self, stage: Any, pool_for: Callable[[Any, int], Pages]) -> None:
        self._stage = stage
        self._pool_for = pool_for

    def after_taking_back(self) -> None:
        hidden = torch.randn(180, self._stage.spec.hidden)
        lease = self._open(400, 300)
        found = []
        for rows in hidden.split(12):
            at = lease.length
            step(self._stage, torch.randn(90, self._stage.spec.hidden), (lease, 90))
            lease.truncate(at)
            found.append(step(self._stage, rows, (lease, len(rows))))
        assert torch.equal(torch.cat(found), self._whole(self._stage, hidden))

    def beside_a_fork(self) -> None:
        hidden = torch.randn(100, self._stage.spec.hidden)
        lease = self._open(400, 100)
        step(self._stage, hidden[:80], (lease, 80))
        fork = lease.fork()
        step(self._stage, torch.randn(20, self._stage.spec.hidden), (fork, 20))
        found = step(self._stage, hidden[80:], (lease, 20))
        assert torch.equal(found, self._whole(self._stage, hidden)[80:])

    def in_two_halves(self, late: Any) -> None:
        """Of two blocks; late: a stage of the second alone."""
        hidden = torch.randn(70, self._stage.spec.hidden)
        pool = self._pool_for(self._stage, 200)
        halves = [pool.open(0, 1, 100), pool.open(1, 2, 100)]
        middle = step(self._stage, hidden, (halves[0], 70))
        out = step(self._stage, middle, (halves[1], 70))
        assert torch.equal(out, self._whole(self._stage, hidden))
        assert torch.equal(out, self._whole(late, middle))

    def _open(self, room: int, tokens: int) -> Lease:
        return self._pool_for(self._stage, room).open(0, self._stage.stop, tokens)

    def _whole(self, stage: Any, hidden: Tensor) -> Tensor:
        pool = self._pool_for(stage, len(hidden))
        return through_pages(stage, pool, hidden, (len(hidden),))
