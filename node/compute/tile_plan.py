"""What the blocks share in one pass over rows of many sessions: tiles, turns, pages, who sees what.

A plan is made on the host from where sessions stand, and goes to the device as indices. For passes
of few rows it has an even form too: filled up, without a change of bits, to one of few shapes, and
all of its indices in one vector, so that recorded kernels find it where they expect it (graphs.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .adapted import Worn
from .device_pages import DevicePool
from .graphs import Inputs
from .paged_attend import Look, even_look, even_shapes, look
from .pages import PAGE_TOKENS, Lease
from .spec import ModelSpec
from .stage import Blocks
from .tile_check import FEW, Agreed
from .tiles import Tiles

_HOST = torch.device("cpu")


class Run(NamedTuple):
    """Some rows of a session. long: they came in a step of many rows."""

    lease: Lease
    at: int
    rows: int
    long: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What all blocks share in one pass; tensors on the device.

    cuts: rows of each tile; tiles: into which what is multiplied inside one may be cut. firsts:
    where each run's rows begin. slots: (blocks, rows), of all pages' positions. empty: (rows, 1),
    those of no session; None: there are none.
    """

    blocks: range
    cuts: list[int]
    tiles: list[Tiles]
    firsts: list[int]
    turns: list[tuple[Tensor, ...]]  # of each tile
    worn: list[list[Worn]]  # of each tile
    slots: Tensor
    empty: Tensor | None
    looks: dict[int | None, list[Look]]  # by window


class Key(NamedTuple):
    """Passes of one key have the same shapes. steps: by window, as in a Look."""

    blocks: range
    rows: int
    steps: tuple[tuple[int | None, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Even:
    """A pass of one tile, filled up. numbers: int64, on the host: slots, then who is nobody's, then
    the Look of each window, leaf by leaf. turns: as the tile's, on the device."""

    key: Key
    firsts: list[int]
    numbers: Tensor
    turns: tuple[Tensor, ...]

    @property
    def rows(self) -> int:
        return self.key.rows

    def inputs(self, hidden: Tensor) -> Inputs:
        return Inputs(self.key, hidden, self.numbers, self.turns)


class Planner:
    """Of one stage."""

    def __init__(self, spec: ModelSpec, own: Blocks, tiles: Agreed, device: torch.device) -> None:
        self._spec = spec
        self._own = own
        self._tiles = tiles
        self._device = device

    def plan(self, pool: DevicePool, runs: list[Run]) -> Plan:
        """runs: the short ones first."""
        blocks = range(runs[0].lease.start, runs[0].lease.stop)
        cuts: list[int] = []
        tiles: list[Tiles] = []
        firsts: list[int] = []
        for long, size in ((False, self._tiles.few), (True, self._tiles.many)):
            at = sum(cuts)
            for run in runs:
                if run.long == long:
                    firsts.append(at)
                    at += run.rows
            more = size.cuts(at - sum(cuts))
            cuts += more
            tiles += [size] * len(more)
        positions, empty, slots = _placed_rows(pool, runs, firsts, sum(cuts), blocks)
        seen = [(run.lease, run.at, run.rows) for run in runs]
        place = partial(look, seen, firsts, nobodys=pool.nobodys, device=self._device)
        turns = self._turns(runs, firsts, self._placed(positions))
        return Plan(
            blocks=blocks,
            cuts=cuts,
            tiles=tiles,
            firsts=firsts,
            turns=list(zip(*(torch.split(one, cuts) for one in turns), strict=True)),
            worn=self._worn(runs, firsts, cuts),
            slots=self._placed(slots),
            empty=self._placed(empty) if empty.any() else None,
            looks={window: place(window) for window in self._windows(blocks)},
        )

    def even(self, pool: DevicePool, runs: list[Run]) -> Even | None:
        """The same for few rows; None: these are more, or some wear an adapter."""
        rows = sum(run.rows for run in runs)
        cuts = self._tiles.few.cuts(rows)
        if rows > FEW or len(cuts) > 1 or any(run.long or run.lease.adapter for run in runs):
            return None
        blocks = range(runs[0].lease.start, runs[0].lease.stop)
        firsts = np.cumsum([0, *(run.rows for run in runs[:-1])]).tolist()
        positions, empty, slots = _placed_rows(pool, runs, firsts, cuts[0], blocks)
        seen = [(run.lease, run.at, run.rows) for run in runs]
        leaves = [torch.from_numpy(slots), torch.from_numpy(empty)]
        steps = []
        for window in self._windows(blocks):
            one = even_look(seen, firsts, window, cuts[0], nobodys=pool.nobodys, device=_HOST)
            if one is None:
                return None
            leaves += one.indices
            steps.append((window, one.steps))
        numbers = torch.cat([leaf.flatten().long() for leaf in leaves])
        turns = self._turns(runs, firsts, self._placed(positions))
        return Even(Key(blocks, cuts[0], tuple(steps)), firsts, numbers, tuple(turns))

    def unpacked(self, inputs: Inputs) -> Plan:
        """The plan whose indices are `inputs.numbers`, as views of them."""
        key = inputs.key
        assert isinstance(key, Key)
        span, at = len(key.blocks), 0

        def take(*shape: int) -> Tensor:
            nonlocal at
            first, at = at, at + prod(shape)
            return inputs.numbers[first:at].view(shape)

        slots, empty = take(span, key.rows), take(key.rows, 1).bool()
        looks = {}
        for window, steps in key.steps:
            indices = [take(*shape) for shape in even_shapes(span, key.rows, steps)]
            looks[window] = [Look.made(indices, steps, empty)]
        return Plan(
            blocks=key.blocks,
            cuts=[key.rows],
            tiles=[self._tiles.few],
            firsts=[],
            turns=[inputs.turns],
            worn=[[]],
            slots=slots,
            empty=empty,
            looks=looks,
        )

    def _windows(self, blocks: Iterable[int]) -> list[int | None]:
        return list(dict.fromkeys(self._spec.windows[index] for index in blocks))

    def _turns(self, runs: list[Run], firsts: list[int], positions: Tensor) -> list[Tensor]:
        """Of each row, by kind of rope. A session's size may say by which table it turns."""
        stop = max(run.at + run.rows for run in runs)
        tables = self._own.turns_of(runs[0].lease.max_tokens)
        found = [one.of(positions, stop) for one in tables]
        for run, first in zip(runs, firsts, strict=True):
            its = self._own.turns_of(run.lease.max_tokens)
            if its is not tables:
                for whole, one in zip(found, its, strict=True):
                    whole[first : first + run.rows] = one.rows(run.at, run.at + run.rows)
        return found

    def _worn(self, runs: list[Run], firsts: list[int], cuts: list[int]) -> list[list[Worn]]:
        """Of each tile, the adapters that some of its rows wear."""
        adapters = {id(run.lease.adapter): run.lease.adapter for run in runs}
        adapters.pop(id(None), None)
        found: list[list[Worn]] = [[] for _ in cuts]
        for adapter in adapters.values():
            wears = np.zeros((sum(cuts), 1), np.bool_)
            for run, first in zip(runs, firsts, strict=True):
                wears[first : first + run.rows] = run.lease.adapter is adapter
            at = 0
            for worn, size in zip(found, cuts, strict=True):
                rows = wears[at : at + size]
                if rows.any():
                    worn.append(Worn(adapter, adapter.tiles, self._placed(rows)))
                at += size
        return found

    def _placed(self, numbers: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(self._device)


def _placed_rows(
    pool: DevicePool, runs: list[Run], firsts: list[int], rows: int, blocks: range
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Of the rows of a pass: positions, (rows, 1) who is nobody's, and slots by block."""
    positions, empty = np.zeros(rows, np.int64), np.ones((rows, 1), np.bool_)
    slots = np.empty((len(blocks), rows), np.int64)
    slots[:] = pool.nobodys * PAGE_TOKENS + np.arange(rows) % PAGE_TOKENS
    for run, first in zip(runs, firsts, strict=True):
        own, its = slice(first, first + run.rows), np.arange(run.at, run.at + run.rows)
        positions[own], empty[own] = its, False
        pages = run.lease.table[:, its // PAGE_TOKENS]
        slots[:, own] = pages * PAGE_TOKENS + its % PAGE_TOKENS
    return positions, empty, slots
