"""Which rumours are told next: those told least so far, each some log(n) times, then no more.

SWIM's gossip (Das, Gupta and Motivala, 2002, section 4.1). Of each peer the latest rumour alone is
kept: what came before it is told no more.
"""

from __future__ import annotations

import math

from .rumour import Rumour

RETOLD = 4  # memberlist's WAN setting, times log10(n + 1): how often a rumour is passed on


class News:
    """The rumours that one member passes on."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[Rumour, int]] = {}  # peer: rumour, how often it was told

    def put(self, rumour: Rumour) -> None:
        self._told[rumour.peer] = (rumour, 0)

    def drop(self, peer: str) -> None:
        self._told.pop(peer, None)

    def take(self, most: int, *, members: int, but: str) -> list[Rumour]:
        """Up to `most` rumours to tell now, none of them of `but`, whom they are told to."""
        often = RETOLD * math.ceil(math.log10(members + 1) + 1e-9)
        waiting = sorted(self._told.items(), key=lambda item: (item[1][1], item[0]))
        found = [(peer, rumour, told) for peer, (rumour, told) in waiting if peer != but][:most]
        for peer, rumour, told in found:
            if told + 1 >= often:
                del self._told[peer]
            else:
                self._told[peer] = (rumour, told + 1)
        return [rumour for _, rumour, _ in found]
