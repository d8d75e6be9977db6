"""Beginnings of prompts that a stage has computed before: kept in the pages that nobody needs.

    session ── lend ──▶ kept page: keys and values, and a copy of the rows that went in and out
    session ◀─ adopt ── the longest chain that it asks for; its rows are answered from memory

Kept are whole pages, which no lease writes to: a session that goes back into one gets its own copy
of it first (pages.py). They are shared by counting owners, as forks are. The rows themselves lie in
pages of the same pool, so that all of it is counted against the budget of the sessions' cache; and
none of it is promised to anybody: what leases want is taken from here, the longest unused first
(swarm/prefix.py). So a prefix costs nobody his place, and half of the pages at most.

It is only for stages whose numbers depend on nothing but a session's rows: then what another
session had computed, in whatever steps, is what this one's own steps would come to, bit for bit.

Everything here runs on the worker's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ...crypto.digest import DIGEST_BYTES
from ...swarm.prefix import GRAIN, Names, Scope, Shelf
from .pages import PAGE_TOKENS, Lease, Pool

KEPT_SHARE: Final = 0.5  # guess: of a pool; the rest is not worth a look at each session's end

LEAVES_BYTES: Final = GRAIN * DIGEST_BYTES  # of a page's rows

assert GRAIN == PAGE_TOKENS, "a name stands for a page"


@dataclass(frozen=True, slots=True)
class Seen:
    """One page's rows. took: the leaves of those that went in (swarm/receipt.py). name, gave: of
    those that came out; empty where nobody wanted them."""

    took: tuple[bytes, ...]
    name: bytes = b""
    gave: bytes = b""


@dataclass(frozen=True, slots=True)
class _Kept:
    """pages: of each block one. copies: in which the rows lie, `size` bytes of them."""

    pages: tuple[int, ...]
    copies: tuple[int, ...]
    size: int
    name: bytes


class PrefixCache:
    """Of one stage, over its pool."""

    def __init__(self, pool: Pool, kind_of: Callable[[int], int] = lambda tokens: 0) -> None:
        """kind_of: sessions of so many positions have equal bits only in the same kind."""
        self.kind_of = kind_of
        self._pool = pool
        self._shelf: Shelf[_Kept] = Shelf(int(KEPT_SHARE * pool.pages))
        pool.reclaim = self._reclaim

    @property
    def pages(self) -> int:
        """What is kept, in pages; those that sessions have now too among them."""
        return self._shelf.size

    def find(self, scope: Scope, names: Names, lease: Lease, bytes_max: int) -> tuple[Seen, ...]:
        """Have the lease, which is empty, begin with what is kept of this chain; its rows, up to
        so many bytes of those that came out."""
        most = min(len(names), lease.max_tokens // PAGE_TOKENS)
        found = self._shelf.find(scope, names[:most])
        while found and sum(one.size - LEAVES_BYTES for one in found) > bytes_max:
            found.pop()
        seen = tuple(self._read(one) for one in found)
        lease.adopt([one.pages for one in found])
        return seen

    def keep(self, scope: Scope, names: Names, lease: Lease, seen: Seen) -> None:
        """Keep the page of this session that bears the last of these names."""
        if self._shelf.holds(scope, names[-1]) or len(names) > lease.pages:
            return
        raw = b"".join(seen.took) + seen.gave
        count = -(-len(raw) // self._pool.page_bytes)
        while self._pool.spare_pages < count:
            if not self._reclaim():
                return  # sessions have all of them
        copies = tuple(self._pool.take() for _ in range(count))
        for place, page in enumerate(copies):
            part = raw[place * self._pool.page_bytes : (place + 1) * self._pool.page_bytes]
            self._pool.page(page)[: len(part)] = part
        pages = lease.lend(len(names) - 1)
        kept = _Kept(pages, copies, len(raw), seen.name)
        for gone in self._shelf.put(scope, names, kept, len(pages) + len(copies)):
            self._forget(gone)

    def clear(self) -> None:
        """Keep nothing of what is there now."""
        while (gone := self._shelf.pop()) is not None:
            self._forget(gone)

    def _read(self, kept: _Kept) -> Seen:
        raw = b"".join(bytes(self._pool.page(page)) for page in kept.copies)[: kept.size]
        took = tuple(raw[at : at + DIGEST_BYTES] for at in range(0, LEAVES_BYTES, DIGEST_BYTES))
        return Seen(took, kept.name, raw[LEAVES_BYTES:])

    def _reclaim(self) -> bool:
        """Let go of the longest unused until a page is free that was not; false: there is none."""
        before = self._pool.spare_pages
        while self._pool.spare_pages == before:
            gone = self._shelf.pop()
            if gone is None:
                return False
            self._forget(gone)
        return True

    def _forget(self, kept: _Kept) -> None:
        for page in (*kept.pages, *kept.copies):
            self._pool.give(page)
