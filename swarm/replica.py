"""The newest record of every peer, as all honest peers come to hold it: a CRDT with a digest.

Records merge by `record.newest`, so whoever has read the same ones holds the same set, in whatever
order they came. What gossip missed, two peers find by comparing digests of buckets (anti-entropy:
Demers et al., 1987), and exchange only that:

    A ── Summary ──▶ B      256 buckets, eight bytes each
    A ◀── Listing ── B      of the buckets that differ: eight bytes of each record
    A ── Give, Want ─▶ B    what B lacks, and the names of what A lacks
    A ◀──── Give ─── B

Each answer follows from the question alone, so nothing is remembered of an exchange, and each is of
bounded size: after a long parting the two meet several times. What is kept is bounded too: of a
peer the slots with the least places, so that all keep the same ones, and when all is full the
network that holds most loses first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from ..crypto.codec import Size
from ..crypto.digest import digest
from ..dht.keyspace import Slot
from ..dht.network import NOWHERE, Prefixes
from ..dht.record import (
    DOMAIN,
    RECORD_BYTES_MAX,
    Announcement,
    ModelList,
    Record,
    Registry,
    Stale,
    newest,
)
from ..errors import RemoteError
from .testimony import Contradiction, contradiction_of

PROTOCOL: Final = "/potluck/registry/1"
LETTER_BYTES_MAX: Final = 64 * 1024  # a `Give` is the longest
KINDS: Final = (Announcement.KIND, ModelList.KIND)  # chunks are too many: they stay in the DHT
BUCKETS: Final = 256
NAME_BYTES: Final = 8  # of a digest; two records of one name are taken for one, by nobody's choice
RECORDS_MAX: Final = 16_384
SLOTS_PER_PEER: Final = 9  # a record for each of eight models, and their list
GIVE_BYTES_MAX: Final = 48 * 1024
LISTED_MAX: Final = 4096  # names in a message
ROUND_S: Final = 5.0  # with a contact of the sampling
HURRY_S: Final = 1.0  # after an exchange that brought something
_EVICTED: Final = RECORDS_MAX // 64  # at once, so that a flood pays for the count of networks


@dataclass(frozen=True, slots=True)
class Summary:
    """A name of the content of each bucket, one after the other."""

    TAG: ClassVar[str] = "summary"

    buckets: Annotated[bytes, Size(BUCKETS * NAME_BYTES, least=BUCKETS * NAME_BYTES)]


@dataclass(frozen=True, slots=True)
class Listing:
    """Of these buckets, the names of all records."""

    TAG: ClassVar[str] = "listing"

    buckets: Annotated[bytes, Size(BUCKETS)]  # a byte each
    names: Annotated[bytes, Size(LISTED_MAX * NAME_BYTES)]


@dataclass(frozen=True, slots=True)
class Want:
    """Records that the sender lacks; none, when it is done."""

    TAG: ClassVar[str] = "want"

    names: Annotated[bytes, Size(LISTED_MAX * NAME_BYTES)]


@dataclass(frozen=True, slots=True)
class Give:
    """Records that the receiver lacks."""

    TAG: ClassVar[str] = "give"

    records: Annotated[tuple[Annotated[bytes, Size(RECORD_BYTES_MAX)], ...], Size(1024)]


@dataclass(frozen=True, slots=True)
class Merged:
    """What came of a record. news: pass it on; proof: its signer contradicts itself.

    first: nothing was held of its slot.
    """

    news: bool
    proof: Contradiction | None = None
    first: bool = False


@dataclass(slots=True)
class _Held:
    record: Record
    where: Prefixes


class Replica:
    """Records that were checked, by slot."""

    def __init__(self, *, records_max: int = RECORDS_MAX) -> None:
        self._records_max = records_max
        self._marks = Registry()
        self._held: dict[Slot, _Held] = {}
        self._buckets: list[dict[Slot, bytes]] = [{} for _ in range(BUCKETS)]  # digests
        self._names: list[bytes | None] = [None] * BUCKETS
        self._places: dict[str, set[bytes]] = {}  # of each peer's slots
        self._at: dict[bytes, dict[str, None]] = {}  # of each place the peers, in order
        self._expiry_s = math.inf  # the earliest

    def __len__(self) -> int:
        return len(self._held)

    def live(self, now: float) -> tuple[Record, ...]:
        """What is held and has not expired, in the order of slots."""
        self._expire(now)
        found = sorted(self._held.items(), key=lambda item: (item[0].place, item[0].peer))
        return tuple(held.record for _, held in found)

    def of(self, slot: Slot) -> Record | None:
        """What is held of this slot; perhaps it has expired just now."""
        held = self._held.get(slot)
        return None if held is None else held.record

    def at(self, place: bytes, now: float) -> list[Record]:
        """What is held under this place and has not expired."""
        self._expire(now)
        return [self._held[Slot(place, peer)].record for peer in self._at.get(place, ())]

    def merge(self, record: Record, now: float, *, where: Prefixes = NOWHERE) -> Merged:
        """Take in a record that `check_record` has let through. where: its signer's network.

        Raises Stale for one that was rolled back, RemoteError for a kind that is not gossiped, or
        a slot beyond those that a peer may fill.
        """
        self._expire(now)
        if record.kind not in KINDS:
            raise RemoteError(f"a record of kind {record.kind}, which is not gossiped")
        held = self._held.get(record.slot)
        if held is not None and record.order <= held.record.order:
            return self._older(record, held)
        peer, filled = record.slot.peer, self._places.get(record.slot.peer, set())
        full = held is None and len(filled) >= SLOTS_PER_PEER
        if full and record.slot.place > max(filled):
            raise RemoteError(f"more than {SLOTS_PER_PEER} records of {peer}")
        if not self._marks.admit(record):
            return Merged(False)  # known, and evicted since
        if full:
            self._remove(Slot(max(filled), peer))
        self._put(record, where)
        self._make_room()
        kept = record.slot in self._held
        return Merged(kept, first=kept and held is None)

    def drop(self, peer: str) -> None:
        """Forget all that this peer said: it is shunned."""
        for slot in [slot for slot in self._held if slot.peer == peer]:
            self._remove(slot)

    # ---- what two peers compare

    def digest(self, now: float) -> bytes:
        """Equal with whoever holds the same records."""
        return digest("potluck replica", self.summary(now).buckets)

    def summary(self, now: float) -> Summary:
        self._expire(now)
        return Summary(b"".join(self._name(number) for number in range(BUCKETS)))

    def listing(self, theirs: Summary, now: float) -> Listing | None:
        """What we hold where we differ, as far as it fits; None if nowhere."""
        ours = self.summary(now).buckets
        buckets, names = bytearray(), bytearray()
        for number in range(BUCKETS):
            part = slice(number * NAME_BYTES, (number + 1) * NAME_BYTES)
            if ours[part] == theirs.buckets[part]:
                continue
            more = b"".join(_short(one) for one in sorted(self._buckets[number].values()))
            if len(names) + len(more) > LISTED_MAX * NAME_BYTES:
                break
            buckets.append(number)
            names += more
        return Listing(bytes(buckets), bytes(names)) if buckets else None

    def compare(self, theirs: Listing, now: float) -> tuple[Give, Want]:
        """What they lack, as far as it fits, and what we do. RemoteError for a broken listing."""
        self._expire(now)
        listed = _split(theirs.names)
        ours = {
            _short(name): slot
            for number in sorted(set(theirs.buckets))
            for slot, name in self._buckets[number].items()
        }
        lacking = (slot for name, slot in ours.items() if name not in listed)
        return self._give(lacking), Want(b"".join(name for name in listed if name not in ours))

    def give(self, want: Want, now: float) -> Give:
        """What they asked for and we hold, as far as it fits."""
        self._expire(now)
        wanted = _split(want.names)
        return self._give(
            slot
            for bucket in self._buckets
            for slot, name in bucket.items()
            if _short(name) in wanted
        )

    def _give(self, slots: Iterable[Slot]) -> Give:
        chosen: list[bytes] = []
        room = GIVE_BYTES_MAX
        for slot in slots:
            raw = self._held[slot].record.raw
            if len(raw) > room or len(chosen) == 1024:
                break
            room -= len(raw)
            chosen.append(raw)
        return Give(tuple(chosen))

    # ---- what is kept

    def _older(self, record: Record, held: _Held) -> Merged:
        """Nothing newer: the same, one that was rolled back, or a contradiction."""
        old = held.record
        if record.order < old.order:
            raise Stale(f"a record {record.order} after {old.order}: rolled back")
        if record.digest == old.digest:
            return Merged(False)
        proof = contradiction_of(DOMAIN, old.raw, record.raw)
        wins = newest(old, record) is record
        if wins:  # so that all agree on one of the two, until the proof is with all
            self._put(record, held.where)
        return Merged(wins, proof)

    def _put(self, record: Record, where: Prefixes) -> None:
        slot = record.slot
        self._places.setdefault(slot.peer, set()).add(slot.place)
        self._at.setdefault(slot.place, {})[slot.peer] = None
        self._held[slot] = _Held(record, where)
        number = _bucket(slot)
        self._buckets[number][slot] = record.digest
        self._names[number] = None
        self._expiry_s = min(self._expiry_s, record.expires_s)

    def _remove(self, slot: Slot) -> None:
        del self._held[slot]
        number = _bucket(slot)
        del self._buckets[number][slot]
        self._names[number] = None
        del self._at[slot.place][slot.peer]
        if not self._at[slot.place]:
            del self._at[slot.place]
        self._places[slot.peer].remove(slot.place)
        if not self._places[slot.peer]:
            del self._places[slot.peer]

    def _expire(self, now: float) -> None:
        if now < self._expiry_s:
            return
        for slot in [slot for slot, one in self._held.items() if one.record.expires_s <= now]:
            self._remove(slot)
        self._marks.forget_expired(now)
        self._expiry_s = min(
            (one.record.expires_s for one in self._held.values()), default=math.inf
        )

    def _make_room(self) -> None:
        """Of the network with most records those go first that expire first."""
        if len(self._held) <= self._records_max:
            return
        networks: dict[str, list[tuple[float, Slot]]] = {}
        for slot, one in self._held.items():
            networks.setdefault(one.where[1], []).append((one.record.expires_s, slot))
        for held in networks.values():
            held.sort(key=lambda item: (-item[0], item[1].place, item[1].peer))
        few = max(1, min(_EVICTED, self._records_max // 64))
        for _ in range(len(self._held) - self._records_max + few - 1):
            most = max(networks, key=lambda network: (len(networks[network]), network))
            self._remove(networks[most].pop()[1])

    def _name(self, number: int) -> bytes:
        name = self._names[number]
        if name is None:
            parts = sorted(self._buckets[number].values())
            name = self._names[number] = _short(digest("potluck bucket", *parts))
        return name


def _bucket(slot: Slot) -> int:
    return digest("potluck slot", slot.place, slot.peer.encode())[0]


def _short(name: bytes) -> bytes:
    return name[:NAME_BYTES]


def _split(names: bytes) -> dict[bytes, None]:
    """In order, each once."""
    if len(names) % NAME_BYTES:
        raise RemoteError(f"names of {len(names)} bytes, not in eights")
    return dict.fromkeys(
        names[at : at + NAME_BYTES] for at in range(0, len(names), NAME_BYTES)
    )  # fmt: skip
