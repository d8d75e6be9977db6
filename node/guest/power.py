"""Whether a battery feeds this machine, and how warm it is.

    /sys/class/power_supply/*     type Mains: online; type Battery: status
    /sys/class/hwmon/*            name, temp*_input in thousandths of a degree, power1_average
                                  in millionths of a watt
    /sys/class/thermal/*          type, temp: where there is no sensor of the processor's own

Elsewhere psutil is asked for the battery; that was never run on macOS or Windows.

Source: Linux, Documentation/ABI/testing/sysfs-class-power, -hwmon and -thermal.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import psutil

from ...swarm.guest import Signals

PROCESSORS: Final = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
ZONES: Final = ("x86_pkg_temp", "cpu-thermal", "cpu_thermal", "soc_thermal", "cpu0-thermal")
CARDS: Final = ("amdgpu", "nouveau", "xe", "i915")  # NVIDIA's own driver answers by NVML (gpu.py)


class Battery:
    """folder: as /sys/class/power_supply."""

    def __init__(self, folder: Path = Path("/sys/class/power_supply")) -> None:
        self._folder = folder

    def __call__(self, seen: Signals) -> Signals:
        return replace(seen, battery=self.feeds())

    def feeds(self) -> bool | None:
        """None: there is none, or nobody knows."""
        if sys.platform != "linux":
            found = psutil.sensors_battery()
            return None if found is None or found.power_plugged is None else not found.power_plugged
        supplies = [one for one in _entries(self._folder) if _text(one / "scope") != "Device"]
        mains = [one for one in supplies if _text(one / "type") in ("Mains", "USB")]
        cells = [one for one in supplies if _text(one / "type") == "Battery"]
        if not cells:
            return None
        if any(_text(one / "online") == "1" for one in mains):
            return False
        return any(_text(one / "status") == "Discharging" for one in cells)


class Heat:
    """The hottest sensor of what we compute on. sys: as /sys/class."""

    def __init__(self, *, on_gpu: bool, folder: Path = Path("/sys/class")) -> None:
        self._names = CARDS if on_gpu else PROCESSORS
        self._on_gpu = on_gpu
        self._folder = folder

    def __call__(self, seen: Signals) -> Signals:
        sensors = [
            one for one in _entries(self._folder / "hwmon") if _text(one / "name") in self._names
        ]
        heat = [_number(file) for one in sensors for file in sorted(one.glob("temp*_input"))]
        if not sensors and not self._on_gpu:
            zones = _entries(self._folder / "thermal")
            heat = [_number(one / "temp") for one in zones if _text(one / "type") in ZONES]
        drawn = [_number(one / "power1_average") for one in sensors]
        return replace(
            seen,
            celsius=_most(seen.celsius, heat, 1e-3),
            watts=_most(seen.watts, drawn, 1e-6),
        )


def _most(other: float | None, read: list[float | None], unit: float) -> float | None:
    """The greatest; `other` where no sensor tells."""
    return max((one * unit for one in read if one is not None), default=other)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None
