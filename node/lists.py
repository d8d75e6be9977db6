"""Whom a running node admits: its lists are read again when they have changed.

    config.toml, the private swarm's list, or a file of entries that is named has another stamp
        ──▶ right:  the new lists hold, and whoever is not welcome any more is sent away
        ──▶ wrong:  the lists stay as they were, and the log says why

A file is looked at, and no signal waited for: so it is on every system, and nobody has to know the
process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import trio

from ..errors import UserError
from .config import CONFIG, find_access, list_files
from .invite import swarm_file
from .log import get_logger
from .net.access import Access

log = get_logger()

LOOK_S: Final = 3.0  # some stat calls

Stamp = tuple[int, int, int]


async def keep_access(
    home: Path,
    admit: Callable[[Access], Sequence[object]],
    *,
    ban: Sequence[str] = (),
    allow_only: Sequence[str] = (),
) -> None:
    """A service: have `admit`, which returns who was sent away, hear of each change of the lists.

    ban, allow_only: the command line's, which go on top of what is read.
    """
    files = _files(home, ban, allow_only)
    seen = _stamps(files)
    while True:
        await trio.sleep(LOOK_S)
        if _stamps(files) == seen:
            continue
        files = _files(home, ban, allow_only)
        seen = _stamps(files)
        try:
            access = find_access(home, ban=ban, allow_only=allow_only)
        except UserError as error:
            log.warning("lists not taken over", why=str(error))
            continue
        sent_away = admit(access)
        log.info("lists read again", sent_away=len(sent_away))


def _files(home: Path, ban: Sequence[str], allow_only: Sequence[str]) -> list[Path]:
    try:
        return [home / CONFIG, swarm_file(home), *list_files(home, [*ban, *allow_only])]
    except UserError:
        return [home / CONFIG, swarm_file(home)]  # it is to be mended: that shows in its stamp


def _stamps(files: Iterable[Path]) -> dict[Path, Stamp | None]:
    return {file: _stamp(file) for file in files}


def _stamp(file: Path) -> Stamp | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
