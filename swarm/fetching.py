"""Which chunk to ask of whom next: the rarest first, of all who have it, and of nobody twice.

Each peer that has something is asked for a few chunks at a time, as many as it lately brought in
two seconds, so that a fast one is given more to do and a slow one holds up little. What is near, on
the same network, is asked of those there alone, while they bring anything. What few have comes
first, while they are there; among equals everybody has an order of its own, so that those who
begin together have something to give each other. When all that is left is on its way, whoever is
free takes over from a peer that has fallen silent.

    told ─▶ free ──take──▶ on its way ──came──▶ done
              ▲                │
              └─ lost, lied ───┘      a liar is asked no more; who was lost, after a while

Sources: Cohen, 2003, and Legout et al., 2006 (rarest first, end game). Nothing here waits or reads
a clock: `now` is seconds on the caller's.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from ..crypto.digest import digest
from .chunk import WANT_MAX, Chunk

BATCH_S: Final = 2.0  # guess: a round trip beside it is little
BATCH_BYTES_MAX: Final = 16 << 20
STALLED_S: Final = 5.0  # guess: without a chunk, beside what one takes
BYTES_S: Final = 512 * 1024  # node/pieces.py: whoever is slower is not waited for
BACKOFF_S: Final = 1.0  # guess: after a stream that broke; twice as long each time
RETRY_LATEST_S: Final = 30.0  # guess: whoever is told to come back later than that, does not wait
FAILURES_MAX: Final = 4  # guess: in a row, without a chunk between; then it is asked no more
COPIES_MAX: Final = 2  # of one chunk, on their way at a time
_RECENT: Final = 0.3  # guess: how much the last chunk says of a peer's rate


def by_peer(providers: Mapping[bytes, Iterable[str]]) -> dict[str, list[bytes]]:
    """Who has which, of which is with whom: as a directory tells it, by chunk."""
    found: dict[str, list[bytes]] = {}
    for name, peers in providers.items():
        for peer in peers:
            found.setdefault(peer, []).append(name)
    return found


@dataclass(slots=True)
class _Holder:
    """flying: what it was asked for, in order. heard_s: when it was asked, or brought the last."""

    has: set[bytes] = field(default_factory=set)
    flying: dict[bytes, None] = field(default_factory=dict)
    heard_s: float = -math.inf
    from_s: float = -math.inf  # not asked before
    bytes_s: float = 0.0
    failures: int = 0
    out: bool = False


class Fetching:
    """Of one set of chunks. salt: makes the order among equals one's own."""

    def __init__(self, wanted: Iterable[Chunk], *, salt: bytes, near: Collection[str] = ()) -> None:
        """near: peers whose bytes cost nobody anything."""
        self._near = near
        self._wanted = {chunk.digest: chunk for chunk in wanted}
        self._salt = salt
        self._place = {name: digest("chunk order", salt, name) for name in self._wanted}
        self._holders: dict[str, _Holder] = {}
        self._held: Counter[bytes] = Counter()  # by how many that are not out
        self._copies: Counter[bytes] = Counter()  # on their way

    @property
    def left(self) -> tuple[Chunk, ...]:
        """What has not come yet."""
        return tuple(self._wanted.values())

    @property
    def peers(self) -> tuple[str, ...]:
        """Who may still bring something: who is near, then the others, in an order of our own."""

        def place(peer: str) -> tuple[bool, bytes]:
            return peer not in self._near, digest("chunk peers", self._salt, peer.encode())

        return tuple(sorted(filter(self.open, self._holders), key=place))

    def open(self, peer: str) -> bool:
        """Whether it may still bring something."""
        holder = self._holders[peer]
        return not holder.out and bool(holder.has)

    def hopeless(self) -> tuple[Chunk, ...]:
        """What nobody has who may be asked."""
        return tuple(one for name, one in self._wanted.items() if not self._held[name])

    # ---- what becomes known

    def told(self, peer: str, digests: Iterable[bytes]) -> None:
        """The peer has these, as is said; what is not wanted is ignored."""
        holder = self._holders.setdefault(peer, _Holder())
        if holder.out:
            return
        new = {name for name in digests if name in self._wanted} - holder.has
        holder.has |= new
        self._held.update(new)

    def came(self, peer: str, name: bytes, now: float) -> None:
        """It was brought, and is what it should be."""
        holder = self._holders[peer]
        chunk = self._wanted.pop(name, None)
        if chunk is not None:
            rate = chunk.size / max(now - holder.heard_s, 1e-6)
            holder.bytes_s += (_RECENT if holder.bytes_s else 1.0) * (rate - holder.bytes_s)
            for one in self._holders.values():
                one.has.discard(name)
                one.flying.pop(name, None)
            del self._held[name], self._copies[name]
        holder.heard_s, holder.failures = now, 0

    def lacks(self, peer: str, name: bytes, now: float) -> None:
        """It does not have this one, whatever was said."""
        holder = self._holders[peer]
        if name in holder.flying:
            self._land(holder, name)
        self._forget(holder, [name])
        holder.heard_s = now

    def lost(self, peer: str, now: float, retry_after_s: float | None = None) -> None:
        """Its stream broke; or it said when it has time again."""
        holder = self._holders[peer]
        self._release(holder)
        if retry_after_s is not None:
            holder.from_s = now + min(max(retry_after_s, BACKOFF_S), RETRY_LATEST_S)
            return
        holder.failures += 1
        holder.from_s = now + BACKOFF_S * 2.0 ** (holder.failures - 1)
        if holder.failures >= FAILURES_MAX:
            self.lied(peer)

    def lied(self, peer: str) -> None:
        """It is not asked any more."""
        holder = self._holders[peer]
        self._release(holder)
        self._forget(holder, list(holder.has))
        holder.out = True

    # ---- what to do

    def take(self, peer: str, now: float) -> tuple[Chunk, ...]:
        """What to ask of this peer now; () when there is nothing for it."""
        holder = self._holders[peer]
        if holder.out or holder.flying or now < holder.from_s:
            return ()
        free = [name for name in holder.has if not self._copies[name]]
        if self._near and peer not in self._near:
            near = self._with_near(now)
            free = [name for name in free if name not in near]
        found = self._rarest(free, holder) if free else self._overdue(holder, now)
        holder.flying = dict.fromkeys(one.digest for one in found)
        self._copies.update(one.digest for one in found)
        holder.heard_s = now
        return found

    def wake_s(self, peer: str, now: float) -> float:
        """When, if nothing else happens, there may be something for this peer."""
        holder = self._holders[peer]
        if now < holder.from_s:
            return holder.from_s
        found = [self._overdue_s(other) for other, _ in self._slow(holder)]
        if peer not in self._near:  # one that is near falls silent: then it is our turn
            near = (self._holders[one] for one in self._near if one in self._holders)
            due = (self._overdue_s(one) for one in near if one.flying)
            found += [at_s for at_s in due if at_s > now]
        return min(found, default=math.inf)

    def _with_near(self, now: float) -> set[bytes]:
        """What those who are near will bring: not who lately broke off, or has fallen silent."""
        found: set[bytes] = set()
        for peer in self._near:
            one = self._holders.get(peer)
            if one is None or one.out or now < one.from_s:
                continue
            if not one.flying or now < self._overdue_s(one):
                found |= one.has
        return found

    def _rarest(self, free: list[bytes], holder: _Holder) -> tuple[Chunk, ...]:
        idle = sum(not one.out and not one.flying for one in self._holders.values())
        count = min(WANT_MAX, -(-len(free) // max(1, idle)))  # something for the others
        room = min(max(BATCH_S * holder.bytes_s, 1.0), BATCH_BYTES_MAX)
        found: list[Chunk] = []
        for name in heapq.nsmallest(
            count, free, key=lambda one: (self._held[one], self._place[one])
        ):
            if found and room < self._wanted[name].size:
                break
            found.append(self._wanted[name])
            room -= self._wanted[name].size
        return tuple(found)

    def _overdue(self, holder: _Holder, now: float) -> tuple[Chunk, ...]:
        """One that another has been asked for, and does not bring."""
        late = (name for other, name in self._slow(holder) if now >= self._overdue_s(other))
        return tuple(self._wanted[name] for name in islice(late, 1))

    def _slow(self, holder: _Holder) -> Iterator[tuple[_Holder, bytes]]:
        """What others are asked for and this one could bring as well."""
        for other in self._holders.values():
            for name in other.flying:
                if name in holder.has and self._copies[name] < COPIES_MAX:
                    yield other, name

    def _overdue_s(self, holder: _Holder) -> float:
        largest = max(self._wanted[name].size for name in holder.flying)
        return holder.heard_s + STALLED_S + largest / BYTES_S

    def _land(self, holder: _Holder, name: bytes) -> None:
        del holder.flying[name]
        self._copies[name] -= 1

    def _release(self, holder: _Holder) -> None:
        for name in list(holder.flying):
            self._land(holder, name)

    def _forget(self, holder: _Holder, names: list[bytes]) -> None:
        for name in names:
            if name in holder.has:
                holder.has.discard(name)
                self._held[name] -= 1
