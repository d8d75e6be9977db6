"""Whose bytes leave next, where an owner gives others only so many a second.

Peers take turns by what they were given, not by how often they ask (swarm/spare.py), so one with
many requests gets no more than one with a single. Where no bound is set nobody waits here: between
the streams of a connection the multiplexer takes turns, between connections the road does.
"""

from __future__ import annotations

import math

import trio

from ...swarm.spare import Turns


class Uplink:
    """One for a node. bytes_s: for all peers together."""

    def __init__(self, bytes_s: float = math.inf) -> None:
        self.bytes_s = bytes_s
        self._turns: Turns[object] = Turns()
        self._waiting: dict[object, int] = {}  # in bytes; whoever is let through is not there
        self._free_s = -math.inf  # when what was let through will have left
        self._led = False  # whether one of those who wait lets the next through
        self._changed = trio.Event()

    async def turn(self, peer: str, size: int) -> None:
        """Wait until so many bytes may go to this peer."""
        if math.isinf(self.bytes_s):
            await trio.lowlevel.checkpoint()
            return
        mine = object()
        self._turns.add(mine, peer, size)
        self._waiting[mine] = size
        try:
            while mine in self._waiting:
                if self._led:
                    await self._changed.wait()
                else:
                    await self._lead()
        finally:
            if self._waiting.pop(mine, None) is not None:
                self._turns.drop(mine, peer)

    async def _lead(self) -> None:
        """Let one through when it is time, whoever's turn it is then."""
        self._led = True
        try:
            await trio.sleep_until(self._free_s)
            one = self._turns.next()
            if one is not None:
                began_s = max(self._free_s, trio.current_time())
                self._free_s = began_s + self._waiting.pop(one) / self.bytes_s
        finally:
            self._led = False
            self._changed.set()
            self._changed = trio.Event()
