"""The price of our identity: searched for once a month, kept in the home, shown by identify.

A speed bump, no more (crypto/work.py): whoever does not pay is served, asked and sampled as all
are, but stays on probation. Among neighbours nobody pays: it is due between peers that meet over
the Internet, so a swarm at home, or on one machine, never searches.

    home/work                 what was found last, by the one codec
    a stranger has come ─▶ a slice of the search in a thread, then nine times as long nothing ─▶ ...
                           ─▶ home/work ─▶ host.work: identify tells it, and all who asked before
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from ..crypto.codec import decode, encode
from ..crypto.keys import public_of
from ..crypto.work import BITS, GRACE_S, Work, check_work, epoch_at, next_epoch_s, search
from ..errors import RemoteError
from .home import open_file, replace_file
from .log import get_logger
from .net.host import Host
from .net.identify import WORK_BYTES_MAX
from .net.observed import is_public
from .net.peers import Connection

log = get_logger()

WORK: Final = "work"
SLICE: Final = 2048  # tries; 4 ms of the interpreter, which others wait for meanwhile
REST: Final = 9.0  # times as long as a slice took: a tenth of one core
EARLY_S: Final = GRACE_S / 2  # before a new epoch
LOOK_S: Final = 3600.0  # at the clock, which may jump


async def keep_work(
    home: Path, host: Host, *, bits: int = BITS, wall: Callable[[], float] = time.time
) -> None:
    """A service: show good work to whoever asks who we are, once there are strangers to ask."""
    public = public_of(host.peer_id)
    await _until_met(host, lambda connection: is_public(connection.remote[0]))
    work = await trio.to_thread.run_sync(_load, home)
    while True:
        epoch = epoch_at(wall() + EARLY_S)
        if work is None or work.epoch != epoch or not is_good(work, public, wall(), bits=bits):
            began_s = trio.current_time()
            work = await _search(public, epoch, bits)
            log.info("paid", epoch=epoch, seconds=round(trio.current_time() - began_s, 1))
            await trio.to_thread.run_sync(_save, home, work)
        host.work = encode(work)
        now = wall()  # once: a clock that jumps between two looks made a sleep of less than nothing
        await trio.sleep(min(LOOK_S, next_epoch_s(now + EARLY_S) - EARLY_S - now))


def on_probation(host: Host, peer: str, now: float, *, bits: int = BITS) -> bool:
    """Whether a peer that we are connected to over the Internet has not paid for its identity."""
    connection = host.best(peer)
    if connection is None or not is_public(connection.remote[0]):
        return False
    if connection.claims is None:
        return True
    try:
        work = decode(connection.claims.work, Work, max_bytes=WORK_BYTES_MAX)
    except RemoteError:
        return True
    return not is_good(work, public_of(peer), now, bits=bits)


def is_good(work: Work, public: bytes, now: float, *, bits: int = BITS) -> bool:
    """Whether this key did this work, lately."""
    try:
        check_work(work, public, now, bits=bits)
    except RemoteError:
        return False
    return True


async def _until_met(host: Host, is_stranger: Callable[[Connection], bool]) -> None:
    met = trio.Event()

    def came(connection: Connection) -> None:
        if is_stranger(connection):
            met.set()

    host.came.append(came)
    try:
        for connection in host.connections():
            came(connection)
        await met.wait()
    finally:
        host.came.remove(came)


async def _search(public: bytes, epoch: int, bits: int) -> Work:
    """From a place of its own each time: a search that was cut short is not repeated."""
    first = secrets.randbits(63)
    while True:
        began_s = time.perf_counter()
        work, first = await trio.to_thread.run_sync(_slice, public, epoch, first, bits)
        if work is not None:
            return work
        await trio.sleep(REST * (time.perf_counter() - began_s))  # nobody is to feel it


def _slice(public: bytes, epoch: int, first: int, bits: int) -> tuple[Work | None, int]:
    return search(public, epoch, first=first, tries=SLICE, bits=bits)


def _load(home: Path) -> Work | None:
    """None when there is none, or none that can be read: then it is searched for anew."""
    try:
        descriptor = open_file(home / WORK)
        with os.fdopen(descriptor, "rb") as file:
            return decode(file.read(WORK_BYTES_MAX + 1) or b"", Work, max_bytes=WORK_BYTES_MAX)
    except FileNotFoundError:
        return None
    except (OSError, RemoteError) as error:
        log.warning("work passed over", path=str(home / WORK), reason=str(error))
        return None


def _save(home: Path, work: Work) -> None:
    try:
        replace_file(home / WORK, encode(work))
    except OSError as error:
        log.warning("work not written", path=str(home / WORK), reason=error.strerror)
