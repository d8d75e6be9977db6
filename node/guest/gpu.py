"""Who else computes on NVIDIA's GPUs of this machine, and how warm and thirsty they are: by NVML.

The library comes with the driver; without it nothing is told. A process counts as foreign when it
computes (and does not draw: a desktop does both), or takes a fifth of a GPU's multiprocessors,
whatever it does there: a game.

In a container the driver names processes as the machine outside does. Then ours is not among those
that it names, though we hold memory, and nothing can be told of the others.

Source: NVML's reference manual; struct layouts by nvml.h of CUDA 12.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import psutil

from ...swarm.guest import Signals
from .neighbours import is_ours

LIBRARY: Final = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
GAME_PERCENT: Final = 20  # guess: of the multiprocessors; a desktop at rest takes under ten
PROCESSES_MAX: Final = 256

_DONE, _TOO_SMALL = 0, 7  # NVML_SUCCESS, NVML_ERROR_INSUFFICIENT_SIZE
_CORE: Final = 0  # NVML_TEMPERATURE_GPU


class _Process(ctypes.Structure):  # nvmlProcessInfo_t
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("memory", ctypes.c_ulonglong),
        ("instance", ctypes.c_uint),
        ("compute", ctypes.c_uint),
    )


class _Used(ctypes.Structure):  # nvmlProcessUtilizationSample_t
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("at_us", ctypes.c_ulonglong),
        ("processors", ctypes.c_uint),
        ("memory", ctypes.c_uint),
        ("encoder", ctypes.c_uint),
        ("decoder", ctypes.c_uint),
    )


class Cards:
    """NVIDIA's GPUs. holds: whether we hold memory of one now."""

    def __init__(self, holds: Callable[[], bool], library: str = LIBRARY) -> None:
        self._holds = holds
        self._nvml = _opened(library)
        self._ours: set[int] = set()  # the GPUs on which we were seen
        self._looked_us: dict[int, int] = {}  # up to when each one's use was told

    @property
    def there(self) -> bool:
        return self._nvml is not None

    def __call__(self, seen: Signals) -> Signals:
        if self._nvml is None:
            return seen
        cards = list(self._cards())
        heat = [self._number("nvmlDeviceGetTemperature", card, _CORE) for _, card in cards]
        drawn = [self._number("nvmlDeviceGetPowerUsage", card) for _, card in cards]
        return replace(
            seen,
            foreign=self._foreign(cards),
            celsius=max((float(one) for one in heat if one is not None), default=None),
            watts=max((one / 1e3 for one in drawn if one is not None), default=None),
        )

    def _foreign(self, cards: list[tuple[int, Any]]) -> tuple[str, ...]:
        me = os.getpid()
        computing = {index: self._processes("Compute", card) for index, card in cards}
        ours = {index for index, pids in computing.items() if me in pids}
        if ours:
            self._ours = ours
        elif self._holds():
            return ()  # the driver has another name for us, and so perhaps for others
        found: set[int] = set()
        for index, card in cards:
            if self._ours and index not in self._ours:
                continue  # of no concern to us
            drawing = self._processes("Graphics", card)
            found |= computing[index] - drawing
            found |= self._busy(index, card)
        return tuple(sorted({_name(pid) for pid in found if not is_ours(pid)}))

    def _cards(self) -> Iterator[tuple[int, Any]]:
        count = ctypes.c_uint()
        if self._ask("nvmlDeviceGetCount_v2", ctypes.byref(count)) != _DONE:
            return
        for index in range(count.value):
            card = ctypes.c_void_p()
            if self._ask("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(card)) == _DONE:
                yield index, card

    def _processes(self, kind: str, card: Any) -> set[int]:
        count, told = ctypes.c_uint(PROCESSES_MAX), (_Process * PROCESSES_MAX)()
        name = f"nvmlDeviceGet{kind}RunningProcesses_v3"
        if self._ask(name, card, ctypes.byref(count), told) != _DONE:
            return set()
        return {int(one.pid) for one in told[: count.value]}

    def _busy(self, index: int, card: Any) -> set[int]:
        """Who has used much of it since the last look."""
        since = ctypes.c_ulonglong(self._looked_us.get(index, 0))
        count = ctypes.c_uint(0)
        name = "nvmlDeviceGetProcessUtilization"
        if self._ask(name, card, None, ctypes.byref(count), since) != _TOO_SMALL:
            return set()
        told = (_Used * count.value)()
        if self._ask(name, card, told, ctypes.byref(count), since) != _DONE:
            return set()
        samples = told[: count.value]
        self._looked_us[index] = max([since.value, *(int(one.at_us) for one in samples)])
        return {int(one.pid) for one in samples if one.processors >= GAME_PERCENT}

    def _number(self, name: str, card: Any, *more: int) -> int | None:
        found = ctypes.c_uint()
        done = self._ask(name, card, *more, ctypes.byref(found)) == _DONE
        return found.value if done else None

    def _ask(self, name: str, *words: Any) -> int:
        """NVML's return code; that of an unknown function where the driver is too old for it."""
        with suppress(AttributeError):
            return int(getattr(self._nvml, name)(*words))
        return 13  # NVML_ERROR_FUNCTION_NOT_FOUND


def _opened(library: str) -> ctypes.CDLL | None:
    try:
        found = ctypes.CDLL(library)
        return found if found.nvmlInit_v2() == _DONE else None
    except (OSError, AttributeError):
        return None


def _name(pid: int) -> str:
    try:
        return str(psutil.Process(pid).name())
    except (psutil.Error, OSError):
        return f"process {pid}"
