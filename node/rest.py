"""A node that shall rest: what its owner asks of it, in a file of its home, and what it answers.

    home/rest.json    there while the node shall rest: {"until_s": unix seconds or null, "why": ...}
    home/node.json    what the node says of itself: "state": "serving" or "resting" among it, and
                      "rest": {"why": ..., "until_s": ...} while anything asks for rest

`potluck pause` writes the one and reads the other. Files, and no socket: they are as private as the
home, work on every system, and nothing has to be kept open or found.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import psutil
import trio

from ..errors import UserError
from .config import RUNNING
from .home import write_whole

REST: Final = "rest.json"
BYTES_MAX: Final = 4096
WHY_MAX: Final = 200
LOOK_S: Final = 0.5  # at that file
LONGEST_S: Final = 366 * 86400.0


@dataclass(frozen=True, slots=True)
class Rest:
    """until_s: unix seconds; infinite: until it is told to resume. why: for people. within_s: that
    sessions have to move at most."""

    until_s: float
    why: str = ""
    within_s: float = math.inf


class Wishes(Protocol):
    """Who says when to rest: the owner, and what a guest heeds (guest/watch.py)."""

    def rest(self) -> Rest | None:
        """What is wanted now; None: to serve."""
        ...

    async def changed(self) -> None:
        """Wait until that may be another."""
        ...


class Asked:
    """The owner's word alone."""

    def __init__(self, home: Path, wall: Callable[[], float] = time.time) -> None:
        self._home = home
        self._wall = wall

    def rest(self) -> Rest | None:
        return asked_rest(self._home, self._wall())

    async def changed(self) -> None:
        await trio.sleep(LOOK_S)


def ask_rest(home: Path, rest: Rest) -> None:
    """Have the node of this home rest. Raises UserError."""
    until_s = rest.until_s if math.isfinite(rest.until_s) else None
    write_whole(home / REST, json.dumps({"until_s": until_s, "why": rest.why}))


def end_rest(home: Path) -> None:
    """Have the node of this home serve again. Raises UserError."""
    try:
        (home / REST).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{home / REST}: cannot be removed ({error.strerror}); do so") from error


def asked_rest(home: Path, now: float) -> Rest | None:
    """What is asked now, by unix seconds; None: to serve. Damaged, it asks for nothing."""
    try:
        with (home / REST).open(encoding="utf-8") as file:
            told = json.loads(file.read(BYTES_MAX))
        until_s, why = told["until_s"], str(told.get("why", ""))[:WHY_MAX]
        rest = Rest(math.inf if until_s is None else float(until_s), why)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return rest if now < rest.until_s else None


def running(home: Path) -> dict[str, Any]:
    """What the node of this home says of itself. Raises UserError when none runs."""
    path = home / RUNNING
    with suppress(OSError, ValueError, KeyError, TypeError, psutil.Error):
        told = json.loads(path.read_text(encoding="utf-8"))
        process = psutil.Process(int(told["pid"]))
        alive = process.create_time() <= path.stat().st_mtime
        if alive and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return dict(told)
    raise UserError(f"no node runs under {home}: start one by potluck node, or give its --home")


def parse_duration(text: str) -> float:
    """`90s`, `30m`, `1h`, `2d`, `1h30m` in seconds. Raises UserError."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    total_s, digits = 0.0, ""
    for letter in text.strip().lower():
        if letter in "0123456789.":
            digits += letter
            continue
        try:
            total_s += float(digits) * units[letter]
        except (ValueError, KeyError):
            digits = ""
            total_s = math.nan
            break
        digits = ""
    if digits or not 0 < total_s <= LONGEST_S:
        raise UserError(f"{text} is no length of time: give 90s, 30m, 1h, 2d or 1h30m")
    return total_s
