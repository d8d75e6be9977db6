"""Messages of the last minutes: which came already, from whom, and what they were.

A name is remembered for two minutes, so that a message is judged once; its content for a few
heartbeats, for those who missed it. Both are bounded; of too many the oldest go.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Final, Literal

from .topics import Message

Verdict = Literal["pass", "drop", "stale", "wrong"]

SEEN_S: Final = 120.0  # gossipsub's own
SEEN_MAX: Final = 8192
KEPT_MAX: Final = 512  # messages
KEPT_BYTES_MAX: Final = 2 * 1024 * 1024
HISTORY: Final = 5  # heartbeats; gossipsub's mcache_len
WINDOW: Final = 3  # of them are told of; mcache_gossip
SERVED_MAX: Final = 3  # times that one neighbour is given the same


@dataclass(slots=True)
class Seen:
    """A message that was judged. brought: by which neighbours, us included."""

    verdict: Verdict
    until_s: float
    brought: set[str]


@dataclass(slots=True)
class _Kept:
    message: Message
    beat: int
    served: Counter[str] = field(default_factory=Counter)


class Recent:
    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, Seen] = OrderedDict()
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._bytes = 0
        self._beat = 0

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def bytes_kept(self) -> int:
        return self._bytes

    def seen(self, id: bytes, now: float) -> Seen | None:
        found = self._seen.get(id)
        return found if found is not None and now < found.until_s else None

    def note(self, id: bytes, verdict: Verdict, peer: str, now: float) -> None:
        self._seen.pop(id, None)
        self._seen[id] = Seen(verdict, now + SEEN_S, {peer})
        if len(self._seen) > SEEN_MAX:
            self._seen.popitem(last=False)

    def keep(self, id: bytes, message: Message) -> None:
        """For those who missed it."""
        self._drop(id)
        self._kept[id] = _Kept(message, self._beat)
        self._bytes += len(message.data)
        while len(self._kept) > KEPT_MAX or self._bytes > KEPT_BYTES_MAX:
            self._drop(next(iter(self._kept)))

    def serve(self, id: bytes, peer: str) -> Message | None:
        """What this neighbour asks for, unless it is gone, or was given to it often enough."""
        kept = self._kept.get(id)
        if kept is None or kept.served[peer] >= SERVED_MAX:
            return None
        kept.served[peer] += 1
        return kept.message

    def window(self, topic: str) -> list[bytes]:
        """What is to be told of, the oldest first."""
        return [
            id
            for id, kept in self._kept.items()
            if kept.message.topic == topic and self._beat - kept.beat < WINDOW
        ]

    def topics(self) -> set[str]:
        return {kept.message.topic for kept in self._kept.values()}

    def beat(self, now: float) -> None:
        """A heartbeat has passed."""
        self._beat += 1
        while self._kept and self._beat - next(iter(self._kept.values())).beat >= HISTORY:
            self._drop(next(iter(self._kept)))
        while self._seen and next(iter(self._seen.values())).until_s <= now:
            self._seen.popitem(last=False)

    def _drop(self, id: bytes) -> None:
        kept = self._kept.pop(id, None)
        if kept is not None:
            self._bytes -= len(kept.message.data)
