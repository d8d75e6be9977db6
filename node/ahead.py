"""Fetches blocks to this disk before anybody asks us to serve them: swarm/ahead.py says which.

Only a model of the hub has anything to fetch; a directory's files are all here. What is fetched are
the files as they are stored: to load them takes a fraction of what the road takes. Whoever's disk
is nearly full, or whose hub does not answer, moves as slowly as it must.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import trio

from ..errors import UserError
from ..swarm.ahead import AHEAD_EVERY_S, AHEAD_SPANS, blocks_ahead
from .compute.checkpoint import Checkpoint
from .compute.loading import fetch_block
from .log import get_logger

log = get_logger()

FREE_SHARE: Final = 0.1  # guess: of a disk, that is left to its owner


class Fetched(Protocol):
    """A model whose blocks can be fetched one by one."""

    @property
    def total(self) -> int: ...

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        ...

    def fetch(self, block: int) -> None:
        """Have the files of this block on the disk. Blocks the caller. Raises UserError."""
        ...


@dataclass(frozen=True, slots=True)
class BlockFiles:
    """Those of a checkpoint."""

    checkpoint: Checkpoint

    @property
    def total(self) -> int:
        return self.checkpoint.spec.blocks

    @property
    def folder(self) -> Path:
        config = self.checkpoint.path("config.json")
        return Path() if config is None else config.resolve().parent

    def fetch(self, block: int) -> None:
        fetch_block(self.checkpoint, block)


def has_room(folder: Path) -> bool:
    """Whether more may come to this disk; not where its folder is gone."""
    try:
        disk = shutil.disk_usage(folder)
    except OSError as error:
        log.info("cannot look at the disk", folder=str(folder), why=str(error))
        return False
    return disk.free >= FREE_SHARE * disk.total


async def keep_ahead(
    model: Fetched, me: str, length: int, room: Callable[[Path], bool] = has_room
) -> None:
    """A service, until all is fetched: a span of `length` blocks each AHEAD_EVERY_S."""
    for block in blocks_ahead(me, model.total, AHEAD_SPANS * length):
        if not room(model.folder):
            log.info("nothing more is fetched ahead", block=block, why="the disk is nearly full")
            return
        began_s = trio.current_time()
        try:
            await trio.to_thread.run_sync(
                model.fetch,
                block,
                abandon_on_cancel=True,  # type: ignore[call-arg]  # libp2p's stubs of trio are old
            )
        except (UserError, OSError) as error:
            log.info("not fetched ahead", block=block, why=str(error))
        else:
            log.debug("fetched ahead", block=block)
        await trio.sleep_until(began_s + AHEAD_EVERY_S / length)
