"""Where sessions' keys and values lie: one pool of fixed pages, lent by the page.

A page holds 64 positions of one block. `Pages` knows whose they are; where they lie is told by who
has the memory. Here that is `Pool`, one anonymous mapping that the system fills with memory only
where it is touched: a page's address is `base + number * page_bytes`. For torch it is a tensor on
its device (device_pages.py). A lease is one session's share: for each of its blocks a row of page
numbers, in the order of positions.

    lease.table    block 4:  7  3  9  -1      position p of block 4 lies in page table[0][p // 64]
    (int32)        block 5:  8  2 11  -1      -1: no page yet

A lease is promised the pages of all the positions that it may grow to when it opens, and takes
them as it grows: no step of it ever fails for want of memory, and `free_pages` is what can still
be promised. A fork shares its source's pages until one of the two writes (copy on write), but is
promised its whole size too, since it may come to need it: sharing saves memory, not promises.
What leases have done without may be kept for those to come (prefix_cache.py): it is promised to
nobody, and `reclaim` lets go of it as soon as a lease wants a page and none is left.
Freed pages are reused latest first; those that nobody wanted between two calls of `trim` go back
to the system.

Everything here runs on the worker's thread but `open`, which any may call: what is promised is a
number behind a lock. The counts may be read from any.
"""

from __future__ import annotations

import mmap
import sys
import threading
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LocalError, Refused, RemoteError

PAGE_TOKENS = 64  # also the tile of positions in which attention is summed up
NO_PAGE = -1
_RETRY_AFTER_S = 1.0  # guess: whoever asks past the admission, which knows better


def pages_for(tokens: int) -> int:
    """Pages that hold `tokens` positions of one block."""
    return -(-tokens // PAGE_TOKENS)


def whole_pages(tokens: int) -> int:
    """`tokens` rounded up to whole pages: what they cost."""
    return pages_for(tokens) * PAGE_TOKENS


def page_stride(page_bytes: int) -> int:
    """Bytes from one page to the next: whole pages of the system, so that each is given back."""
    return -(-page_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


class Pages(ABC):
    """The pages of one stage: whose each is, and how many are promised."""

    def __init__(self, *, budget_bytes: int, page_bytes: int) -> None:
        """page_bytes: what a page takes."""
        self.page_bytes = page_bytes
        self.pages = budget_bytes // page_bytes
        if self.pages < 1:
            raise LocalError(f"a pool of {budget_bytes} bytes holds no page of {page_bytes}")
        self._owners = array("i", bytes(4 * self.pages))
        self._untouched = 0  # from here on no page was ever lent
        self._cold: list[int] = []  # free, and given back to the system
        self._fresh: dict[int, None] = {}  # free, and touched since the last trim, in that order
        self._stale: dict[int, None] = {}  # free since before the last trim
        self._promised = 0
        self._promising = threading.Lock()
        self._used = 0
        # Let go of pages that are kept for nobody in particular; false: there are none.
        self.reclaim: Callable[[], bool] = lambda: False

    @property
    def promised_max(self) -> int:
        """Pages that leases may be promised together."""
        return self.pages

    @property
    def free_pages(self) -> int:
        """Pages that nobody was promised."""
        return self.promised_max - self._promised

    @property
    def used_pages(self) -> int:
        """Pages that somebody has now; a shared one counts once."""
        return self._used

    @property
    def spare_pages(self) -> int:
        """Pages that nobody has now, whatever is promised."""
        return self.pages - self._used

    @property
    def warm_pages(self) -> int:
        """Pages that may hold memory of the system: used, or free and not yet given back."""
        return self._used + len(self._fresh) + len(self._stale)

    def open(self, start: int, stop: int, tokens: int) -> Lease:
        """A lease of up to `tokens` positions in blocks start..stop, empty.

        Raises Refused when so much can no longer be promised.
        """
        wanted = (stop - start) * pages_for(tokens)
        with self._promising:
            free = self.free_pages
            if wanted > free:
                raise Refused(
                    f"{wanted} pages asked for, {free} of {self.promised_max} free",
                    retry_after_s=_RETRY_AFTER_S,
                )
            self._promised += wanted
        return self._lease(start, stop, tokens)

    def owners(self, page: int) -> int:
        """How many leases have this page."""
        return self._owners[page]

    @abstractmethod
    def copy_page(self, source: int, target: int) -> None:
        """Write into one page what another holds. For leases alone."""

    def trim(self) -> int:
        """Give back the memory of pages that stayed free since the last call; how many they were.

        Called every now and then: what comes and goes between two calls stays at hand.
        """
        unwanted = sorted(self._stale)
        self._stale, self._fresh = self._fresh, {}
        self._cold += reversed(unwanted)
        first = 0
        for index, page in enumerate(unwanted):  # neighbours in one call
            if index + 1 == len(unwanted) or unwanted[index + 1] != page + 1:
                self._cool(unwanted[first], index + 1 - first)
                first = index + 1
        return len(unwanted)

    def take(self) -> int:
        """A page for one owner; its contents are arbitrary. For leases alone: within a promise."""
        if self._fresh:
            page, _ = self._fresh.popitem()
        elif self._stale:
            page, _ = self._stale.popitem()
        elif self._cold:
            page = self._cold.pop()
        else:
            if self._untouched == self.pages:
                if not self.reclaim():
                    raise LocalError("a page was taken that nobody had been promised")
                return self.take()
            page = self._untouched
            self._untouched += 1
        self._owners[page] = 1
        self._used += 1
        return page

    def share(self, page: int) -> None:
        """One more owner of a page. For leases alone."""
        self._owners[page] += 1

    def give(self, page: int) -> None:
        """One owner fewer. For leases alone."""
        left = self._owners[page] - 1
        if left < 0:
            raise LocalError(f"page {page} was given back twice")
        self._owners[page] = left
        if not left:
            self._used -= 1
            self._fresh[page] = None

    def give_promise(self, pages: int) -> None:
        """So many pages fewer are promised. For leases alone."""
        with self._promising:
            self._promised -= pages

    def _lease(self, start: int, stop: int, tokens: int) -> Lease:
        return Lease(self, start, stop, tokens)

    @abstractmethod
    def _cool(self, first: int, count: int) -> None:
        """The memory of these pages, which are neighbours, is not needed for now."""


class Pool(Pages):
    """Pages in the memory of the processor."""

    def __init__(self, *, budget_bytes: int, page_bytes: int) -> None:
        """page_bytes: what a page must hold."""
        super().__init__(budget_bytes=budget_bytes, page_bytes=page_stride(page_bytes))
        self._map = _map(self.pages * self.page_bytes)
        self._view = memoryview(self._map)
        self.base: int = np.frombuffer(self._map, np.uint8).ctypes.data

    def page(self, number: int) -> memoryview:
        """The bytes of one page."""
        return self._view[number * self.page_bytes : (number + 1) * self.page_bytes]

    def copy_page(self, source: int, target: int) -> None:
        self.page(target)[:] = self.page(source)

    def _cool(self, first: int, count: int) -> None:
        _give_back(self._map, first * self.page_bytes, count * self.page_bytes)


class Lease:
    """One session's pages in the blocks start..stop. Made by `Pages.open` and `fork`."""

    def __init__(self, pool: Pages, start: int, stop: int, tokens: int) -> None:
        self.home = pool  # which promised them
        self.pool: Any = pool  # where they lie, a Pages: whoever computes knows more of it
        self.start = start
        self.stop = stop
        self.max_tokens = tokens
        self.length = 0  # positions remembered
        self.adapter: Any = None  # that its rows go through, of the stage's `load_adapter`
        # Never moved nor resized: whoever computes may keep its address as long as the lease.
        self.table: NDArray[np.int32] = np.full(
            (stop - start, pages_for(tokens)), NO_PAGE, dtype=np.int32
        )
        self._pages = 0  # of each block
        self._open = True

    @property
    def pages(self) -> int:
        """Pages that it has in each of its blocks."""
        return self._pages

    def reserve(self, at: int, stop: int) -> None:
        """Forget positions from `at` on and make ready to write at..stop: their pages are there,
        and no other lease has them. The caller sets `length` once it has written.

        Raises RemoteError for a position beyond what is remembered or agreed.
        """
        if stop > self.max_tokens:
            raise RemoteError(f"position {stop} is beyond the {self.max_tokens} agreed")
        self.truncate(at)
        partial = at // PAGE_TOKENS
        if at % PAGE_TOKENS and self.pool.owners(int(self.table[0, partial])) > 1:
            self._copy(partial)
        for column in range(self._pages, pages_for(stop)):
            for row in self.table:
                row[column] = self.pool.take()
            self._pages = column + 1

    def truncate(self, at: int) -> None:
        """Forget every position from `at` on; pages left empty go back to the pool.

        Raises RemoteError when there are not that many.
        """
        if not 0 <= at <= self.length:
            raise RemoteError(f"truncation to position {at}, but the cache holds {self.length}")
        self._shrink(pages_for(at))
        self.length = at

    def fork(self, tokens: int | None = None) -> Lease:
        """A lease that remembers the same, by the same pages until one of the two writes.

        tokens: that it may grow to, by default as many as this one. Raises Refused.
        """
        wanted = self.max_tokens if tokens is None else tokens
        if wanted < self.length:
            raise LocalError(f"a fork of {wanted} positions of a cache that holds {self.length}")
        other = self.home.open(self.start, self.stop, wanted)
        other.pool = self.pool
        kept = pages_for(self.length)
        other.table[:, :kept] = self.table[:, :kept]
        for page in self.table[:, :kept].flat:
            self.pool.share(int(page))
        other._pages, other.length, other.adapter = kept, self.length, self.adapter
        return other

    def lend(self, column: int) -> tuple[int, ...]:
        """A full page of each block, which is not written to any more: it has an owner more now."""
        pages = tuple(int(row[column]) for row in self.table)
        for page in pages:
            self.pool.share(page)
        return pages

    def adopt(self, columns: Sequence[tuple[int, ...]]) -> None:
        """Remember what these pages hold, as `lend` gave them, from the first position on. Only a
        lease that remembers nothing, and has room for it."""
        assert not self._pages and len(columns) <= self.table.shape[1]
        for column, pages in enumerate(columns):
            for row, page in zip(self.table, pages, strict=True):
                self.pool.share(page)
                row[column] = page
        self._pages, self.length = len(columns), PAGE_TOKENS * len(columns)

    def release(self) -> None:
        """Give back every page and the promise. A second call does nothing."""
        if self._open:
            self._open = False
            self._shrink(0)
            self.length = 0
            self.home.give_promise(self.table.size)

    def _shrink(self, pages: int) -> None:
        if pages < self._pages:
            for page in self.table[:, pages : self._pages].flat:
                self.pool.give(int(page))
            self.table[:, pages : self._pages] = NO_PAGE
            self._pages = pages

    def _copy(self, column: int) -> None:
        """Own a shared page of each block alone. A fork shares all blocks' pages or none's."""
        for row in self.table:
            shared, own = int(row[column]), self.pool.take()
            self.pool.copy_page(shared, own)
            self.pool.give(shared)
            row[column] = own


def _map(size: int) -> mmap.mmap:
    """Memory that costs nothing until it is touched. Private: the system takes it back on word."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _give_back(memory: mmap.mmap, start: int, size: int) -> None:
    if sys.platform == "linux":
        memory.madvise(mmap.MADV_DONTNEED, start, size)
    elif sys.platform == "darwin":
        memory.madvise(mmap.MADV_FREE, start, size)  # its DONTNEED keeps the memory
