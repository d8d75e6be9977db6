"""What else runs on this machine: programs by name, and how much of the processors they take.

What is ours counts for nobody's: every potluck of this machine, be it a node or who asks one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePath
from typing import Final

import psutil

from ...swarm.guest import Signals

OURS: Final = "potluck"
WINDOW_S: Final = 10.0  # BOINC's PROC_MONITOR_PERIOD


class Programs:
    """Those named of the programs that run. names: in lower case."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def __call__(self, seen: Signals) -> Signals:
        running = {
            name for process in psutil.process_iter(["name"]) for name in _names(process.info)
        }
        return replace(seen, programs=frozenset(running & self._names))


def _names(told: dict[str, str | None]) -> set[str]:
    """As people may call it: with its ending or without, in lower case."""
    name = (told["name"] or "").lower()
    return {name, name.removesuffix(".exe")}


def is_ours(pid: int) -> bool:
    """Whether this process is a potluck. One that cannot be looked at is somebody else's."""
    if pid == os.getpid():
        return True
    try:
        words = psutil.Process(pid).cmdline()
    except (psutil.Error, OSError):
        return False
    return any(PurePath(word).name == OURS or word.startswith(f"{OURS}.") for word in words[:5])


def our_seconds() -> dict[int, float]:
    """What our processes have computed for, by pid: user's and system's seconds."""
    found = {}
    for pid in psutil.pids():
        if is_ours(pid):
            try:
                times = psutil.Process(pid).cpu_times()
            except (psutil.Error, OSError):
                continue
            found[pid] = times.user + times.system
    return found


class Busy:
    """Which share of all processors others have used since the last look.

    ours: as `our_seconds`.
    """

    def __init__(
        self,
        ours: Callable[[], dict[int, float]] = our_seconds,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ours = ours
        self._clock = clock
        self._last: tuple[float, float, float, dict[int, float]] | None = None

    def __call__(self, seen: Signals) -> Signals:
        now, times, ours = self._clock(), psutil.cpu_times(), self._ours()
        resting = times.idle + getattr(times, "iowait", 0.0)
        # a guest of a virtual machine is counted in user as well
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        last, self._last = self._last, (now, total, resting, ours)
        if last is None or total <= last[1]:
            return seen
        spent = (total - last[1]) - (resting - last[2])
        mine = sum(max(0.0, used - last[3].get(pid, used)) for pid, used in ours.items())
        share = (spent - mine) / (total - last[1])
        return replace(seen, busy=min(1.0, max(0.0, share)))
