"""One neighbour in gossip: what it wants to hear, and how much it may still say.

It may say so much a second; four fifths of that is what is said to it, so that nobody honest is
ever over a budget of the others, however much there is to pass on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ..dht.network import Prefixes

TOPICS_MAX: Final = 64  # that it may subscribe to: two models of 256 blocks
MESSAGES_S, MESSAGES_SAVED = 5.0, 50.0  # each may cost 0.5 ms to judge
BYTES_S, BYTES_SAVED = 32 * 1024.0, 256 * 1024.0
OUT_SHARE: Final = 0.8
DONT_WANT_MAX: Final = 256


@dataclass(slots=True)
class Budget:
    """Two token buckets, of messages and of their bytes. share: of what a neighbour may say."""

    at_s: float
    share: float = 1.0
    messages: float = MESSAGES_SAVED
    bytes: float = BYTES_SAVED

    def take(self, size: int, now: float) -> bool:
        """Whether one more of this size is within it."""
        gone_s, self.at_s = max(0.0, now - self.at_s), now
        most, share = self.share, self.share * gone_s
        self.messages = min(most * MESSAGES_SAVED, self.messages + share * MESSAGES_S)
        self.bytes = min(most * BYTES_SAVED, self.bytes + share * BYTES_S)
        if self.messages < 1 or self.bytes < size:
            return False
        self.messages -= 1
        self.bytes -= size
        return True


@dataclass(slots=True)
class Neighbour:
    """heard, said: what is left of the budgets. told, asked: ids since the last heartbeat."""

    where: Prefixes
    dialed: bool  # by us
    heard: Budget
    said: Budget
    topics: set[str] = field(default_factory=set)
    told: int = 0
    asked: int = 0
    _dont_want: dict[bytes, None] = field(default_factory=dict)

    def wants(self, id: bytes) -> bool:
        return id not in self._dont_want

    def has(self, id: bytes) -> None:
        """It needs not be sent this."""
        self._dont_want[id] = None
        if len(self._dont_want) > DONT_WANT_MAX:
            del self._dont_want[next(iter(self._dont_want))]


def neighbour(where: Prefixes, dialed: bool, now: float) -> Neighbour:
    """One that just came."""
    return Neighbour(where, dialed, Budget(now), Budget(now, OUT_SHARE))
