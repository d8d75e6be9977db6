"""The records that this peer keeps for others: bounded by place, by peer and by bytes.

Only a record's own signer may put it, so a flood costs as many identities as records. When a
place is full, those whose salted digest is least stay: the salt is each keeper's secret, so nobody
can aim at a record's seat, and several keepers together hold a fair sample (the ranking of BASALT,
Auvolat et al., 2023). Names are cheap within a network, so it is a fair sample of networks: of a
full place none has more than its part (network.py) while there are others to fill it, in whatever
order they came. Who stands nowhere that counts, at home, is not counted.

When the shelf is full, a network that holds more than its part of all bytes gives way, the place
farthest from ourselves first; where there is none, that place: it is others' duty.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ..crypto.digest import digest
from ..errors import Refused
from .keyspace import distance, peer_point
from .message import HAVE_BYTES
from .network import NOWHERE, WIDE_SHARE, Prefixes, diverse
from .record import REFRESH_S, Record

PLACE_RECORDS_MAX: Final = 256
PEER_PLACES_MAX: Final = 32
SHELF_BYTES_MAX: Final = 32 * 1024 * 1024
ENTRY_BYTES: Final = 1024  # what Python adds to a record's own bytes, measured, rounded up


@dataclass(frozen=True, slots=True)
class Limits:
    """What a shelf holds: of one place, of one peer, in all."""

    place_records_max: int = PLACE_RECORDS_MAX
    peer_places_max: int = PEER_PLACES_MAX
    peer_bytes_max: int = SHELF_BYTES_MAX
    bytes_max: int = SHELF_BYTES_MAX


@dataclass(frozen=True, slots=True)
class _Seat:
    record: Record
    rank: bytes
    where: Prefixes


class Shelf:
    """Records by place, then by peer. What goes in has been checked and admitted."""

    def __init__(self, me: str, *, salt: bytes, limits: Limits | None = None) -> None:
        self._me = me
        self._point = peer_point(me)
        self._salt = salt
        self._limits = limits or Limits()
        self._places: dict[bytes, dict[str, _Seat]] = {}
        self._places_of: dict[str, int] = {}
        self._bytes_of: dict[str, int] = {}
        self._bytes_in: Counter[str] = Counter()  # of each network, the narrowest
        self.bytes_held = 0

    def __len__(self) -> int:
        return sum(len(seats) for seats in self._places.values())

    def put(self, record: Record, where: Prefixes = NOWHERE) -> None:
        """Keep a record, in the place of the signer's older one. Raises Refused when full.

        where: the network of who puts it, its signer.
        """
        place, peer = record.slot.place, record.slot.peer
        seats = self._places.get(place, {})
        old = seats.get(peer)
        if old is not None:
            if old.record.order < record.order:
                self._take(place, peer)
                self._seat(record, old.rank, where if where != NOWHERE else old.where)
            return
        rank = digest("potluck seat", self._salt, peer.encode())
        if peer != self._me:
            self._make_room(record, rank, where)
        self._seat(record, rank, where)

    def at(
        self, place: bytes, now: float, *, have: bytes = b"", bytes_max: int | None = None
    ) -> Iterator[Record]:
        """The records of a place that have not expired, but for those that `have` names."""
        held = (seat.record for seat in self._places.get(place, {}).values())
        return fitting(held, now, have=have, bytes_max=bytes_max)

    def peers(self) -> tuple[str, ...]:
        """Whose records are held."""
        return tuple(self._places_of)

    def drop(self, peer: str) -> None:
        """Keep nothing of this peer."""
        if peer in self._places_of:  # to look for it takes as long as there are places
            for place in [place for place, seats in self._places.items() if peer in seats]:
                self._take(place, peer)

    def forget_expired(self, now: float) -> None:
        expired = [
            seat.record.slot
            for seats in self._places.values()
            for seat in seats.values()
            if seat.record.expires_s <= now
        ]
        for slot in expired:
            self._take(slot.place, slot.peer)

    def _make_room(self, record: Record, rank: bytes, where: Prefixes) -> None:
        place, peer, limits = record.slot.place, record.slot.peer, self._limits
        if self._places_of.get(peer, 0) >= limits.peer_places_max:
            raise Refused(f"{peer} fills {limits.peer_places_max} places", retry_after_s=REFRESH_S)
        if self._bytes_of.get(peer, 0) + _size(record) > limits.peer_bytes_max:
            raise Refused(f"{peer} fills {limits.peer_bytes_max} bytes", retry_after_s=REFRESH_S)
        seats = self._places.get(place, {})
        others = {name: seat for name, seat in seats.items() if name != self._me}
        if len(others) >= limits.place_records_max:
            others[peer] = _Seat(record, rank, where)
            last = _least(others)
            if last == peer:
                raise Refused("the place is full", retry_after_s=REFRESH_S)
            self._take(place, last)
        while self.bytes_held >= limits.bytes_max:
            self._shrink(record, where)

    def _shrink(self, record: Record, where: Prefixes) -> None:
        """Let a place, or what a crowded network has there, give way to this record."""
        part = WIDE_SHARE * self._limits.bytes_max
        crowds = {network for network, held in self._bytes_in.items() if held > part}
        among = crowds
        if where != NOWHERE and self._bytes_in[where[2]] + _size(record) > part:
            among = {where[2]}  # it has had its part: only its neighbours give way to it

        def gives_way(seat: _Seat) -> bool:
            return not among or seat.where[2] in among

        far = max(
            (at for at, seats in self._places.items() if any(map(gives_way, seats.values()))),
            key=lambda at: distance(at, self._point),
        )
        nearer = distance(far, self._point) <= distance(record.slot.place, self._point)
        if nearer and (not crowds or among is not crowds):
            raise Refused("the shelf is full", retry_after_s=REFRESH_S)
        for name in [name for name, seat in self._places[far].items() if gives_way(seat)]:
            self._take(far, name)

    def _seat(self, record: Record, rank: bytes, where: Prefixes) -> None:
        slot = record.slot
        self._places.setdefault(slot.place, {})[slot.peer] = _Seat(record, rank, where)
        self._places_of[slot.peer] = self._places_of.get(slot.peer, 0) + 1
        self._bytes_of[slot.peer] = self._bytes_of.get(slot.peer, 0) + _size(record)
        if where != NOWHERE:
            self._bytes_in[where[2]] += _size(record)
        self.bytes_held += _size(record)

    def _take(self, place: bytes, peer: str) -> None:
        seats = self._places[place]
        seat = seats.pop(peer)
        size = _size(seat.record)
        self.bytes_held -= size
        if seat.where != NOWHERE:
            self._bytes_in[seat.where[2]] -= size
            if not self._bytes_in[seat.where[2]]:
                del self._bytes_in[seat.where[2]]
        self._bytes_of[peer] -= size
        if not seats:
            del self._places[place]
        self._places_of[peer] -= 1
        if not self._places_of[peer]:
            del self._places_of[peer], self._bytes_of[peer]


def fitting(
    records: Iterable[Record], now: float, *, have: bytes = b"", bytes_max: int | None = None
) -> Iterator[Record]:
    """Those that have not expired, but for those that `have` names, as many as fit."""
    known = {have[at : at + HAVE_BYTES] for at in range(0, len(have), HAVE_BYTES)}
    left = bytes_max
    for record in records:
        if record.expires_s <= now or record.digest[:HAVE_BYTES] in known:
            continue
        if left is not None:
            left -= len(record.raw) + 8
            if left < 0:
                return
        yield record


def _least(seats: dict[str, _Seat]) -> str:
    """Who of these has no seat, when there is one too few: the last, by rank, of those beyond the
    part of their network, else of all. It does not matter who came first."""
    ranked = sorted(seats, key=lambda name: seats[name].rank)
    stay = diverse(((name, (seats[name].where,)) for name in ranked), len(seats) - 1)
    (last,) = seats.keys() - set(stay)
    return last


def _size(record: Record) -> int:
    return len(record.raw) + ENTRY_BYTES
