"""Who keeps our records: each is put at the peers closest to its place, and counted where it stays.

Kademlia's store (Maymounkov and Mazières, 2002), without a look-up each time: between two of them a
record goes to those who kept the last one, and to whoever has come closer since.
"""

import math
from typing import Final

import trio

from ..errors import RemoteError, TransportError
from .message import Contact, Kept, Put
from .neighbours import Neighbours
from .record import REFRESH_S, Record

KEEPERS_AGE_S: Final = 5 * REFRESH_S  # how long a place's keepers are put to without a look-up
KEEPERS_LOST: Final = 0.25  # of them gone: look up anew at once
PUT_S: Final = 2.0


class Keepers:
    """Those of each place where we put something."""

    def __init__(self, neighbours: Neighbours) -> None:
        self._neighbours = neighbours
        self._found: dict[bytes, tuple[float, list[Contact]]] = {}  # when looked up, whom

    def __len__(self) -> int:
        """Places of ours."""
        return len(self._found)

    async def put(self, record: Record) -> int:
        """Put at the closest peers; how many keep it."""
        place, now = record.slot.place, trio.current_time()
        looked_s, keepers = self._found.get(place, (-math.inf, []))
        kept: set[str] = set()
        if now - looked_s < KEEPERS_AGE_S:
            near = [*self._neighbours.table.closest(place), *keepers]
            kept = await self._put_at({contact.peer: contact for contact in near}, record)
            if len(kept) >= (1 - KEEPERS_LOST) * len(keepers):
                return len(kept)
        keepers = await self._neighbours.lookup(place)
        self._found[place] = (now, keepers)
        rest = {contact.peer: contact for contact in keepers if contact.peer not in kept}
        return len(kept | await self._put_at(rest, record))

    async def _put_at(self, contacts: dict[str, Contact], record: Record) -> set[str]:
        """The peers that keep the record now."""
        kept: set[str] = set()

        async def put(contact: Contact) -> None:
            question = Put(0, (record.raw,))
            try:
                answer = await self._neighbours.ask(contact, question, deadline_s=PUT_S)
            except (TransportError, RemoteError):
                return  # a keeper less, as the count tells
            if isinstance(answer, Kept) and answer.kept == (True,):
                kept.add(contact.peer)

        async with trio.open_nursery() as nursery:
            for contact in contacts.values():
                nursery.start_soon(put, contact)
        return kept
