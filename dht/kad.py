"""The directory over the swarm: a Kademlia of our own, on a protocol id of our own.

A place keeps *many* records, one of each signer, so the index of a model and its span records are
read in one look-up; py-libp2p's Kademlia keeps one value a key, answers from a stale local copy,
and stops at twelve silent streams (DECISIONS.md).

    announce   sign, look up the 20 closest peers to the place, put at all of them, count who keeps
    find       look up along 4 disjoint paths, merge what the keepers say, check every record
    keep       announce anew each 30 s +-20 %, at once when peers appear

The rules never wait: record, reading, lookup, table, shelf. Peers are neighbours' business, streams
are calls' and answers'.
"""

import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from ..crypto.keys import IdentityKey
from ..errors import LocalError, Refused, RemoteError, UserError, only
from .answers import Answers
from .calls import Host
from .chunks import Chunks
from .directory import ModelOffer, offers
from .keepers import Keepers
from .keyspace import MODELS, spans_of
from .known import Known
from .message import (
    ANSWER_RECORD_BYTES_MAX,
    CONTACTS_MAX,
    PROTOCOL,
    Answer,
    Contact,
    Fetch,
    Fetched,
    Find,
    Found,
    Hello,
    Kept,
    Put,
    Request,
)
from .neighbours import TEND_S, Neighbours
from .reading import Checker, Reader
from .record import (
    CHUNK_REFRESH_S,
    REFRESH_S,
    Announcement,
    AnyFact,
    ModelList,
    ModelName,
    Provider,
    Record,
    Stale,
    read,
    sign_fact,
)
from .shelf import SHELF_BYTES_MAX, Limits, Shelf, fitting

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

HEARD_BYTES_MAX: Final = 16 * 1024  # guess: 30 records, of what the registry has of a place
SEQ_BITS: Final = (
    31  # a run begins at any of so many; as many are left to it: at 8 a second, 8 years
)
RETRY_S: Final = 1.0  # after an announcement that nobody kept; doubled each time


class KadDirectory:
    """Implements directory.Directory; made by `open_directory`."""

    def __init__(
        self, key: IdentityKey, neighbours: Neighbours, *, boot: int, wall: Callable[[], float],
        dice: random.Random, shelf_bytes_max: int,
    ) -> None:  # fmt: skip
        salt = dice.randbytes(16)
        self._key = key
        self._dice = dice
        self._boot = boot
        self._wall = wall
        self._seq = dice.getrandbits(SEQ_BITS)
        self._announced: dict[str, Announcement] = {}
        self._neighbours = neighbours
        self._convicted: Callable[[str], bool] = lambda peer: False
        self.refused: list[Callable[[Record], None]] = []  # told of what a convicted peer says
        self._shelf = Shelf(key.peer_id, salt=salt, limits=Limits(bytes_max=shelf_bytes_max))
        self._checker = Checker()
        self.contradicted = self._checker.contradicted  # called with two records, where seen
        self._reader = Reader(self._checker)
        self._chunks = Chunks(
            key.peer_id, neighbours, self._checker,
            sign=self._sign, wall=wall, salt=salt, bytes_max=shelf_bytes_max // 2,
        )  # fmt: skip
        self._began_s = wall()
        self._keepers = Keepers(neighbours)
        self.signed: list[Callable[[Record], None]] = []  # told of each record of ours
        self.beside: list[Callable[[bytes], Iterable[Record]]] = []  # checked ones, kept elsewhere
        self.answers = Answers(neighbours.hello, self._answer)

    async def announce(self, announcement: Announcement) -> int:
        own = f"/p2p/{self._key.peer_id}"
        if not all(address.endswith(own) for address in announcement.addresses):
            raise LocalError(f"announcing addresses that do not end in {own}: nobody would believe")
        self._announced[announcement.model] = announcement
        kept = await self._put_all([announcement, self._names()])
        return kept[0]

    async def withdraw(self, model: str = "") -> None:
        gone = [told for told in self._announced.values() if model in ("", told.model)]
        if gone:
            for told in gone:
                del self._announced[told.model]
            await self._put_all([*(replace(told, state="gone") for told in gone), self._names()])

    def shun(self, convicted: Callable[[str], bool]) -> None:
        """Neither keep nor hand out nor believe what these peers say, from now on."""
        self._convicted = self._neighbours.convicted = convicted
        held = {*self._shelf.peers(), *self._chunks.shelf.peers(), *self.peers()}
        for peer in sorted(filter(convicted, held)):
            self.forget(peer)

    def forget(self, peer: str) -> None:
        """Drop all that is held of a peer: it was convicted, and `shun` says so."""
        self._shelf.drop(peer)
        self._chunks.shelf.drop(peer)
        self._neighbours.table.remove(peer)

    def ask_also(self, sampled: Callable[[], Sequence[Contact]]) -> None:
        """Begin a path of each look-up at these peers, whom nobody chose for us (lookup.py)."""
        self._neighbours.sampled = sampled

    def hurry(self) -> None:
        """Have `keep` announce anew at once: what it would say has changed."""
        self._neighbours.came.set()
        self._neighbours.came = trio.Event()

    async def keep(
        self,
        make: Callable[[], Announcement],
        *,
        task_status: "TaskStatus[int]" = trio.TASK_STATUS_IGNORED,
    ) -> None:
        kept = await self.announce(make())
        task_status.started(kept)
        retry_s = RETRY_S
        while True:
            if kept == 0 and self.peers():
                wait_s, retry_s = min(retry_s, REFRESH_S), retry_s * 2
            else:
                wait_s, retry_s = self._neighbours.jittered(REFRESH_S), RETRY_S
            with trio.move_on_after(wait_s):
                await self._neighbours.came.wait()
            kept = await self.announce(make())
            if kept == 0 and self.peers():
                await self._refuse_double()

    async def provide(self, chunks: Sequence[bytes]) -> int:
        return await self._chunks.provide(chunks)

    async def keep_providing(self, chunks: Callable[[], Sequence[bytes]]) -> None:
        while True:
            told = chunks()
            kept = await self._chunks.provide(told)
            wait_s = REFRESH_S if kept < len(set(told)) else CHUNK_REFRESH_S
            with trio.move_on_after(self._neighbours.jittered(wait_s)):
                await self._neighbours.came.wait()

    async def providers(self, chunks: Sequence[bytes]) -> Mapping[bytes, tuple[Provider, ...]]:
        found = await self._chunks.providers(chunks)
        return {
            chunk: tuple(one for one in told if not self._convicted(one.peer))
            for chunk, told in found.items()
        }

    async def find(self, model: str) -> tuple[Announcement, ...]:
        found = []
        for record in await self._read(spans_of(model)):
            try:
                told = read(record, Announcement)
            except RemoteError:
                continue  # rightly signed nonsense: its signer serves nothing
            if told.state != "gone":
                found.append(told)
        return tuple(found)

    async def models(self) -> tuple[ModelOffer, ...]:
        lists = []
        for record in await self._read(MODELS):
            try:
                lists.append(read(record, ModelList))
            except RemoteError:
                continue  # rightly signed nonsense
        return offers(lists)

    async def bootstrap(self, addresses: Sequence[str]) -> int:
        return await self._neighbours.join(addresses)

    async def wander(self) -> Sequence[Contact]:
        return await self._neighbours.wander()

    def size(self) -> float:
        return self._neighbours.size()

    def peers(self) -> tuple[str, ...]:
        return self._neighbours.table.peers()

    def answered(self) -> tuple[Known, ...]:
        ago = self._wall() - trio.current_time()
        return tuple(
            Known(contact.peer, contact.addresses, max(0.0, heard_s + ago))
            for contact, heard_s in self._neighbours.table.heard_of()
        )

    async def tend(self) -> None:
        """Upkeep, for ever: forget what has expired."""
        while True:
            await trio.sleep(self._neighbours.jittered(TEND_S))
            self._shelf.forget_expired(self._wall())
            self._reader.forget_expired(self._wall())
            self._chunks.forget_expired()

    async def _read(self, place: bytes) -> list[Record]:
        """Each signer's newest record at a place: what the swarm says, and what we keep for it."""
        with self._reader.open(place) as reading:
            now = self._wall()
            reading.add((record.raw for record in self._shelf.at(place, now)), now)
            for records in self.beside:
                for record in records(place):
                    reading.take(record)
            await self._neighbours.lookup(
                place,
                take=lambda found: reading.add(found.records, self._wall()),
                have=reading.have,
            )
        return [record for record in self._reader.result(reading) if not self._refuses(record)]

    def _names(self) -> ModelList:
        told = self._announced.values()
        return ModelList(tuple(ModelName(one.model, one.name, one.blocks) for one in told))

    async def _put_all(self, facts: Sequence[Announcement | ModelList]) -> list[int]:
        """Sign and put each; how many other peers keep each."""
        kept = [0] * len(facts)

        async def put(at: int, record: Record) -> None:
            kept[at] = await self._keepers.put(record)

        async with trio.open_nursery() as nursery:
            for at, fact in enumerate(facts):
                record = self._sign(fact)
                self._reader.admit(record)
                self._shelf.put(record)
                for tell in self.signed:
                    tell(record)
                nursery.start_soon(put, at, record)
        return kept

    def _sign(self, fact: AnyFact) -> Record:
        self._seq += 1
        return sign_fact(self._key, fact, boot=self._boot, seq=self._seq, now=self._wall())

    async def _refuse_double(self) -> None:
        """Nobody takes our records: perhaps because another process signs newer ones as we do."""
        order = (self._boot, self._seq)
        for announced in list(self._announced.values()):
            for record in await self._read(announced.place()):
                ours = record.slot.peer == self._key.peer_id
                if ours and record.order > order and record.issued_s > self._began_s:
                    raise UserError(
                        "another node announces under this node's key: a home was copied; give "
                        "one of them a new identity by removing its identity.key"
                    )

    def _answer(self, peer: str, request: Request) -> Answer | None:
        """What a peer is answered. Raises RemoteError when it lies."""
        table = self._neighbours.table
        table.touch(peer, trio.current_time())
        match request:
            case Hello():
                self._neighbours.met(peer, request)
                return None
            case Find():
                near = table.closest(request.place, CONTACTS_MAX + 1)
                closer = [contact for contact in near if contact.peer != peer][:CONTACTS_MAX]
                return Found(request.id, tuple(closer), self._held(request) if request.want else ())
            case Fetch():
                return Fetched(request.id, self._chunks.held(request))
            case Put():
                return Kept(request.id, tuple([self._take(peer, raw) for raw in request.records]))

    def _refuses(self, record: Record) -> bool:
        """Whether its signer is convicted; whoever wants to know that it is still about is told."""
        if not self._convicted(record.slot.peer):
            return False
        for tell in self.refused:
            tell(record)
        return True

    def _held(self, request: Find) -> tuple[bytes, ...]:
        """What we keep there, and some of what we know besides: who asks beyond the keepers of a
        place wants to hear of those whom they hide."""
        now, have = self._wall(), request.have
        room = ANSWER_RECORD_BYTES_MAX - HEARD_BYTES_MAX
        kept = list(self._shelf.at(request.place, now, have=have, bytes_max=room))
        order = {record.slot.peer: record.order for record in kept}
        heard = [
            record
            for records in self.beside
            for record in records(request.place)
            if record.order > order.get(record.slot.peer, (-1, -1))
        ]
        self._dice.shuffle(heard)  # each that is asked tells of others
        more = fitting(heard, now, have=have, bytes_max=HEARD_BYTES_MAX)
        return tuple([record.raw for record in (*kept, *more)])

    def _take(self, peer: str, raw: bytes) -> bool:
        """Keep a peer's own record; whether it is kept. Raises RemoteError at a forged one."""
        try:
            record = self._checker.check(raw, None, self._wall(), peer=peer)
            if self._refuses(record):
                return False
            if record.kind == Provider.KIND:
                self._chunks.keep(record)
            else:
                self._reader.admit(record)
                self._shelf.put(record, self._neighbours.place(peer))
        except (Stale, Refused):
            return False
        return True


@asynccontextmanager
async def open_directory(
    host: Host,
    key: IdentityKey,
    *,
    boot: int,
    serve: bool = True,
    bootstrap: Sequence[str] = (),
    wall: Callable[[], float] = time.time,
    dice: random.Random | None = None,
    shelf_bytes_max: int = SHELF_BYTES_MAX,
) -> AsyncIterator[KadDirectory]:
    """The directory of this host, until left; leaving withdraws nothing.

    boot: the number of this run (node/identity.py). serve: keep records for others and be told to
    others; False for a client that is soon gone. wall: unix seconds; dice: for jitter and salt.
    shelf_bytes_max: what is kept for others; half as much again for chunks.
    Raises TransportError when there is somebody to join and none of them answers.
    """
    dice = dice or random.SystemRandom()  # the salt must not be guessed
    try:
        async with trio.open_nursery() as nursery:
            neighbours = Neighbours(host, nursery, serve=serve, dice=dice)
            directory = KadDirectory(
                key, neighbours, boot=boot, wall=wall, dice=dice, shelf_bytes_max=shelf_bytes_max,
            )  # fmt: skip
            if serve:
                host.handle(PROTOCOL, directory.answers.serve)
            try:
                if bootstrap:
                    await directory.bootstrap(bootstrap)
                nursery.start_soon(neighbours.tend)
                nursery.start_soon(directory.tend)
                yield directory
            finally:
                directory.answers.close()
                neighbours.calls.close()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise only(group) from None
