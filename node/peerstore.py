"""The peers that answered lately, kept in the home, so that a restart joins without a bootstrap.

    home/peers    written 10 s after the start, then each five minutes or so, and at the end

Those whom nobody chose for us (gossip/lookouts.py) are put first.

What cannot be read is passed over with a warning: a node without memories is no broken node.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol

import trio

from ..dht.known import KNOWN_BYTES_MAX, Known, from_bytes, merge, to_bytes
from ..errors import RemoteError
from .home import open_file, replace_file
from .log import get_logger

PEERS: Final = "peers"
FIRST_S: Final = 10.0  # a node that is killed in its first minute has met its neighbours too
EVERY_S: Final = 300.0
JITTER: Final = 0.2  # the nodes of one machine shall not all write at once

log = get_logger()


class Answered(Protocol):
    """What a store needs of a directory."""

    def answered(self) -> tuple[Known, ...]: ...


def load_known(home: Path) -> tuple[Known, ...]:
    """Whom the last run knew, the last seen first; nobody when there is no store, or a broken one.

    Blocks for as long as reading half a megabyte takes.
    """
    path = home / PEERS
    try:
        descriptor = open_file(path)
        with os.fdopen(descriptor, "rb") as file:
            return from_bytes(file.read(KNOWN_BYTES_MAX + 1) or b"")
    except FileNotFoundError:
        return ()
    except (OSError, RemoteError) as error:
        log.warning("peer store passed over", path=str(path), reason=str(error))
        return ()


async def keep_known(
    home: Path, directory: Answered, sampled: Callable[[float], Iterable[Known]] = lambda now: ()
) -> None:
    """A service: write down whom the directory knows; once more when cancelled. sampled: who is
    there now (unix seconds) of those that come first, for they were seen last."""

    def seen(now: float) -> list[Known]:
        return [*directory.answered(), *sampled(now)]

    known = load_known(home)
    wait_s = FIRST_S
    try:
        while True:
            await trio.sleep(wait_s * random.uniform(1 - JITTER, 1 + JITTER))
            wait_s = EVERY_S
            known = merge(known, seen(time.time()), time.time())
            await trio.to_thread.run_sync(_save, home, known)
    finally:
        _save(home, merge(known, seen(time.time()), time.time()))


def _save(home: Path, known: tuple[Known, ...]) -> None:
    if not known:
        return  # alone: whoever was known before may come back
    try:
        replace_file(home / PEERS, to_bytes(known))
    except OSError as error:
        log.warning("peer store not written", path=str(home / PEERS), reason=error.strerror)
