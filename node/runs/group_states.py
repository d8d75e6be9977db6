"""The state of a group: given to whoever fell behind, or joins late; fetched from all who have it.

    ask ─▶ claims about this digest ─▶ most alike first ─▶ manifest ─▶ pieces, from all who say so
                                                                  └▶ is it the state? to its digest
    whoever speaks of no pieces ─▶ asked for the whole of it, one after another

A state is named by what it is made of, so whoever has it cuts it alike: claims about one digest
are equal but for liars (swarm/run/claims.py, in which a state's digest stands for the run's). A
piece is checked as it comes, and what a peer does not bring another is asked for; a manifest that
leads to something else is found out at the end, costs so many bytes once, and all who told it are
blamed. Cut is only what somebody asks for, and what is cut is lent by the state itself.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import trio

from ...crypto.keys import IdentityKey
from ...dht.allowance import Intake
from ...errors import RemoteError, TransportError, UserError
from ...swarm.chunk import CHUNK_BYTES_MAX, Chunk, digest_of
from ...swarm.chunk import PROTOCOL as CHUNKS
from ...swarm.run.checkpoint import Manifest, Shapes, read_manifest, write_manifest
from ...swarm.run.claims import PROTOCOL as STATES
from ...swarm.run.claims import Claim, holders
from ...swarm.run.group import Place, in_order
from ...swarm.run.group_wire import Ask, Given, pack, unpack
from ..chunks.fetch import Blame, Fetcher
from ..chunks.memory import MemoryChunks
from ..chunks.serve import ChunkServer
from ..compute.average.nesterov import Nesterov, Vector, bytes_of, vector_of
from ..compute.snapshot import Snapshot, cut_up, put_together
from ..log import get_logger
from ..net.stream import Stream
from .group_road import CHUNK_BYTES, Roads, seconds_for
from .group_sums import checked
from .states import ASKED_MAX, StateServer, ask_states, fetch_state
from .store import Mark

if TYPE_CHECKING:
    Handler = Callable[[Stream], Awaitable[None]]

WHOLE: Final = ((0.1, 3.0), (0.5, 6.0))  # asked for, of each peer and of all: (a second, at once)
KEPT_MAX: Final = 4  # guess: states that are cut at a time; whoever reads an older one begins anew
SPENT: Final = 4  # guess: times the bytes, and the seconds, of one state; the rest goes to liars
TURNS_S: Final = 20.0  # for the manifest, and for taking over from whoever falls silent
PLACE_BYTES: Final = 2048  # how a state came about, filled up with zeros: all shapes are known
_LENGTH_BYTES: Final = 2

log = get_logger()


class Handles(Protocol):
    """What is needed of node/net/host.py's Host."""

    def handle(self, protocol: str, handler: Handler) -> None: ...
    def unhandle(self, protocol: str) -> None: ...


@dataclass(slots=True)
class _Cut:
    """One state, in pieces. until_s: given so long; for ever, while we stand there."""

    mark: Mark
    pieces: Mapping[bytes, memoryview]
    until_s: float | None = None

    def marks(self) -> list[Mark]:
        return [self.mark]


class GroupStates:
    """Of one member. counts: numbers of each fragment. blame: is told of whose bytes are none.
    grace_s: for how long others are waited for, once one has said what a state is made of."""

    def __init__(
        self, host: Handles, key: IdentityKey, counts: Sequence[int], blame: Blame, grace_s: float
    ) -> None:
        self._host = host
        self._me = key.peer_id
        self._counts = tuple(counts)
        self._size = 8 * sum(counts)
        self._blame = blame
        self._grace_s = grace_s
        self._now: tuple[Place, Nesterov] | None = None
        self._cuts: dict[bytes, _Cut] = {}  # by the state's digest, oldest first
        self._cutting = threading.Lock()  # one at a time, on threads alone
        self._server = StateServer(key, self._find)
        self._chunks = ChunkServer(self)
        self._intake = Intake(*WHOLE)
        self._received_bytes = 0
        self._spent_bytes = 0  # on states that were asked for, by either way

    @property
    def sent_bytes(self) -> int:
        """Of pieces, since the start."""
        return self._chunks.sent_bytes

    @property
    def received_bytes(self) -> int:
        """Of pieces, since the start, in vain or not."""
        return self._received_bytes

    # ---- giving

    def open(self) -> None:
        """From now on others are answered."""
        self._host.handle(STATES, self._server.serve)
        self._host.handle(CHUNKS, self._chunks.serve)

    def close(self) -> None:
        self._host.unhandle(STATES)
        self._host.unhandle(CHUNKS)

    def stand(self, place: Place, at: Nesterov) -> None:
        """Where we are now. What somebody began to read before is given for as long as that may
        take."""
        self._now = place, at
        now = trio.current_time()
        for state, cut in list(self._cuts.items()):
            if cut.until_s is None and state != place.state:
                cut.until_s = now + seconds_for(self._size)
            elif cut.until_s is not None and now >= cut.until_s:
                del self._cuts[state]

    async def whole(self, peer: str, ask: Ask) -> tuple[Given, bytes] | None:
        """All of it at once, for whoever speaks of no pieces; None where it is not ours."""
        if self._now is None or self._now[0].state != ask.state:
            return None
        if not self._intake.takes(peer, trio.current_time()):
            return None
        place, at = self._now
        data = await trio.to_thread.run_sync(at.pack)
        return Given(place.before, place.commits, place.members, len(data)), data

    def get(self, name: bytes) -> bytes | None:
        """A piece of what was cut: node/chunks/serve.py's Library."""
        for cut in list(self._cuts.values()):
            if (piece := cut.pieces.get(name)) is not None:
                return bytes(piece)
        return None

    def _find(self, state: bytes) -> _Cut | None:
        """On a thread: it hashes."""
        if state not in self._cuts and (self._now is None or self._now[0].state != state):
            return None  # nobody waits for this
        with self._cutting:
            found, now = self._cuts.get(state), self._now
            if found is not None or now is None or now[0].state != state:
                return found
            try:
                self._cuts[state] = found = _cut(*now)
            except UserError as error:  # too large for a manifest: it is given whole
                log.debug("a state that is not cut", why=str(error))
                return None
            while len(self._cuts) > KEPT_MAX:
                self._cuts.pop(next(iter(self._cuts)), None)
            return found

    # ---- fetching

    async def fetch(
        self, roads: Roads, state: bytes, having: Sequence[str], others: Sequence[str] = ()
    ) -> tuple[Nesterov, Place] | None:
        """From all of these at once, as far as they have it; None when nobody gives it. others: who
        may have come to it since. Of many some at a time, in an order of our own: who says that it
        has a state need not have it."""
        mine = state + self._me.encode()
        order = [*in_order(mine, having), *in_order(mine, {*others} - {*having, self._me})]
        most_bytes = self._spent_bytes + (SPENT - 1) * self._size
        with trio.move_on_after(SPENT * self._within_s):
            for at in range(0, len(order), ASKED_MAX):
                some = order[at : at + ASKED_MAX]
                told = [peer for peer in some if peer in having]
                found = await self._of(roads, state, some, told, most_bytes)
                if found is not None or self._spent_bytes > most_bytes:
                    return found
        return None

    async def _of(
        self, roads: Roads, state: bytes, some: Sequence[str], told: Sequence[str], most_bytes: int
    ) -> tuple[Nesterov, Place] | None:
        """told: of these, who says that it has it. most_bytes: at which no more is begun."""
        answers = await ask_states(roads, some, state, self._blame, grace_s=self._grace_s)
        votes = Counter(claims[0] for claims in answers.values() if claims)
        tries = [
            partial(self._in_pieces, roads, claim, holders(answers, claim))
            for claim, _ in votes.most_common()
        ]
        silent = [peer for peer in told if peer not in answers]
        for go in (*tries, *(partial(self._whole_of, roads, Ask(state), one) for one in silent)):
            found = await go()
            if found is not None or self._spent_bytes > most_bytes:
                return found
        return None

    async def _in_pieces(
        self, roads: Roads, claim: Claim, having: Sequence[str]
    ) -> tuple[Nesterov, Place] | None:
        """What these claim, as far as it comes in time."""
        store = MemoryChunks(self._size + 4 * PLACE_BYTES + CHUNK_BYTES_MAX)
        fetcher = Fetcher(roads, store, self._blame, salt=self._me.encode())

        def manifest_of(top: Chunk) -> Manifest | None:
            raw = store.get(top.digest)
            found = None if raw is None else read_manifest(raw, top, claim.run)
            if found is not None and found.chunk_bytes != CHUNK_BYTES:
                raise RemoteError("a state that is cut as nobody cuts it")
            return found

        try:
            with trio.move_on_after(self._within_s):
                manifest = await fetch_state(fetcher, manifest_of, claim, having, self._shapes)
                found = await trio.to_thread.run_sync(self._read, manifest, store)
                log.info("a state was fetched", commits=claim.epoch, of=len(having))
                return found
            log.debug("a state that comes too slowly", of=having)
        except TransportError as error:
            log.debug("no state", of=having, reason=str(error))
        except RemoteError as error:
            for peer in having:
                self._blame(peer, error)
        finally:
            self._received_bytes += fetcher.received_bytes
            self._spent_bytes += fetcher.received_bytes
        return None

    async def _whole_of(self, roads: Roads, ask: Ask, peer: str) -> tuple[Nesterov, Place] | None:
        try:
            given, data = await roads.ask(peer, ask, self._size)
            self._spent_bytes += len(data)
            place = Place(ask.state, given.before, given.commits, given.members)
            return await trio.to_thread.run_sync(self._unpack, data, place), place
        except TransportError as error:
            log.debug("no state", of=peer, reason=str(error))
        except RemoteError as error:
            self._blame(peer, error)
        return None

    @property
    def _within_s(self) -> float:
        """For one manifest, and all that it leads to."""
        return TURNS_S + seconds_for(self._size)

    @property
    def _shapes(self) -> Shapes:
        """Of what every state of this run is made of."""
        vectors = {
            _name(kind, at): ("f32", (count,))
            for kind in _KINDS
            for at, count in enumerate(self._counts)
        }
        return {**vectors, _PLACE: ("f32", (PLACE_BYTES,))}

    def _read(self, manifest: Manifest, store: MemoryChunks) -> tuple[Nesterov, Place]:
        """Blocks. Raises RemoteError for another state than the one by whose digest it goes."""
        raws = ((one, [store.get(name) or b"" for name in one.chunks]) for one in manifest.entries)
        found = put_together(manifest, raws).tensors
        place = _place(found[_PLACE], manifest)
        anchors, momenta = (
            tuple(found[_name(kind, at)] for at in range(len(self._counts))) for kind in _KINDS
        )
        return checked(Nesterov.of(anchors, momenta), place), place

    def _unpack(self, raw: bytes, place: Place) -> Nesterov:
        """Blocks. Raises RemoteError."""
        return checked(Nesterov.unpack(raw, self._counts), place)


_KINDS: Final = ("anchor", "momentum")
_PLACE: Final = "place"


def _cut(place: Place, at: Nesterov) -> _Cut:
    """Blocks. Raises UserError for one that is too large."""
    tensors: dict[str, Vector] = {_PLACE: _packed(place)}
    for kind, vectors in zip(_KINDS, (at.anchors, at.momenta), strict=True):
        tensors |= {_name(kind, number): one for number, one in enumerate(vectors)}
    manifest, pieces = cut_up(Snapshot(place.state, place.commits, 0, tensors), CHUNK_BYTES)
    raw = write_manifest(manifest)
    top = Chunk(digest_of(raw), len(raw))
    found = {chunk.digest: piece for chunk, piece in pieces.items()}
    mark = Mark(place.commits, 0, top, top)
    return _Cut(mark, {**found, top.digest: memoryview(raw)})


def _name(kind: str, fragment: int) -> str:
    return f"{kind}/{fragment:05}"


def _packed(place: Place) -> Vector:
    """[PLACE_BYTES]: a number for each byte."""
    raw = pack(Given(place.before, place.commits, place.members, 0))
    body = len(raw).to_bytes(_LENGTH_BYTES) + raw
    return vector_of(body.ljust(PLACE_BYTES, b"\0"))


def _place(packed: Vector, manifest: Manifest) -> Place:
    """What `_packed` made of it. Raises RemoteError."""
    raw = bytes_of(packed)
    end = _LENGTH_BYTES + int.from_bytes(raw[:_LENGTH_BYTES])
    given = unpack(raw[_LENGTH_BYTES:end])
    if not isinstance(given, Given):
        raise RemoteError("a state that says nothing of how it came about")
    return Place(manifest.run, given.before, manifest.epoch, given.members)
