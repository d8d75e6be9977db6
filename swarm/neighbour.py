"""One neighbour in gossip: what it wants to hear, and how much it may still say.

It may say so much a second; four fifths of that is what is said to it, so that nobody honest is
ever over a budget of the others, however much there is to pass on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ..dht.allowance import Allowance, allowance
from ..dht.network import Prefixes
from .topics import KINDS

TOPICS_MAX: Final = 128  # that it may subscribe to: two models of 256 blocks, in each kind
MESSAGES_S, MESSAGES_SAVED = 5.0, 50.0  # each may cost 0.5 ms to judge
BYTES_S, BYTES_SAVED = 32 * 1024.0, 256 * 1024.0
OUT_SHARE: Final = 0.8
DONT_WANT_MAX: Final = 256


@dataclass(slots=True)
class Budget:
    """Of messages, and of their bytes."""

    messages: Allowance
    bytes: Allowance

    def take(self, size: int, now: float) -> bool:
        """Whether one more of this size is within it."""
        if not (self.messages.holds(now) and self.bytes.holds(now, size)):
            return False
        self.messages.take(now)
        self.bytes.take(now, size)
        return True


@dataclass(slots=True)
class Neighbour:
    """heard, said: what is left of the budgets, of each kind of topics. told, asked: ids since the
    last heartbeat."""

    where: Prefixes
    dialed: bool  # by us
    heard: Mapping[str, Budget]
    said: Mapping[str, Budget]
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
    heard = {kind: _budget(now, 1.0) for kind in KINDS}
    return Neighbour(where, dialed, heard, {kind: _budget(now, OUT_SHARE) for kind in KINDS})


def _budget(now: float, share: float) -> Budget:
    """share: of what a neighbour may say."""
    return Budget(
        allowance(share * MESSAGES_S, share * MESSAGES_SAVED, now),
        allowance(share * BYTES_S, share * BYTES_SAVED, now),
    )
