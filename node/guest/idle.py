"""Since when nobody has touched keyboard or mouse, as far as this machine tells.

    X11        the XScreenSaver extension's idle time
    Wayland    Mutter's idle monitor, over the session's bus; other compositors tell logind
    logind     the idle hint of all sessions together, over the system's bus
    terminals  when each was last read from: also over ssh, and where there is no screen
    macOS      HIDIdleTime of IOHIDSystem      never run
    Windows    GetLastInputInfo                never run

Whoever answers with the least is believed. The buses are asked by a program of their own, and so
seldom that it costs nothing: in between the time goes on. A node started by systemd for a user has
the bus of the session and, once somebody logs in graphically, its DISPLAY too.

Source: BOINC's client/hostinfo_unix.cpp, which asks the same but the buses.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final

from ...swarm.guest import Signals

COMMAND_S: Final = 2.0  # for a bus to answer
BUS_S: Final = 3.0  # guess: 10 ms of a processor each time
NO_BUS_S: Final = 60.0  # until one that did not tell is asked again
TERMINALS: Final = ("pts/[0-9]*", "tty[0-9]*")
LOGIND: Final = (
    "busctl", "--system", "--json=short", "get-property", "org.freedesktop.login1",
    "/org/freedesktop/login1", "org.freedesktop.login1.Manager", "IdleHint", "IdleSinceHint",
)  # fmt: skip
MUTTER: Final = (
    "busctl", "--user", "--json=short", "call", "org.gnome.Mutter.IdleMonitor",
    "/org/gnome/Mutter/IdleMonitor/Core", "org.gnome.Mutter.IdleMonitor", "GetIdletime",
)  # fmt: skip

Idle = Callable[[], float | None]  # seconds; None: it does not tell


def probe_of(ways: Sequence[Idle]) -> Callable[[Signals], Signals]:
    """What asks them all."""

    def look(seen: Signals) -> Signals:
        told = [idle for way in ways if (idle := way()) is not None]
        return replace(seen, idle_s=min(told, default=None))

    return look


def ways_here(platform: str = sys.platform) -> list[Idle]:
    """Those of this system."""
    if platform == "darwin":
        return [mac_idle]
    if platform == "win32":
        return [windows_idle]
    return [screen_idle, Seldom(logind_idle), Seldom(mutter_idle), Terminals().idle]


class Seldom:
    """A way that is asked from time to time only."""

    def __init__(self, way: Idle, clock: Callable[[], float] = time.monotonic) -> None:
        self._way = way
        self._clock = clock
        self._told: float | None = None
        self._asked_s = -math.inf

    def __call__(self) -> float | None:
        now = self._clock()
        if now - self._asked_s >= (NO_BUS_S if self._told is None else BUS_S):
            self._told, self._asked_s = self._way(), now
        return None if self._told is None else self._told + now - self._asked_s


class Terminals:
    """Those that somebody has typed into. The kernel notes it to eight seconds."""

    def __init__(self, folder: Path = Path("/dev"), wall: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._wall = wall

    def idle(self) -> float | None:
        last = [_read_at(path) for pattern in TERMINALS for path in self._folder.glob(pattern)]
        return max(0.0, self._wall() - max(last)) if last else None


def _read_at(path: Path) -> float:
    try:
        return path.stat().st_atime
    except OSError:  # closed meanwhile
        return 0.0


def logind_idle() -> float | None:
    """Every session's word together; 0 while one of them is not idle."""
    lines = (_said(LOGIND) or "").splitlines()
    try:
        hint, since = (json.loads(line)["data"] for line in lines)
        return max(0.0, time.time() - int(since) / 1e6) if hint else 0.0
    except (ValueError, KeyError, TypeError):
        return None


def mutter_idle() -> float | None:
    try:
        return float(json.loads(_said(MUTTER) or "")["data"][0]) / 1e3
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def mac_idle() -> float | None:
    found = re.search(r'"HIDIdleTime" = (\d+)', _said(("ioreg", "-c", "IOHIDSystem")) or "")
    return int(found[1]) / 1e9 if found else None


def windows_idle() -> float | None:
    if sys.platform != "win32":
        return None

    class Last(ctypes.Structure):  # LASTINPUTINFO
        _fields_ = (("size", ctypes.c_uint), ("ticks_ms", ctypes.c_uint))

    last = Last(ctypes.sizeof(Last), 0)
    if not ctypes.windll.user32.GetLastInputInfo(ctypes.byref(last)):
        return None
    now_ms = ctypes.windll.kernel32.GetTickCount() & 0xFFFFFFFF
    return float((now_ms - last.ticks_ms) & 0xFFFFFFFF) / 1e3


def screen_idle() -> float | None:
    """An X server's. The display is opened for each look: one that goes away ends its clients."""
    libraries = _libraries() if os.environ.get("DISPLAY") else None
    if libraries is None:
        return None
    x11, saver = libraries
    display = ctypes.c_void_p(x11.XOpenDisplay(None))
    if not display:
        return None
    try:
        info = _ScreenSaverInfo()
        root = ctypes.c_ulong(x11.XDefaultRootWindow(display))
        told = saver.XScreenSaverQueryInfo(display, root, ctypes.byref(info))
        return float(info.idle) / 1e3 if told else None
    finally:
        x11.XCloseDisplay(display)


@cache
def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL] | None:
    """X's, where they are installed."""
    names = [ctypes.util.find_library(name) for name in ("X11", "Xss")]
    try:
        x11, saver = (ctypes.CDLL(name) for name in names if name)
    except (OSError, ValueError):  # a machine without X lacks one, or both
        return None
    x11.XOpenDisplay.restype = ctypes.c_void_p
    x11.XDefaultRootWindow.restype = ctypes.c_ulong
    return x11, saver


class _ScreenSaverInfo(ctypes.Structure):  # X11/extensions/scrnsaver.h
    _fields_ = (
        ("window", ctypes.c_ulong),
        ("state", ctypes.c_int),
        ("kind", ctypes.c_int),
        ("til_or_since", ctypes.c_ulong),
        ("idle", ctypes.c_ulong),
        ("event_mask", ctypes.c_ulong),
    )


def _said(command: Sequence[str]) -> str | None:
    """What a program answers; None when it is not there, or says no."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
