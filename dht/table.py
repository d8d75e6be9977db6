"""Whom we know: Kademlia's routing table.

Maymounkov and Mazières, 2002: peers are kept in buckets by the length of the prefix that they share
with us, k to a bucket, the longest known first; a newcomer takes a place only when there is one, so
those who have been there long, and answer, stay. A full bucket is contested by network: a newcomer
of another network may take the place of one whose network holds more than its part (network.py).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nsmallest
from typing import Final

from .keyspace import PLACE_BYTES, peer_point
from .message import CONTACTS_MAX, Contact
from .network import NOWHERE, PER_NETWORK, Prefixes, names_of, networks_of, wide_max

BUCKET_SIZE: Final = CONTACTS_MAX
FAILURES_MAX: Final = 3  # in a row; one lost answer is no death


@dataclass(slots=True)
class _Entry:
    contact: Contact
    point: int
    networks: frozenset[Prefixes]
    heard_s: float
    failures: int = 0


class RoutingTable:
    """The peers that have spoken to us, by distance."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._point = int.from_bytes(peer_point(me))
        self._buckets: dict[int, dict[str, _Entry]] = {}
        self._spares: dict[int, dict[str, _Entry]] = {}  # who would like to be in a full bucket

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())

    def __contains__(self, peer: str) -> bool:
        return peer in self._buckets.get(self._index(_point(peer)), {})

    def addresses(self, peer: str) -> tuple[str, ...] | None:
        """Where a peer of the table said to be; None for one that is not in it."""
        entry = self._buckets.get(self._index(_point(peer)), {}).get(peer)
        return None if entry is None else entry.contact.addresses

    def heard(self, contact: Contact, now: float, *, seen: Prefixes = NOWHERE) -> bool:
        """A peer spoke: keep it, or its word that it is alive. Whether it is new in the table.

        seen: the network that the road shows it in (network.py).
        """
        if contact.peer == self._me:
            return False
        point = _point(contact.peer)
        bucket = self._buckets.setdefault(self._index(point), {})
        known = bucket.pop(contact.peer, None)
        entry = _Entry(contact, point, networks_of(contact.addresses, seen), now)
        if known is not None or len(bucket) < BUCKET_SIZE or self._make_room(bucket, entry):
            bucket[contact.peer] = entry  # at the end: the last one heard
            self._spares.get(self._index(point), {}).pop(contact.peer, None)
            return known is None
        spares = self._spares.setdefault(self._index(point), {})
        spares.pop(contact.peer, None)
        spares[contact.peer] = entry
        while len(spares) > BUCKET_SIZE:
            del spares[next(iter(spares))]
        return False

    def touch(self, peer: str, now: float) -> None:
        """A peer that may be in the table is alive."""
        bucket = self._buckets.get(self._index(_point(peer)), {})
        entry = bucket.pop(peer, None)
        if entry is not None:
            entry.heard_s, entry.failures = now, 0
            bucket[peer] = entry

    def failed(self, peer: str) -> None:
        """A peer did not answer. After three times in a row a spare takes its place, if any."""
        index = self._index(_point(peer))
        bucket = self._buckets.get(index, {})
        entry = bucket.get(peer)
        if entry is None:
            self._spares.get(index, {}).pop(peer, None)
            return
        entry.failures += 1
        if entry.failures >= FAILURES_MAX:
            self.remove(peer)

    def remove(self, peer: str) -> None:
        index = self._index(_point(peer))
        self._spares.get(index, {}).pop(peer, None)
        bucket = self._buckets.get(index, {})
        if bucket.pop(peer, None) is not None and self._spares.get(index):
            spare, entry = self._spares[index].popitem()  # the last one heard
            bucket[spare] = entry

    def closest(self, place: bytes, count: int = CONTACTS_MAX) -> list[Contact]:
        """The contacts nearest to a place, nearest first; those who failed last come after all."""
        target = int.from_bytes(place)
        found = nsmallest(
            count, self._entries(), key=lambda entry: (entry.failures > 0, entry.point ^ target)
        )
        return [entry.contact for entry in found]

    def stalest(self) -> tuple[Contact, float] | None:
        """Of whom we have heard nothing for longest, and when that was."""
        entry = min(self._entries(), key=lambda entry: entry.heard_s, default=None)
        return None if entry is None else (entry.contact, entry.heard_s)

    def heard_of(self) -> list[tuple[Contact, float]]:
        """Those who did not fail to answer last, and when we heard of each."""
        return [(e.contact, e.heard_s) for e in self._entries() if not e.failures]

    def peers(self) -> tuple[str, ...]:
        return tuple(sorted(entry.contact.peer for entry in self._entries()))

    def prefixes(self) -> tuple[int, ...]:
        """How many bits our peers share with us: the buckets that are not empty."""
        return tuple(sorted(index for index, bucket in self._buckets.items() if bucket))

    def _entries(self) -> Iterator[_Entry]:
        for bucket in self._buckets.values():
            yield from bucket.values()

    def _index(self, point: int) -> int:
        return PLACE_BYTES * 8 - (self._point ^ point).bit_length()

    def _make_room(self, bucket: dict[str, _Entry], newcomer: _Entry) -> bool:
        """Drop a member that failed, or one of a crowded network, for a newcomer of another."""
        for peer, entry in bucket.items():
            if entry.failures:
                del bucket[peer]
                return True
        crowd = Counter(name for entry in bucket.values() for name in _parts(entry))
        if any(crowd[name] >= most for name, most in _parts(newcomer).items()):
            return False
        for peer, entry in reversed(bucket.items()):  # the last of the crowd that came
            if any(crowd[name] > most for name, most in _parts(entry).items()):
                del bucket[peer]
                return True
        return False


def _parts(entry: _Entry) -> dict[str, int]:
    """The networks of a peer, and how many of a bucket may be of each."""
    narrow, middle = names_of(entry.networks)
    return dict.fromkeys(middle, wide_max(BUCKET_SIZE)) | dict.fromkeys(narrow, PER_NETWORK)


def _point(peer: str) -> int:
    return int.from_bytes(peer_point(peer))
