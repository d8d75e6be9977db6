"""Stages on several devices of one node, one behind the other, as one engine.

Each part holds some of the span's blocks. A pass goes through the parts in their order, and what
one gives out is moved to the next one's device; nobody outside can tell it from a single stage:

    rows ──▶ cuda:0, blocks 4:10 ──▶ cuda:1, blocks 10:16 ──▶ rows

A session has a cache in every part that its blocks lie on, or in none. What the parts remember is
counted for each by itself (swarm/admission.py).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import RemoteError
from ...swarm.blocks import BlockRange
from ...swarm.wire import Step
from .engine import Engine, Work
from .pages import Pages
from .tensor import unpack


class PartEngine(Engine, Protocol):
    """An engine that can stand in a row of several."""

    def ready(self, cache: Any, at: int, stop: int) -> None:
        """Positions at..stop are written next. Raises RemoteError where they cannot be."""


@dataclass(frozen=True, slots=True)
class Part:
    """One device's stage. device: where it wants its rows."""

    engine: PartEngine
    device: torch.device


class JoinedCache:
    """A session's caches in the parts that its blocks lie on, in their order."""

    __slots__ = ("each",)

    def __init__(self, each: tuple[tuple[Part, Any], ...]) -> None:
        self.each = each

    @property
    def start(self) -> int:
        return int(self.each[0][1].start)

    @property
    def stop(self) -> int:
        return int(self.each[-1][1].stop)

    @property
    def length(self) -> int:
        """Positions remembered."""
        return int(self.each[-1][1].length)


class JoinedAdapter:
    """An adapter, in each of the parts."""

    def __init__(self, each: tuple[Any, ...]) -> None:
        self.each = each
        self.bytes = sum(int(one.bytes) for one in each)


class _PartWork(Work):
    """A step's next rows on their way through one part."""

    __slots__ = ("_whole",)

    def __init__(self, whole: Work, cache: Any, hidden: Tensor, step: Step) -> None:
        super().__init__(cache, hidden, step, whole.dtype)
        self._whole = whole

    def sections(self, rows: int) -> Iterator[tuple[int, int]]:
        return self._whole.sections(rows)


class JoinedEngine:
    """Parts in the order of their blocks, without a gap."""

    def __init__(self, parts: Sequence[Part]) -> None:
        first, last = parts[0].engine, parts[-1].engine
        self.blocks = BlockRange(first.blocks.start, last.blocks.stop)
        self.width = first.width
        self.context = min(part.engine.context for part in parts)
        self.numerics = joined_numerics([(one.engine.blocks, one.engine.numerics) for one in parts])
        self.exact = all(part.engine.exact for part in parts)
        self._parts = tuple(parts)

    def open_cache(
        self, blocks: BlockRange, tokens: int, adapter: JoinedAdapter | None = None
    ) -> JoinedCache:
        if not self.blocks.covers(blocks):
            raise RemoteError(f"blocks {blocks} asked, {self.blocks} served")
        worn = [None] * len(self._parts) if adapter is None else adapter.each
        each: list[tuple[Part, Any]] = []
        with ExitStack() as opened:  # all or none
            for part, its in zip(self._parts, worn, strict=True):
                mine = part.engine.blocks
                if not mine.overlaps(blocks):
                    continue
                common = BlockRange(max(mine.start, blocks.start), min(mine.stop, blocks.stop))
                cache = part.engine.open_cache(common, tokens, its)
                opened.callback(part.engine.close_cache, cache)
                each.append((part, cache))
            opened.pop_all()
        return JoinedCache(tuple(each))

    def dress(self, name: str, parts: Mapping[int, bytes]) -> JoinedAdapter:
        """parts: by block; each device loads what is for its own."""
        each = []
        for part in self._parts:
            mine = part.engine.blocks
            its = {block: raw for block, raw in parts.items() if mine.start <= block < mine.stop}
            each.append(part.engine.dress(name, its))
        return JoinedAdapter(tuple(each))

    def close_cache(self, cache: JoinedCache) -> None:
        for part, its in cache.each:
            part.engine.close_cache(its)

    def truncate(self, cache: JoinedCache, at: int) -> None:
        for part, its in cache.each:  # all hold the same positions: the first one refuses, or none
            part.engine.truncate(its, at)

    def begin(self, cache: JoinedCache, payload: memoryview, step: Step, dtype: str) -> Work:
        hidden = unpack(payload, sum(step.sizes), self.width, dtype)
        self.ready(cache, step.at, step.at + len(hidden))
        return Work(cache, hidden, step, dtype)

    def ready(self, cache: JoinedCache, at: int, stop: int) -> None:
        """Positions at..stop are written next. Raises RemoteError where they cannot be."""
        for part, its in cache.each:
            part.engine.ready(its, at, stop)

    def run(self, slices: Sequence[tuple[Work, int]]) -> None:
        began_s = time.perf_counter()
        rows = [work.hidden[work.done : work.done + count] for work, count in slices]
        for part in self._parts:
            self._pass(part, slices, rows)
        spent_s = time.perf_counter() - began_s
        for (work, _), out in zip(slices, rows, strict=True):
            work.give(out, spent_s)

    def _pass(self, part: Part, slices: Sequence[tuple[Work, int]], rows: list[Tensor]) -> None:
        """Take the rows of each slice through one part, where its session has blocks there."""
        works: dict[int, Work] = {}
        for index, (work, count) in enumerate(slices):
            its = next((cache for one, cache in work.cache.each if one is part), None)
            if its is not None:
                sizes = (count,) if part.engine.exact else work.pieces(count)
                step = Step(work.at + work.done, sizes, count)
                works[index] = _PartWork(work, its, rows[index].to(part.device), step)
        if works:
            part.engine.run([(one, len(one.hidden)) for one in works.values()])
        for index, one in works.items():
            rows[index] = one.rows()


class JoinedPools:
    """The pages of several parts, for whoever counts or keeps them."""

    def __init__(self, pools: Sequence[Pages]) -> None:
        self._pools = tuple(pools)

    @property
    def pages(self) -> int:
        return sum(pool.pages for pool in self._pools)

    @property
    def free_pages(self) -> int:
        """Pages that nobody was promised."""
        return sum(pool.free_pages for pool in self._pools)

    @property
    def used_pages(self) -> int:
        return sum(pool.used_pages for pool in self._pools)

    def trim(self) -> int:
        """As of one pool."""
        return sum(pool.trim() for pool in self._pools)


def joined_numerics(parts: Sequence[tuple[BlockRange, str]]) -> str:
    """The class of parts that lie one behind the other: their own, where they have the same.

    Parts of several classes make one that only those share who cut at the same blocks. It says so
    by a hash, since no limit was measured for it and no word of it must look as if (limits.py).
    """
    classes = {numerics for _, numerics in parts}
    if len(classes) == 1:
        return classes.pop()
    told = " + ".join(f"{blocks} {numerics}" for blocks, numerics in parts)
    return f"mixed-{hashlib.sha256(told.encode()).hexdigest()[:32]}"
