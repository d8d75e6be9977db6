"""What a node makes of convictions in its guarded groups: evidence for all, or a ban of its own.

    two claims for one place   the court: banned for ever, and told to everybody (trust/evidence.py)
    a case that can be proven  the book: 30 days, and the file is kept for whoever asks
    neither                    the seat in the group is lost, and no more: nobody else can see why

    home/cases/<peer id>       the newest case file of each, at most so many

A case file proves its case to whoever has the weights and the data (btard_file.py), who are few, so
it is kept and not told. Source: algorithms.md 3.5, evidence of classes A and B.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import trio

from ...swarm.testimony import Item
from ..home import replace_file
from ..log import get_logger
from .btard_place import Conviction

CASES: Final = "cases"
KEPT_MAX: Final = 64  # guess: files of some megabytes
WAITING_MAX: Final = 32  # convictions that are not written yet: as many as a group has members

log = get_logger()


class Hears(Protocol):
    """What is needed of trust/evidence.py's Court."""

    def take(self, item: Item) -> None: ...


class Verdicts:
    """Of one node. convict: bans a peer here, for as long as recomputed evidence does. home: None
    keeps no files."""

    def __init__(self, court: Hears, convict: Callable[[str], None], home: Path | None) -> None:
        self._court = court
        self._convict = convict
        self._folder = None if home is None else home / CASES
        self._written, self._waiting = trio.open_memory_channel[Conviction](WAITING_MAX)

    def tell(self, conviction: Conviction) -> None:
        """For `GuardedExchange`."""
        if conviction.contradiction is not None:
            self._court.take(conviction.contradiction)
        elif conviction.file:
            self._convict(conviction.peer)
            try:
                self._written.send_nowait(conviction)
            except trio.WouldBlock:
                log.warning("case not kept", convicted=conviction.peer, reason="too many at once")

    async def run(self) -> None:
        """A service: writes files."""
        async for conviction in self._waiting:
            if self._folder is not None:
                await trio.to_thread.run_sync(_keep, self._folder, conviction)


def _keep(folder: Path, conviction: Conviction) -> None:
    """In one go; the oldest of too many make room. A disk that takes no more loses the file."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(folder / conviction.peer, conviction.file)
        kept = sorted(folder.iterdir(), key=lambda one: one.stat().st_mtime)
        for old in kept[: max(0, len(kept) - KEPT_MAX)]:
            old.unlink()
    except OSError as error:
        log.warning("case not kept", convicted=conviction.peer, reason=str(error))
