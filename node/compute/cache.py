"""What a session's blocks remember: keys and values, position by position.

A row is one position: its keys, then its values, of one block. Rows lie one after the other and
the first is aligned, so how much room there is never shows in the addresses that a kernel sees:
the same steps give the same bits whatever a cache went through before (growth, truncation).

    rows 0 ......... length ............ capacity ....... max_tokens
         remembered  │ written next      │ grows by doubling
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import LocalError, Refused, RemoteError
from .spec import ModelSpec

PAGE_TOKENS = 64  # a cache starts with one page: cheap to open, and most chats outgrow it slowly


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
        self._row = (spec.kv_width, dtype, device)
        self._per_token = bytes_per_token(spec, stop - start, dtype.itemsize)
        self._blocks = self._room(min(PAGE_TOKENS, max_tokens))

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
        capacity = self.capacity
        if stop <= capacity:
            return
        while capacity < stop:
            capacity *= 2
        kept = self._blocks
        self._blocks = self._room(min(capacity, self.max_tokens))
        for old, new in zip(kept, self._blocks, strict=True):
            new[: self.length] = old[: self.length]

    def rows(self, block: int) -> Tensor:
        """The rows of a block, (capacity, keys and values): row p is position p."""
        return self._blocks[block - self.start]

    def _room(self, tokens: int) -> list[Tensor]:
        width, dtype, device = self._row
        return [
            torch.empty((tokens, width), dtype=dtype, device=device)
            for _ in range(self.stop - self.start)
        ]


@dataclass(slots=True)
class CacheBudget:
    """How many positions of cache a server lends, and how many are lent."""

    total: int
    taken: int = 0

    @property
    def free(self) -> int:
        return self.total - self.taken

    def reserve(self, tokens: int, *, retry_after_s: float) -> None:
        """Lend `tokens` positions. Raises Refused when fewer are free."""
        if tokens > self.free:
            raise Refused(
                f"{tokens} cache tokens asked, {self.free} of {self.total} free",
                retry_after_s=retry_after_s,
            )
        self.taken += tokens

    def release(self, tokens: int) -> None:
        """Take `tokens` positions back."""
        if not 0 <= tokens <= self.taken:
            raise LocalError(f"{tokens} cache tokens released, {self.taken} lent")
        self.taken -= tokens
