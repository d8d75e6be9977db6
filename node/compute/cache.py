"""What a session's blocks remember: keys and values, position by position.

A row is one position: its keys, then its values, of one block. Rows lie one after the other and
the first is aligned, so how much room there is never shows in the addresses that a kernel sees:
the same steps give the same bits whatever a cache went through before (growth, truncation).

    rows 0 ......... length ............ capacity ....... max_tokens
         remembered  │ written next      │ grows by doubling

This is the cache of the torch stage that runs one session at a time, whose kernels want each
block's rows in one place; the others keep them in pages (pages.py, device_pages.py).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import RemoteError
from .adapted import PlacedAdapter
from .pages import PAGE_TOKENS
from .spec import ModelSpec


def bytes_per_token(spec: ModelSpec, blocks: int, itemsize: int) -> int:
    """Bytes that `blocks` blocks remember for one position."""
    return blocks * spec.kv_width * itemsize


class Cache:
    """Keys and values of one session in the blocks start..stop of a stage."""

    def __init__(
        self,
        spec: ModelSpec,
        start: int,
        stop: int,
        *,
        max_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.start = start
        self.stop = stop
        self.max_tokens = max_tokens
        self.length = 0
        self.adapter: PlacedAdapter | None = None  # that its rows go through
        self._row = (spec.kv_width, dtype, device)
        self._per_token = bytes_per_token(spec, stop - start, dtype.itemsize)
        self._blocks = [self._room(min(PAGE_TOKENS, max_tokens)) for _ in range(start, stop)]

    @property
    def capacity(self) -> int:
        """Positions that fit without growing."""
        return len(self._blocks[0])

    def bytes_for(self, tokens: int) -> int:
        """Bytes that this cache needs to remember `tokens` positions."""
        return self._per_token * tokens

    def truncate(self, at: int) -> None:
        """Forget every position from `at` on. Raises RemoteError when there are not that many."""
        if not 0 <= at <= self.length:
            raise RemoteError(f"truncation to position {at}, but the cache holds {self.length}")
        self.length = at

    def reserve(self, stop: int) -> None:
        """Make room for positions below `stop`. Raises RemoteError beyond the agreed size."""
        if stop > self.max_tokens:
            raise RemoteError(f"position {stop} is beyond the {self.max_tokens} agreed")
        capacity = self.capacity_for(stop)
        if capacity > self.capacity:
            self._copy(lambda: self._room(capacity))

    def capacity_for(self, stop: int) -> int:
        """Positions that there will be room for once those below `stop` are written."""
        capacity = self.capacity
        while capacity < stop:
            capacity *= 2
        return min(capacity, self.max_tokens)

    def go(self, device: torch.device) -> None:
        """Lie there, as large as now, until `come_back`: no step may be run meanwhile."""
        width, dtype, _ = self._row
        capacity = self.capacity
        self._copy(lambda: torch.empty((capacity, width), dtype=dtype, device=device))

    def come_back(self) -> None:
        """Lie on the stage's device again."""
        capacity = self.capacity
        self._copy(lambda: self._room(capacity))

    def rows(self, block: int) -> Tensor:
        """The rows of a block, (capacity, keys and values): row p is position p."""
        return self._blocks[block - self.start]

    def check(self, at: int, stop: int) -> None:
        """Raise RemoteError unless positions at..stop may be written next."""
        if not 0 <= at <= self.length:
            raise RemoteError(f"position {at}, but the cache holds {self.length}")
        if stop > self.max_tokens:
            raise RemoteError(f"position {stop} is beyond the {self.max_tokens} agreed")

    def release(self) -> None:
        """Forget everything, and the memory with it. It is of no more use."""
        self.length = self.max_tokens = 0
        self._blocks = []

    def _copy(self, room: Callable[[], Tensor]) -> None:
        """What is remembered lies in other rooms from now on."""
        for index, old in enumerate(self._blocks):  # one by one: never the whole cache twice
            new = room()
            new[: self.length] = old[: self.length]
            self._blocks[index] = new

    def _room(self, tokens: int) -> Tensor:
        width, dtype, device = self._row
        return torch.empty((tokens, width), dtype=dtype, device=device)
