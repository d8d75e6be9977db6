"""What was read of one model in the directory: the newest read, and each peer's last word.

A read is what the keepers say that answered in time. One that just began, or was stopped for some
seconds, has not heard of everybody; so whoever is lacking in one read, though an earlier one told
of it, is kept in mind for as long as its record lives.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from ..dht.record import TTL_MAX_S, Announcement
from ..swarm.blocks import BlockRange
from ..swarm.view import Span

LEFT_S = 60.0  # for so long nothing new goes to a span that its server said that it leaves
HEARD_MAX = 8192  # about 16 MB; strangers can make up as many peers as they like


@dataclass(slots=True)
class Heard:
    """found: the newest read. Times are trio's clock."""

    found: tuple[Announcement, ...] = ()
    read_s: float = -1e9
    reading: trio.Lock = field(default_factory=trio.Lock)
    _words: dict[str, tuple[float, Announcement]] = field(default_factory=dict)  # when read last
    # who said that it leaves: which span, until when that counts, its newest record then
    _left: dict[str, tuple[BlockRange, float, tuple[int, int]]] = field(default_factory=dict)

    def read(self, found: tuple[Announcement, ...], began_s: float) -> None:
        """Take in what a read has found that began then."""
        self.found, self.read_s = found, began_s
        for told in found:
            self._words.pop(told.peer, None)  # put last
            self._words[told.peer] = began_s, told
        lasting = [word for word in self._words.items() if word[1][0] > began_s - TTL_MAX_S]
        self._words = dict(lasting[-HEARD_MAX:])
        self._left = {
            peer: left
            for peer, left in self._left.items()
            if left[1] > began_s and peer in self._words
        }

    def lacking(self) -> list[Announcement]:
        """The last words of those of whom reads before told, and the newest does not."""
        found = {told.peer for told in self.found}
        return [told for _, told in self._words.values() if told.peer not in found]

    def told(self, peer: str) -> Announcement | None:
        """Its newest record."""
        return self._words[peer][1] if peer in self._words else None

    def span(self, peer: str) -> BlockRange | None:
        """What its newest record tells that it serves."""
        told = self.told(peer)
        return None if told is None else BlockRange(told.start, told.stop)

    def say_left(self, peer: str, span: BlockRange, now: float) -> None:
        """It said so to whoever had sessions there."""
        if peer in self._words:
            self._left[peer] = span, now + LEFT_S, self._order(peer)

    def leaves(self, span: Span, now: float) -> bool:
        """Whether it said so of what it serves now. Where it moved to it stays, and what it said
        before it announced itself anew is over."""
        blocks, until_s, order = self._left.get(span.peer, (None, 0.0, (0, 0)))
        return blocks == span.blocks and now < until_s and self._order(span.peer) <= order

    def _order(self, peer: str) -> tuple[int, int]:
        _, told = self._words[peer]
        return told.boot, told.seq
