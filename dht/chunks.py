"""Who has which chunks of weights: thousands of records, put and got in bulk.

A model of 140 GB is 35,000 chunks of 4 MiB, and a node has some thousands of them. One look-up for
each would take minutes, so the key space is swept: a look-up of one place names *all* peers of its
region, and every other place of that region is dealt with too. What goes to one keeper goes in
batches.

    places, sorted ─▶ look-up of the first ─▶ its region: the prefix that all nearer ones share
                   ─▶ 8 closest of each place there ─▶ by keeper ─▶ Put x 64 or Fetch x 32

Weights do not change by the minute, so these records live for 30 minutes. They have a shelf of
their own: a flood of chunks moves no span record.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Final

import trio

from ..errors import RemoteError, TransportError
from .keyspace import chunk_of, distance, peer_point, shared_bits
from .message import (
    CONTACTS_MAX,
    FETCH_PLACES_MAX,
    PUT_RECORDS_MAX,
    REQUEST_BYTES_MAX,
    Answer,
    Contact,
    Fetch,
    Fetched,
    Kept,
    Put,
)
from .neighbours import Neighbours
from .reading import Checker, Reader, Reading
from .record import Provider, Record, read
from .shelf import Limits, Shelf

KEEPERS: Final = 8  # of a chunk; with 30 % liars all eight lie once in 15,000
READ_FROM: Final = 3  # of the keepers at first; the others only when these know nobody
ADDRESSES: Final = 4  # in a record
PROVIDERS_MAX: Final = 16  # of one chunk, in one answer; each keeper hands out others of many
ENDS_BYTES: Final = 1024  # of a request, for all that is not a record
AT_ONCE: Final = 8  # keepers that are spoken to at the same time
BATCH_S: Final = 5.0  # a keeper makes us wait when we put thousands

SHELF_BYTES_MAX: Final = 16 * 1024 * 1024  # 12,000 records


def limits(bytes_max: int) -> Limits:
    """Of a shelf of chunks: no peer fills more than a quarter."""
    return Limits(
        place_records_max=64,
        peer_places_max=1 << 30,  # bytes are what counts
        peer_bytes_max=bytes_max // 4,
        bytes_max=bytes_max,
    )


class Chunks:
    """Puts, gets and keeps the records of chunks. `sign` stamps and signs our own."""

    def __init__(
        self,
        me: str,
        neighbours: Neighbours,
        checker: Checker,
        *,
        sign: Callable[[Provider], Record],
        wall: Callable[[], float],
        salt: bytes,
        bytes_max: int = SHELF_BYTES_MAX,
    ) -> None:
        self._me = me
        self._neighbours = neighbours
        self._checker = checker
        self._sign = sign
        self._wall = wall
        self.shelf = Shelf(me, salt=salt, limits=limits(bytes_max))
        self._reader = Reader(checker)

    async def provide(self, chunks: Sequence[bytes]) -> int:
        """Tell that we have these; how many of them at least one other peer keeps in mind now."""
        own = f"/p2p/{self._me}"
        addresses = [a for a in self._neighbours.hello().addresses if a.endswith(own)][:ADDRESSES]
        records = {}
        for chunk in dict.fromkeys(chunks):
            record = self._sign(Provider(chunk, tuple(addresses)))
            records[record.slot.place] = record
            await trio.lowlevel.checkpoint()  # a signature takes 50 us, and there are thousands
        kept: set[bytes] = set()

        async def put(contact: Contact, places: Sequence[bytes]) -> None:
            for batch in _batches([records[place] for place in places]):
                answer = await self._ask(contact, Put(0, tuple(record.raw for record in batch)))
                if not isinstance(answer, Kept) or len(answer.kept) != len(batch):
                    return
                places_kept = zip(batch, answer.kept, strict=True)
                kept.update(record.slot.place for record, yes in places_kept if yes)

        await self._with_keepers(await self._keepers(list(records)), put)
        return len(kept)

    async def providers(self, chunks: Sequence[bytes]) -> Mapping[bytes, tuple[Provider, ...]]:
        """Who has each of these, as far as the swarm tells: every record checked, none expired."""
        places = {chunk_of(chunk): chunk for chunk in chunks}
        with ExitStack() as stack:
            readings = {place: stack.enter_context(self._reader.open(place)) for place in places}
            for place, reading in readings.items():
                now = self._wall()
                reading.add((record.raw for record in self.shelf.at(place, now)), now)

            async def fetch(contact: Contact, wanted: Sequence[bytes]) -> None:
                for at in range(0, len(wanted), FETCH_PLACES_MAX):
                    some = {place: readings[place] for place in wanted[at : at + FETCH_PLACES_MAX]}
                    answer = await self._ask(contact, Fetch(0, tuple(some)))
                    if answer is None or not self._take_in(contact.peer, answer, some):
                        return

            keepers = await self._keepers(list(places))
            first = {place: near[:READ_FROM] for place, near in keepers.items()}
            await self._with_keepers(first, fetch)
            rest = {p: near[READ_FROM:] for p, near in keepers.items() if not readings[p].found}
            await self._with_keepers(rest, fetch)
            return {
                chunk: tuple(_read_all(self._reader.result(readings[place])))
                for place, chunk in places.items()
            }

    # ---- as a keeper

    def keep(self, record: Record) -> None:
        """Keep a checked record for others. Raises Stale, RemoteError or Refused."""
        self._reader.admit(record)
        self.shelf.put(record, self._neighbours.place(record.slot.peer))

    def held(self, fetch: Fetch) -> tuple[bytes, ...]:
        """What we keep at these places."""
        now = self._wall()
        found: list[bytes] = []
        for place in fetch.places:
            for number, record in enumerate(self.shelf.at(place, now)):
                if number == PROVIDERS_MAX:
                    break
                found.append(record.raw)
        return tuple(found)

    def forget_expired(self) -> None:
        self.shelf.forget_expired(self._wall())
        self._reader.forget_expired(self._wall())

    # ---- the sweep

    async def _keepers(self, places: Sequence[bytes]) -> dict[bytes, list[Contact]]:
        """The closest peers of each place, with one look-up for each region."""
        left = sorted(places)
        found: dict[bytes, list[Contact]] = {}
        while left:
            first = left[0]
            near = await self._neighbours.lookup(first)
            bits = region_bits(first, near[:CONTACTS_MAX], known=len(self._neighbours.table))
            here = [place for place in left if shared_bits(place, first) >= bits]
            for place in here:
                found[place] = _closest(near[:CONTACTS_MAX], place) + near[CONTACTS_MAX:]
            left = left[len(here) :]  # sorted: those of one prefix stand together
        return found

    async def _with_keepers(
        self,
        keepers: Mapping[bytes, Sequence[Contact]],
        work: Callable[[Contact, Sequence[bytes]], Awaitable[None]],
    ) -> None:
        """`work` with each keeper and all its places, some at once."""
        contacts: dict[str, Contact] = {}
        places: dict[str, list[bytes]] = {}
        for place, near in keepers.items():
            for contact in near:
                contacts[contact.peer] = contact
                places.setdefault(contact.peer, []).append(place)
        limit = trio.CapacityLimiter(AT_ONCE)

        async def one(peer: str) -> None:
            async with limit:
                await work(contacts[peer], places[peer])

        async with trio.open_nursery() as nursery:
            for peer in places:
                nursery.start_soon(one, peer)

    async def _ask(self, contact: Contact, question: Put | Fetch) -> Answer | None:
        try:
            return await self._neighbours.ask(contact, question, deadline_s=BATCH_S)
        except (TransportError, RemoteError):
            return None  # a keeper less; the table knows of it

    def _take_in(self, peer: str, answer: Answer, readings: Mapping[bytes, Reading]) -> bool:
        """Merge a keeper's records; False when it lied, and is shunned for it."""

        def check() -> None:
            if not isinstance(answer, Fetched):
                raise RemoteError("an answer to another question")
            now = self._wall()
            for raw in answer.records:
                self._sort_in(raw, readings, now)

        try:
            self._neighbours.believe(peer, check)
        except RemoteError:
            return False
        return True

    def _sort_in(self, raw: bytes, readings: Mapping[bytes, Reading], now: float) -> None:
        place = self._checker.place_of(raw, now)
        if place is None:
            return  # stale
        if place not in readings:
            raise RemoteError("a record that was not asked for")
        readings[place].add([raw], now)


def region_bits(place: bytes, near: Sequence[Contact], *, known: int) -> int:
    """Of which prefix of `place` these, its closest peers, are all the peers there are.

    The farthest of them shares so many bits; whoever shares more is closer, so is among them.
    known: how many peers we know; fewer than 20 found are the whole swarm only if we know no more.
    """
    if len(near) < CONTACTS_MAX and known <= len(near):
        return 0
    return 1 + min((shared_bits(place, peer_point(one.peer)) for one in near), default=0)


def _closest(near: Sequence[Contact], place: bytes) -> list[Contact]:
    return sorted(near, key=lambda one: distance(peer_point(one.peer), place))[:KEEPERS]


def _batches(records: Sequence[Record]) -> Iterator[list[Record]]:
    """As many as one request may hold."""
    batch: list[Record] = []
    left = REQUEST_BYTES_MAX - ENDS_BYTES
    for record in records:
        size = len(record.raw) + 5  # MessagePack's header of so many bytes
        if batch and (len(batch) == PUT_RECORDS_MAX or size > left):
            yield batch
            batch, left = [], REQUEST_BYTES_MAX - ENDS_BYTES
        batch.append(record)
        left -= size
    if batch:
        yield batch


def _read_all(records: Sequence[Record]) -> Iterator[Provider]:
    for record in records:
        try:
            yield read(record, Provider)
        except RemoteError:
            continue  # rightly signed nonsense
