"""How much of the disk a node may take for what it can do without.

    home/quantized   blocks as they are served, made once      ┐ the longest unused goes first, the
    home/adapters    what sessions wore                        ┘ owner's own adapters last of all
    the hub's cache  is its owner's: nothing more is fetched ahead into it

All of it is made or fetched anew when it is needed. BOINC's disk_min_free_gb (0.1) is kept free;
its disk_max_used_pct (90) is what fetching ahead leaves (node/ahead.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from ..adapters import FOLDER as ADAPTERS
from ..adapters import is_own
from ..ahead import has_room
from ..log import get_logger

log = get_logger()

QUANTIZED: Final = "quantized"  # as serving.py has it
LEAST_FREE_BYTES: Final = 100 << 20  # BOINC's disk_min_free_gb
LOOK_S: Final = 60.0


async def keep_disk(home: Path, bytes_max: int, free: Callable[[Path], int] | None = None) -> None:
    """A service: remove what is too much. bytes_max: 0: no limit but what is to stay free."""
    while True:
        removed = await trio.to_thread.run_sync(make_room, home, bytes_max, free or _free)
        if removed:
            log.info("removed from the disk", bytes=removed, why="the owner's limit, or it is full")
        await trio.sleep(LOOK_S)


def make_room(home: Path, bytes_max: int, free: Callable[[Path], int]) -> int:
    """Remove the longest unused until there is room; how many bytes that were. Blocks."""
    kept = sorted((is_own(one), _used_s(one), _bytes(one), one) for one in _kept(home))
    total, removed = sum(size for _, _, size, _ in kept), 0
    for _, _, size, path in kept:
        over = bytes_max and total - removed > bytes_max
        if not over and free(home) >= LEAST_FREE_BYTES:
            break
        with suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed += size
    return removed


def room_within(home: Path, bytes_max: int) -> Callable[[Path], bool]:
    """Whether more of a model may be fetched ahead to this folder."""

    def room(folder: Path) -> bool:
        if not has_room(folder):
            return False
        return not bytes_max or _bytes(folder) + sum(map(_bytes, _kept(home))) < bytes_max

    return room


def _kept(home: Path) -> Iterator[Path]:
    yield from (home / QUANTIZED).glob("*/*")
    yield from (home / ADAPTERS).glob("*")


def _files(path: Path) -> Iterator[Path]:
    yield from (one for one in path.rglob("*") if one.is_file()) if path.is_dir() else (path,)


def _bytes(path: Path) -> int:
    total = 0
    for one in _files(path):
        with suppress(OSError):
            total += one.stat().st_size
    return total


def _used_s(path: Path) -> float:
    """When it was read last, as those who keep it note it: unix seconds."""
    with suppress(OSError):
        return max((one.stat().st_mtime for one in _files(path)), default=0.0)
    return 0.0


def _free(home: Path) -> int:
    try:
        return shutil.disk_usage(home).free
    except OSError:
        return LEAST_FREE_BYTES
