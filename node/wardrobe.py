"""The adapters that a stage's sessions wear: brought once, lent while one does, else in the way.

    Wear ─▶ loaded? ─▶ on disk? ─▶ Lacking ─▶ Bring, Piece ... ─▶ checked ─▶ loaded ─▶ lent
               └──────────┴───────────────────────────────────────────────────────────▲

What is lent, or on its way in, takes room from the sessions' budget (admission.py), so that what is
said to be free is free; of that adapters have a share. What nobody wears any more stays loaded
while nobody else needs its room, the longest unused going first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import trio

from ..errors import Refused, RemoteError, TransportError
from ..swarm.adapter import MANIFEST_BYTES_MAX, Bundle, cut_parts, read_manifest
from ..swarm.admission import Admission
from ..swarm.blocks import BlockRange
from ..swarm.wire import PIECE_BYTES_MAX, Bring, Lacking, Train, Wear
from .adapters import Shelf
from .engine import Engine, Worn
from .frames import FrameStream
from .pieces import next_of, receive_pieces, seconds_for

SHARE: Final = 0.25  # guess: of the sessions' room, for adapters that are worn
WAIT_S: Final = 10.0  # guess: until the first bytes, beside what all of them take
RETRY_S: Final = 10.0  # guess: until a session has ended that wears another
HOLDER: Final = "adapters"  # who has their room, in the book of leases


Dress = Callable[[str, Mapping[int, bytes]], Worn]
Key = tuple[bytes, BlockRange, bool]  # its name, for which blocks, and whether to be trained


@dataclass(slots=True)
class _Kept:
    """One that is loaded. worn: by so many sessions. room: its entry in the book, while it is."""

    worn: Worn
    blocks: BlockRange
    sessions: int = 0
    room: object | None = None


@dataclass(frozen=True, slots=True)
class Lent:
    """To one session, until it is given back."""

    key: Key
    worn: Worn


class Wardrobe:
    """One for a stage."""

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        model: str,
        *,
        token_bytes: int,
        shelf: Shelf | None = None,
    ) -> None:
        """token_bytes: of one position in one block, the unit of the book. shelf: on disk."""
        self._engine = engine
        self._admission = admission
        self._model = bytes.fromhex(model)
        self._token_bytes = token_bytes
        self._budget_bytes = int(SHARE * admission.free_tokens * token_bytes)
        self._shelf = shelf
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()  # last used last
        self._taken: dict[object, int] = {}  # bytes, of each entry in the book
        self.brought_bytes = 0  # by clients, since the start
        self.behind: Callable[[], None] = lambda: None  # who else keeps things in idle room

    @property
    def idle_bytes(self) -> int:
        """Of what is loaded and nobody wears."""
        return sum(one.worn.bytes for one in self._kept.values() if not one.sessions)

    async def lend(
        self,
        frames: FrameStream,
        asked: Wear | Train,
        blocks: BlockRange,
        trained: Dress | None = None,
    ) -> Lent:
        """What a session over these blocks wears, from wherever it is to be had. Raises Refused
        when there is no room, RemoteError or TransportError when the client brings something else
        or nothing.

        trained: dresses one that changes with every step of an optimizer; it never comes to disk.
        """
        key = self._find(asked.adapter, blocks, trained is not None)
        if key is None:
            room = self._take(blocks, asked.size)
            shelf, dress = (self._shelf, self._engine.dress) if trained is None else (None, trained)
            try:
                bundle = await self._bundle(frames, asked, blocks, shelf)
                # beside the device's thread: no step waits while it is packed
                worn = await trio.to_thread.run_sync(dress, bundle.hex, bundle.parts)
            finally:
                self._give(room)
            key = self._find(asked.adapter, blocks, trained is not None)  # another was first
            if key is None:
                key = asked.adapter, blocks, trained is not None
                self._kept[key] = _Kept(worn, blocks)
        return self._lend(key)

    def give_back(self, lent: Lent) -> None:
        """Its session has ended."""
        kept = self._kept[lent.key]
        kept.sessions -= 1
        if self._shelf is not None:
            self._shelf.let_go(lent.key[0])
        if not kept.sessions:
            self._give(kept.room)
            kept.room = None
            self.make_room()

    def make_room(self) -> None:
        """What nobody wears goes, as far as others were promised its room."""
        free_bytes = self._admission.free_tokens * self._token_bytes
        over = self.idle_bytes - min(free_bytes, self._budget_bytes)
        for key, kept in list(self._kept.items()):
            if over > 0 and not kept.sessions:
                over -= kept.worn.bytes
                del self._kept[key]
        self.behind()

    def _find(self, name: bytes, blocks: BlockRange, trained: bool) -> Key | None:
        """One that is loaded, for these blocks at least."""
        keys = (key for key in self._kept if key[0] == name and key[2] == trained)
        return next((key for key in keys if key[1].covers(blocks)), None)

    def _lend(self, key: Key) -> Lent:
        kept = self._kept[key]
        if not kept.sessions:
            try:
                kept.room = self._take(kept.blocks, kept.worn.bytes)
            except Refused:
                self.make_room()
                raise
        kept.sessions += 1
        if self._shelf is not None:
            self._shelf.hold(key[0])
        self._kept.move_to_end(key)
        self.make_room()
        return Lent(key, kept.worn)

    def _take(self, blocks: BlockRange, size: int) -> object:
        """Room for so many bytes, of these blocks' sessions. Raises Refused."""
        if sum(self._taken.values()) + size > self._budget_bytes:
            raise Refused("there is no room for another adapter", retry_after_s=RETRY_S)
        room = object()
        tokens = max(1, -(-size // (self._token_bytes * len(blocks))))
        self._admission.admit(room, HOLDER, blocks, tokens, trio.current_time())
        self._taken[room] = size
        return room

    def _give(self, room: object) -> None:
        del self._taken[room]
        self._admission.release(room, trio.current_time())

    async def _bundle(
        self, frames: FrameStream, asked: Wear | Train, blocks: BlockRange, shelf: Shelf | None
    ) -> Bundle:
        if shelf is not None:
            found = await trio.to_thread.run_sync(shelf.load, asked.adapter, blocks)
            if found is not None and found.manifest.model == self._model:
                return found
        bundle = await self._receive(frames, asked, blocks)
        if shelf is not None:
            await trio.to_thread.run_sync(shelf.save_brought, bundle)
        return bundle

    async def _receive(
        self, frames: FrameStream, asked: Wear | Train, blocks: BlockRange
    ) -> Bundle:
        within_s = WAIT_S + seconds_for(asked.size)
        frames.allow(max(MANIFEST_BYTES_MAX, PIECE_BYTES_MAX))
        await frames.send(Lacking(within_s))
        with trio.move_on_after(WAIT_S) as deadline:  # who sends nothing holds no room for long
            manifest = read_manifest(await next_of(frames, Bring), asked.adapter)
            if manifest.model != self._model:
                raise RemoteError("an adapter for another model than is served here")
            if manifest.size(blocks) != asked.size:
                raise RemoteError(f"{manifest.size(blocks)} bytes of an adapter, not {asked.size}")
            raw = await receive_pieces(frames, asked.size, deadline)
        if deadline.cancelled_caught:
            raise TransportError(f"{frames.peer} brings no adapter, or too slowly")
        parts = await trio.to_thread.run_sync(cut_parts, manifest, blocks, memoryview(raw))
        self.brought_bytes += len(raw)
        return Bundle(asked.adapter, manifest, parts)
