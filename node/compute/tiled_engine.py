"""A stage in tiles as the server sees it: one pass for many sessions, some of which may rest.

As `BatchEngine`, with two things more. How long a step was is handed on, for devices on which rows
of long steps have bits of their own (tile_check.py). And where the host's memory serves too, the
sessions of a pass are brought to the device first; more of them than have room there at once go in
several passes, which changes no bit. Pages are then taken when a pass runs, not when a step begins:
at rest a session does not grow, or the host might be promised more than it has (spill.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from torch import Tensor

from .device_pages import DevicePool, MovingLease
from .engine import BatchEngine, Work
from .spill import Residents
from .tile_check import FEW
from .tile_plan import Run
from .tiled_stage import TiledStage


class TiledEngine(BatchEngine):
    """Torch's blocks for many sessions at once."""

    def __init__(self, stage: TiledStage, pool: DevicePool) -> None:
        super().__init__(stage, pool)
        self.pool = pool
        self._tiled = stage
        self._residents = Residents(pool.budget) if pool.budget.spills else None

    @property
    def residents(self) -> Residents | None:
        """Which sessions lie on the device; None: all, always."""
        return self._residents

    def close_cache(self, cache: Any) -> None:
        if self._residents is not None and self._residents.knows(cache):
            self._residents.close(cache)
        super().close_cache(cache)

    def ready(self, cache: Any, at: int, stop: int) -> None:
        if self._residents is None:
            super().ready(cache, at, stop)
        else:
            cache.check(at, stop)

    def run(self, slices: Sequence[tuple[Work, int]]) -> None:
        if self._residents is None:
            super().run(slices)
            return
        wanted = [(work.cache, work.at + work.done + rows) for work, rows in slices]
        left, ends = iter(slices), iter(wanted)
        for count in self._residents.part(wanted):
            self._gather(list(islice(ends, count)))
            some = list(islice(left, count))
            for work, rows in some:
                at = work.at + work.done
                work.cache.reserve(at, at + rows)
            super().run(some)

    def _gather(self, wanted: list[tuple[MovingLease, int]]) -> None:
        """Have these on the device. One of which nothing is remembered is only now counted: it is
        opened beside a pass, and the counts are the worker's."""
        assert self._residents is not None
        for cache, _ in wanted:
            if not self._residents.knows(cache):
                self._residents.open(cache)
        self._residents.use_all(wanted)

    def _through(self, hidden: Tensor, slices: Sequence[tuple[Work, int]]) -> Tensor:
        runs: list[Run] = []
        for work, rows in slices:
            at = work.at + work.done
            for count, size in work.sections(rows):
                runs.append(Run(work.cache, at, count, size > FEW))
                at += count
        return self._tiled.forward_runs(hidden, runs)
