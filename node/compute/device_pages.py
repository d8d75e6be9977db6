"""Pages in a tensor on the torch stage's device, and in the host's memory for sessions at rest.

    DevicePool.rows   (pages + 1, 64, keys and values): a position of a block is a row of its page

The tensor is there from the start and never moves, so that an index is all a kernel needs of a
session. The page behind the last is nobody's: rows that only fill up a tile are written to it, and
whoever has fewer pages than his neighbours reads it, where a mask hides what it finds.

A mask hides by a share of zero, and zero times what is no number is none: so no page holds what a
stranger left there. Pages are cleared before they are first written (`clean`).

Where the host has memory to spare, leases rest there while others compute (spill.py). Their pages
move bit for bit; which session rests is decided by whoever runs the steps.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from ...errors import RemoteError
from .pages import PAGE_TOKENS, Lease, Pages, Pool, page_stride, pages_for
from .spec import ModelSpec
from .spill import Budget

_MOVED = 64  # pages moved at once: what a move takes beside them


def page_bytes_of(spec: ModelSpec, itemsize: int) -> int:
    """What a page of one block holds."""
    return PAGE_TOKENS * spec.kv_width * itemsize


class HostPages(Pool):
    """Pages of the host's memory, as tensors."""

    def __init__(self, *, budget_bytes: int, page_bytes: int, dtype: torch.dtype) -> None:
        super().__init__(budget_bytes=budget_bytes, page_bytes=page_bytes)
        self._held = page_bytes
        self._width = page_bytes // PAGE_TOKENS // dtype.itemsize
        self._dtype = dtype
        whole = torch.frombuffer(self._map, dtype=torch.uint8)
        self._bytes = whole.view(self.pages, self.page_bytes)

    def read(self, pages: list[int]) -> Tensor:
        """What these pages hold, (pages, 64, keys and values)."""
        found = self._bytes[pages, : self._held].contiguous()
        return found.view(self._dtype).view(len(pages), PAGE_TOKENS, self._width)

    def write(self, pages: list[int], rows: Tensor) -> None:
        plain = rows.cpu().contiguous()
        self._bytes[pages, : self._held] = plain.view(len(pages), -1).view(torch.uint8)


class DevicePool(Pages):
    """Pages on a device."""

    def __init__(
        self,
        *,
        budget: Budget,
        page_bytes: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """budget: what sessions may have there, and in the host's memory."""
        super().__init__(budget_bytes=budget.device_bytes, page_bytes=page_bytes)
        self.budget = budget
        width = page_bytes // PAGE_TOKENS // dtype.itemsize
        shape = (self.pages + 1, PAGE_TOKENS, width)
        self.rows = torch.zeros(shape, dtype=dtype, device=device)
        self.host: HostPages | None = None
        if budget.spills:
            pages = -(-budget.host_bytes // page_bytes)
            self.host = HostPages(
                budget_bytes=pages * page_stride(page_bytes), page_bytes=page_bytes, dtype=dtype
            )
        self._unclean: dict[int, None] = {}

    @property
    def nobodys(self) -> int:
        """The page behind the last."""
        return self.pages

    @property
    def promised_max(self) -> int:
        return self.budget.promised_bytes // self.page_bytes

    def take(self) -> int:
        page = super().take()
        self._unclean[page] = None
        return page

    def clean(self) -> None:
        """Clear what was taken since the last call. Before the rows of a pass are written."""
        if self._unclean:
            self.rows[list(self._unclean)] = 0
            self._unclean.clear()

    def copy_page(self, source: int, target: int) -> None:
        self.write([target], self.read([source]))

    def read(self, pages: list[int]) -> Tensor:
        """What these pages hold, (pages, 64, keys and values)."""
        self.clean()  # one of them may never have been written
        return self.rows[pages]

    def write(self, pages: list[int], rows: Tensor) -> None:
        for page in pages:
            self._unclean.pop(page, None)
        self.rows[pages] = rows.to(self.rows.device)

    def trim(self) -> int:
        """The device's memory stays ours; what the host gets back is counted."""
        return 0 if self.host is None else self.host.trim()

    def _lease(self, start: int, stop: int, tokens: int) -> Lease:
        return MovingLease(self, start, stop, tokens)

    def _cool(self, first: int, count: int) -> None:
        """Nothing: `trim` does not ask for it."""


class MovingLease(Lease):
    """A session's pages, which may rest in the host's memory between two steps.

    It is what spill.py moves. A page that a fork shares is moved as a copy.
    """

    home: DevicePool

    @property
    def capacity(self) -> int:
        """Positions that its pages hold."""
        return self.pages * PAGE_TOKENS

    def bytes_for(self, tokens: int) -> int:
        """Bytes of the pages of so many positions."""
        return len(self.table) * pages_for(tokens) * self.home.page_bytes

    def capacity_for(self, stop: int) -> int:
        """Positions that there will be room for once those below `stop` are written."""
        return max(self.capacity, pages_for(stop) * PAGE_TOKENS)

    def check(self, at: int, stop: int) -> None:
        """Raise RemoteError unless positions at..stop may be written next."""
        if not 0 <= at <= self.length:
            raise RemoteError(f"position {at}, but the cache holds {self.length}")
        if stop > self.max_tokens:
            raise RemoteError(f"position {stop} is beyond the {self.max_tokens} agreed")

    def go(self, device: torch.device) -> None:
        """Rest in the host's memory until `come_back`: no step may be run meanwhile."""
        assert self.home.host is not None
        self._move(self.home.host)

    def come_back(self) -> None:
        """Lie on the stage's device again."""
        self._move(self.home)

    def _move(self, to: DevicePool | HostPages) -> None:
        source: DevicePool | HostPages = self.pool
        old = [int(page) for page in self.table[:, : self.pages].flat]
        fresh: list[int] = []
        with ExitStack() as taken:  # all are moved or none
            for _ in old:
                fresh.append(to.take())
                taken.callback(to.give, fresh[-1])
            for first in range(0, len(old), _MOVED):
                some = slice(first, first + _MOVED)
                to.write(fresh[some], source.read(old[some]))
            taken.pop_all()
        for page in old:
            source.give(page)
        self.table[:, : self.pages] = np.array(fresh, np.int32).reshape(len(self.table), -1)
        self.pool = to
