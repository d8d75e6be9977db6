"""What several keepers say about one place, merged: each signer's newest record, all checked.

A keeper may be old, or lie. A stale record is passed over; a forged one tells of its keeper,
because whoever keeps records checks them first. The merge is the newest by (boot, seq), so the
order of the answers does not matter.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from ..errors import RemoteError
from .keyspace import Slot
from .message import HAVE_BYTES
from .record import Record, Registry, Stale, check_record, check_times, newest

CHECKED_MAX: Final = 4096  # records, about 8 MB; checking one costs 140 us, finding it 1 us

Name = tuple[Slot, int, int]  # what an honest peer says one thing under


class Checker:
    """`check_record`, remembering which signatures it has found good; times are checked anew.

    contradicted: told of two records of one slot, boot and seq that say different things.
    """

    def __init__(self) -> None:
        self.contradicted: list[Callable[[Record, Record], None]] = []
        self._good: OrderedDict[bytes, Record] = OrderedDict()
        self._said: dict[Name, Record] = {}  # the first of each that is in `_good`

    def check(
        self, raw: bytes, place: bytes | None, now: float, *, peer: str | None = None
    ) -> Record:
        """Raises RemoteError; Stale when only the time is wrong."""
        known = self._good.get(raw)
        if known is None:
            known = check_record(raw, place, now, peer=peer)
            self._remember(known)
            return known
        self._good.move_to_end(raw)
        if place not in (None, known.slot.place) or peer not in (None, known.slot.peer):
            raise RemoteError(f"a record of another slot, from {known.slot.peer}")
        check_times(known, now)
        return known

    def _remember(self, record: Record) -> None:
        self._good[record.raw] = record
        if len(self._good) > CHECKED_MAX:
            _, old = self._good.popitem(last=False)
            if self._said.get(_name_of(old)) is old:
                del self._said[_name_of(old)]
        other = self._said.setdefault(_name_of(record), record)
        if other.digest != record.digest:
            for tell in self.contradicted:
                tell(other, record)

    def place_of(self, raw: bytes, now: float) -> bytes | None:
        """Where a record belongs; None when its time is wrong. Raises RemoteError."""
        try:
            return self.check(raw, None, now).slot.place
        except Stale:
            return None


def _name_of(record: Record) -> Name:
    return record.slot, *record.order


class Reading:
    """One read of one place, from several keepers."""

    def __init__(self, place: bytes, checker: Checker) -> None:
        self.place = place
        self._checker = checker
        self._best: dict[str, Record] = {}
        self._have: set[bytes] = set()

    @property
    def found(self) -> bool:
        """Whether anybody's record came."""
        return bool(self._best)

    def have(self) -> bytes:
        """The names of the records that need not be sent again."""
        return b"".join(sorted(self._have))

    def add(self, raws: Iterable[bytes], now: float) -> None:
        """Take in one keeper's records. Raises RemoteError at the first that is forged."""
        for raw in raws:
            try:
                record = self._checker.check(raw, self.place, now)
            except Stale:
                continue
            self.take(record)

    def take(self, record: Record) -> None:
        """Take in a record that has been checked."""
        self._have.add(record.digest[:HAVE_BYTES])
        peer = record.slot.peer
        self._best[peer] = newest(self._best.get(peer, record), record)

    def best(self) -> list[Record]:
        """Each signer's newest, in the order of their names."""
        return [self._best[peer] for peer in sorted(self._best)]


class Reader:
    """Who is rolled back by nobody: the newest seen of each slot, and the reads under way.

    A read takes in what is admitted while it waits. Else it would end with the older record that
    it began with, which the registry then refuses: nothing found where two peers answered rightly.
    """

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._registry = Registry()
        self._open: dict[bytes, list[Reading]] = {}

    def __len__(self) -> int:
        """How many slots are remembered."""
        return len(self._registry)

    @contextmanager
    def open(self, place: bytes) -> Iterator[Reading]:
        """A read of this place, for as long as its answers come in."""
        reading = Reading(place, self._checker)
        beside = self._open.setdefault(place, [])
        beside.append(reading)
        try:
            yield reading
        finally:
            beside.remove(reading)
            if not beside:
                self._open.pop(place, None)

    def admit(self, record: Record) -> None:
        """Remember a checked record. Raises RemoteError at a contradiction, Stale after a newer."""
        if self._registry.admit(record):
            for reading in self._open.get(record.slot.place, ()):
                reading.take(record)

    def result(self, reading: Reading) -> list[Record]:
        """Each signer's newest, but for those who were heard to say something newer before."""
        found = []
        for record in reading.best():
            try:
                self.admit(record)
            except RemoteError:
                continue  # rolled back, or a contradiction: that signer is not believed
            found.append(record)
        return found

    def forget_expired(self, now: float) -> None:
        self._registry.forget_expired(now)
