"""How far our clock is from those of others: each is asked for the time, and the middle one counts.

Records live 90 s and may be 30 s ahead (dht/record.py): whose clock is further off keeps no record
at its peers, and believes none of theirs. An answer is as exact as half its round trip, and as
honest as its peer, so that half of those asked would have to lie together.

    asker ──── opens the stream ────▶ asked
          ◀── unix time in ms, u64 ──
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Final

import trio

from ...errors import RemoteError, TransportError
from ..log import get_logger
from .host import Host
from .stream import Stream

log = get_logger()

PROTOCOL: Final = "/potluck/clock/1"
TIME_BYTES: Final = 8
ASKED_MAX: Final = 7
ANSWER_S: Final = 5.0
YEAR_10000_MS: Final = 253_402_300_800_000


@dataclass(frozen=True, slots=True)
class Skew:
    """theirs_ahead_s: by how much; below zero our clock is ahead. peers: who said so."""

    theirs_ahead_s: float
    peers: int


def tell_time(host: Host, wall: Callable[[], float] = time.time) -> None:
    """Tell whoever asks what time it is here."""

    async def say(stream: Stream) -> None:
        await stream.send(int(1000 * wall()).to_bytes(TIME_BYTES))
        await stream.close()

    host.handle(PROTOCOL, say)


async def ask_time(host: Host, wall: Callable[[], float] = time.time) -> Skew | None:
    """How far our clock is from those of connected peers; None when none of them tells."""
    told: list[float] = []

    async def ask(peer: str) -> None:
        with trio.move_on_after(ANSWER_S):
            try:
                told.append(await _ask(host, peer, wall))
            except (TransportError, RemoteError) as error:
                log.debug("does not tell the time", peer=peer, reason=str(error))

    async with trio.open_nursery() as nursery:
        for peer in _tellers(host):
            nursery.start_soon(ask, peer)
    return Skew(round(median(told), 3), len(told)) if told else None


def _tellers(host: Host) -> list[str]:
    """Connected peers that say that they tell the time, the nearest first: they are most exact."""
    found = [
        (connection.mux.rtt_s, connection.mux.peer)
        for connection in host.connections()
        if connection.speaks(PROTOCOL)
    ]
    return list(dict.fromkeys(peer for _, peer in sorted(found)))[:ASKED_MAX]


async def _ask(host: Host, peer: str, wall: Callable[[], float]) -> float:
    """By how much a peer's clock is ahead of ours. Raises TransportError, RemoteError."""
    stream = await host.open_stream(peer, PROTOCOL)
    try:
        began_s = trio.current_time()
        data = bytearray()
        while len(data) < TIME_BYTES:
            piece = await stream.receive(TIME_BYTES - len(data))
            if not piece:
                raise TransportError("the stream ended early")
            data += piece
        here_s, spent_s = wall(), trio.current_time() - began_s
    finally:
        await stream.close()
    there_ms = int.from_bytes(data)
    if there_ms > YEAR_10000_MS:
        raise RemoteError("a time that no clock shows")
    return there_ms / 1000 + spent_s / 2 - here_s
