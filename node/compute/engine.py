"""A stage as the server sees it: payloads in, payloads out, some rows at a time.

The server knows frames and positions, the stage knows tensors; between them stand only these
calls, all on the worker's thread but those marked `beside`. A step becomes a `Work`, which goes
through the stage in one slice or in several (batch.py). A session may wear an adapter (adapter.py)
from its opening on; those of one pass may wear different ones, or none. There are two kinds of
stage:

    exact     a row's numbers depend on nothing but its session: rows of many sessions go together,
              steps are cut and merged at will; keys and values lie in pages (ours in C, and torch's
              in tiles: tiled_engine.py)
    inexact   the last bits of a product depend on its shape (torch): each step of each session
              goes by itself, a replay in the sizes of the first run; each session has its cache
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ...errors import RemoteError
from ...swarm.blocks import BlockRange
from ...swarm.wire import Step
from .adapted import PlacedAdapter
from .adapter import Adapter
from .cache import Cache
from .pages import Lease, Pages
from .parts import wear
from .spec import ModelSpec
from .spill import Residents
from .stage import Stage
from .tensor import pack, unpack

Call = TypeVar("Call", bound=Callable[..., object])

NOTHING = memoryview(b"")

_BESIDE: set[object] = set()  # functions that are marked


class Work:
    """A step on its way through a stage: what is left of its rows, and what came out."""

    __slots__ = ("_out", "_wanted", "at", "cache", "done", "dtype", "hidden", "sizes", "spent_s")

    def __init__(self, cache: Any, hidden: Tensor, step: Step, dtype: str) -> None:
        self.cache = cache
        self.hidden = hidden
        self.at = step.at
        self.sizes = step.sizes
        self.dtype = dtype
        self.done = 0  # rows
        self.spent_s = 0.0  # inside the blocks, in every pass that it was part of
        self._wanted = step.rows
        self._out: list[Tensor] = []

    @property
    def complete(self) -> bool:
        return self.done == len(self.hidden)

    def sections(self, rows: int) -> Iterator[tuple[int, int]]:
        """Its next so many rows, cut where its pieces end: how many, and of how large a piece."""
        first, last = self.done, self.done + rows
        stop = 0
        for size in self.sizes:
            stop += size
            common = min(stop, last) - max(stop - size, first)
            if common > 0:
                yield common, size

    def pieces(self, rows: int) -> tuple[int, ...]:
        """The sizes of its next pieces, which are `rows` rows."""
        found: list[int] = []
        before = 0
        for size in self.sizes:
            if self.done <= before < self.done + rows:
                found.append(size)
            before += size
        return tuple(found)

    def give(self, out: Tensor, spent_s: float) -> None:
        """The next rows that came out. Only those that were asked for are kept."""
        self.done += len(out)
        self.spent_s += spent_s
        first = max(0, len(out) - (self.done - (len(self.hidden) - self._wanted)))
        if first < len(out):
            self._out.append(out[first:])

    def rows(self) -> Tensor:
        """The rows that were asked for, of which there are some."""
        return self._out[0] if len(self._out) == 1 else torch.cat(self._out)

    def answer(self) -> memoryview:
        """The rows that were asked for, packed."""
        return pack(self.rows(), self.dtype) if self._wanted else NOTHING


def beside(call: Call) -> Call:
    """Mark a call that any thread may make while a pass runs: a worker makes it at once."""
    _BESIDE.add(call)
    return call


def is_beside(call: Callable[..., object]) -> bool:
    return getattr(call, "__func__", call) in _BESIDE


class Engine(Protocol):
    """What a server runs for its sessions."""

    blocks: BlockRange
    width: int
    context: int  # positions that a session may have
    numerics: str
    exact: bool

    def open_cache(self, blocks: BlockRange, tokens: int, adapter: Any = None) -> Any:
        """The memory of a session, which wears what `dress` gave. Raises RemoteError for blocks or
        sizes not served."""

    def dress(self, name: str, parts: Mapping[int, bytes]) -> Any:
        """An adapter's parts (parts.py), loaded. Raises RemoteError for what does not fit."""

    def close_cache(self, cache: Any) -> None: ...

    def truncate(self, cache: Any, at: int) -> None:
        """Forget positions from `at` on. Raises RemoteError when there are not that many."""

    def begin(self, cache: Any, payload: memoryview, step: Step, dtype: str) -> Work:
        """A step that may be run. Raises RemoteError for what no honest client sends."""

    def run(self, slices: Sequence[tuple[Work, int]]) -> None:
        """Run the next so many rows of each. What `begin` accepted does not fail."""


class StageEngine:
    """An inexact stage: sessions one after another, each step in its own sizes."""

    exact = False

    def __init__(self, stage: Stage, residents: Residents | None = None) -> None:
        """residents: which sessions lie on the device; None: all, always."""
        self.blocks = BlockRange(stage.start, stage.stop)
        self.width = stage.spec.hidden
        self.context = stage.spec.context
        self.numerics = stage.numerics
        self._stage = stage
        self._residents = residents

    def open_cache(
        self, blocks: BlockRange, tokens: int, adapter: PlacedAdapter | None = None
    ) -> Cache:
        cache = self._stage.open_cache(blocks.start, blocks.stop, tokens)
        cache.adapter = adapter
        if self._residents is not None:
            self._residents.open(cache)
        return cache

    def dress(self, name: str, parts: Mapping[int, bytes]) -> PlacedAdapter:
        return self._stage.load_adapter(wear(self._stage.spec, name, parts))

    def close_cache(self, cache: Cache) -> None:
        if self._residents is not None:
            self._residents.close(cache)
        cache.release()

    def truncate(self, cache: Cache, at: int) -> None:
        cache.truncate(at)

    def begin(self, cache: Cache, payload: memoryview, step: Step, dtype: str) -> Work:
        hidden = unpack(payload, sum(step.sizes), self.width, dtype)
        self.ready(cache, step.at, step.at + len(hidden))
        return Work(cache, hidden, step, dtype)

    def ready(self, cache: Cache, at: int, stop: int) -> None:
        """Positions at..stop are written next. Raises RemoteError where they cannot be."""
        cache.check(at, stop)

    def run(self, slices: Sequence[tuple[Work, int]]) -> None:
        for work, rows in slices:
            began_s = time.perf_counter()
            start, at = work.done, work.at + work.done
            hidden = work.hidden[start : start + rows]
            if self._residents is not None:
                self._residents.use(work.cache, at + rows)
            out = self._stage.forward_steps(hidden, work.cache, at, work.pieces(rows))
            work.give(out, time.perf_counter() - began_s)


class ExactStage(Protocol):
    """Blocks whose numbers depend on nothing but the session, whatever shares the pass."""

    spec: ModelSpec
    start: int
    stop: int

    @property
    def numerics(self) -> str: ...

    @property
    def page_bytes(self) -> int:
        """What a page of one block holds (pages.py)."""

    def forward_rows(self, hidden: Tensor, sessions: Sequence[tuple[Lease, int, int]]) -> Tensor:
        """Run rows of several sessions through their blocks, which are the same for all.

        hidden: float32 (rows, width), sessions one after another; sessions: (lease, at, count),
        whose pages for positions at..at+count are there. Returns the same shape.
        """

    def load_adapter(self, adapter: Adapter) -> Any:
        """What leases may wear."""

    def measure(self) -> tuple[float, float]:
        """Tokens per second and block: decoding one by one, and in a prefill of 128."""


class BatchEngine:
    """An exact stage: one pass for the rows of all sessions."""

    exact = True

    def __init__(self, stage: ExactStage, pool: Pages) -> None:
        self.blocks = BlockRange(stage.start, stage.stop)
        self.width = stage.spec.hidden
        self.context = stage.spec.context
        self.numerics = stage.numerics
        self._stage = stage
        self._pool = pool

    @beside
    def open_cache(self, blocks: BlockRange, tokens: int, adapter: Any = None) -> Lease:
        if not self.blocks.covers(blocks):
            raise RemoteError(f"blocks {blocks} asked, {self.blocks} served")
        if not 1 <= tokens <= self.context:
            raise RemoteError(f"{tokens} tokens asked, the context is {self.context}")
        lease = self._pool.open(blocks.start, blocks.stop, tokens)
        lease.adapter = adapter
        return lease

    def dress(self, name: str, parts: Mapping[int, bytes]) -> Any:
        return self._stage.load_adapter(wear(self._stage.spec, name, parts))

    def close_cache(self, cache: Lease) -> None:
        cache.release()

    def truncate(self, cache: Lease, at: int) -> None:
        cache.truncate(at)

    def begin(self, cache: Lease, payload: memoryview, step: Step, dtype: str) -> Work:
        hidden = unpack(payload, sum(step.sizes), self.width, dtype)
        self.ready(cache, step.at, step.at + len(hidden))
        return Work(cache, hidden.float(), step, dtype)

    def ready(self, cache: Lease, at: int, stop: int) -> None:
        """Positions at..stop are written next. Raises RemoteError where they cannot be."""
        cache.reserve(at, stop)

    def run(self, slices: Sequence[tuple[Work, int]]) -> None:
        """One pass for each range of blocks that is asked for; nearly always there is one."""
        for start, stop in sorted({(work.cache.start, work.cache.stop) for work, _ in slices}):
            self._pass(
                [one for one in slices if (one[0].cache.start, one[0].cache.stop) == (start, stop)]
            )

    def _pass(self, slices: Sequence[tuple[Work, int]]) -> None:
        began_s = time.perf_counter()
        parts = [work.hidden[work.done : work.done + rows] for work, rows in slices]
        hidden = parts[0] if len(parts) == 1 else torch.cat(parts)
        out = self._through(hidden, slices)
        spent_s = time.perf_counter() - began_s
        first = 0
        for work, rows in slices:
            work.give(out[first : first + rows], spent_s)
            work.cache.length = work.at + work.done
            first += rows

    def _through(self, hidden: Tensor, slices: Sequence[tuple[Work, int]]) -> Tensor:
        """The rows of all slices through their blocks."""
        sessions = [(work.cache, work.at + work.done, rows) for work, rows in slices]
        return self._stage.forward_rows(hidden, sessions)
