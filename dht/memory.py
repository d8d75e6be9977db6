"""A directory in memory, for tests and simulations: many directories, one shelf.

Records are signed, kept and checked exactly as in the swarm; only the road is missing. Time is the
trio clock, so that records expire under a MockClock.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from ..crypto.keys import IdentityKey
from .directory import ModelOffer, offers
from .keyspace import MODELS, Slot, chunk_of, spans_of
from .known import Known
from .message import Contact
from .record import (
    CHUNK_REFRESH_S,
    REFRESH_S,
    Announcement,
    AnyFact,
    ModelList,
    ModelName,
    Provider,
    Record,
    Registry,
    check_record,
    newest,
    read,
    sign_fact,
)

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own


class MemoryShelf:
    """What all memory directories of one swarm share."""

    def __init__(self) -> None:
        self.records: dict[Slot, Record] = {}
        self.peers: set[str] = set()

    def put(self, record: Record) -> None:
        kept = self.records.get(record.slot, record)
        self.records[record.slot] = newest(kept, record)

    def at(self, place: bytes) -> list[Record]:
        return [record for slot, record in self.records.items() if slot.place == place]


class MemoryDirectory:
    """One peer's directory on a shared shelf; implements directory.Directory."""

    def __init__(self, key: IdentityKey, shelf: MemoryShelf, *, boot: int = 1) -> None:
        self._key = key
        self._shelf = shelf
        self._boot = boot
        self._seq = 0
        self._announced: dict[str, Announcement] = {}
        self._registry = Registry()
        shelf.peers.add(key.peer_id)

    async def announce(self, announcement: Announcement) -> int:
        await trio.lowlevel.checkpoint()
        self._announced[announcement.model] = announcement
        self._put(announcement)
        self._put(ModelList(tuple(self._names())))
        return len(self._shelf.peers) - 1

    async def withdraw(self, model: str = "") -> None:
        await trio.lowlevel.checkpoint()
        for told in list(self._announced.values()):
            if model in ("", told.model):
                del self._announced[told.model]
                self._put(replace(told, state="gone"))
        self._put(ModelList(tuple(self._names())))

    async def keep(
        self,
        make: Callable[[], Announcement],
        *,
        task_status: "TaskStatus[int]" = trio.TASK_STATUS_IGNORED,
    ) -> None:
        task_status.started(await self.announce(make()))
        while True:
            await trio.sleep(REFRESH_S)
            await self.announce(make())

    async def find(self, model: str) -> tuple[Announcement, ...]:
        await trio.lowlevel.checkpoint()
        found = [read(record, Announcement) for record in self._checked(spans_of(model))]
        serving = [told for told in found if told.state != "gone"]
        return tuple(sorted(serving, key=lambda told: told.peer))

    async def models(self) -> tuple[ModelOffer, ...]:
        await trio.lowlevel.checkpoint()
        return offers(read(record, ModelList) for record in self._checked(MODELS))

    async def provide(self, chunks: Sequence[bytes]) -> int:
        await trio.lowlevel.checkpoint()
        for chunk in chunks:
            self._put(Provider(chunk, ()))
        return len(set(chunks)) if len(self._shelf.peers) > 1 else 0

    async def keep_providing(self, chunks: Callable[[], Sequence[bytes]]) -> None:
        while True:
            await self.provide(chunks())
            await trio.sleep(CHUNK_REFRESH_S)

    async def providers(self, chunks: Sequence[bytes]) -> Mapping[bytes, tuple[Provider, ...]]:
        await trio.lowlevel.checkpoint()
        return {
            chunk: tuple(read(record, Provider) for record in self._checked(chunk_of(chunk)))
            for chunk in chunks
        }

    async def bootstrap(self, addresses: Sequence[str]) -> int:
        await trio.lowlevel.checkpoint()
        return len(self._shelf.peers) - 1

    async def wander(self) -> Sequence[Contact]:
        await trio.lowlevel.checkpoint()
        return tuple(Contact(peer, ()) for peer in self.peers())

    def size(self) -> float:
        return len(self._shelf.peers)

    def peers(self) -> tuple[str, ...]:
        return tuple(sorted(self._shelf.peers - {self._key.peer_id}))

    def answered(self) -> tuple[Known, ...]:
        return ()

    def _names(self) -> list[ModelName]:
        return [ModelName(a.model, a.name, a.blocks) for a in self._announced.values()]

    def _put(self, fact: AnyFact) -> None:
        self._seq += 1
        now = trio.current_time()
        self._shelf.put(sign_fact(self._key, fact, boot=self._boot, seq=self._seq, now=now))

    def _checked(self, place: bytes) -> list[Record]:
        now = trio.current_time()
        found = [record for record in self._shelf.at(place) if record.expires_s > now]
        checked = [check_record(record.raw, place, now) for record in found]
        for record in checked:
            self._registry.admit(record)
        return checked
