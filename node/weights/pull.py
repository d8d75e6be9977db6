"""Brings pieces of weight files here: from near peers, then others, and from the root the rest.

    until all that is wanted is here:
        who has what?        the directory, then each one's table (ask.py)
        what is believed     from all who have it at once (chunks/fetch.py), those near first
        what is not,         from the root, a run of pieces that nobody has: each begins elsewhere,
        or nobody gave       so that those who start together have something to give each other
    a file that is here whole: its sha256; if that is wrong, what came from peers is read again
                               from the root, and whoever vouched for what is false is found

Each piece is checked before it is on disk. A root that does not answer is tried again while peers
give something. Whoever lies is remembered with the proof (poison.py) and asked for nothing more.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import trio

from ...crypto.digest import DIGEST_BYTES
from ...errors import Refused, RemoteError, TransportError, UserError
from ...swarm.chunk import CHUNK_BYTES, Forged
from ...swarm.weights import Beliefs, Lie, piece_bytes, samples_of
from ..chunks.fetch import Fetcher
from ..chunks.fetch import Host as Roads
from ..log import get_logger
from ..pieces import seconds_for
from .ask import ask_table
from .library import Library
from .parts import Into, PieceFile
from .poison import Poisoners
from .root import Root

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...dht.record import Provider

WINDOW: Final = 512  # pieces that are thought about at a time
ROOT_RUN: Final = 8  # pieces; guess: a second of 64 Mbit/s, after which others may have more
ASK_EVERY_S: Final = 2.0  # guess: who fetches beside us has something new by then
FIRST_S: Final = 1.5  # guess: for the first who joins a swarm to be told who has what
FIRST_EVERY_S: Final = 0.2
NOBODY_S: Final = 60.0  # after a file that nobody had none is waited for
FIND_EVERY_S: Final = 10.0  # the directory, which is slower to ask and to change
TABLES_S: Final = 3.0  # guess: a dial, and an answer; beside what its bytes take
SILENT_S: Final = 30.0  # guess: who did not answer is not waited for again so soon
PEERS_MAX: Final = 16  # whose tables are read
WHOLE_SHARE: Final = 0.9  # of a file wanted: then all of it, for its sha256 proves it
ROUND_S: Final = 30.0  # guess: beside what the bytes take; then the root helps
PAUSE_S: Final = 1.0  # before a root that did not answer is tried again
SILENT_MAX: Final = 5  # rounds without a piece, of peers or the root

log = get_logger()


class Host(Roads, Protocol):
    """What it needs of node/net/host.py."""

    def learn(self, peer: str, addresses: Sequence[str]) -> None: ...
    def blame(self, peer: str, error: RemoteError) -> None: ...


class Finds(Protocol):
    """What it needs of a directory."""

    async def providers(self, chunks: Sequence[bytes]) -> Mapping[bytes, Sequence[Provider]]: ...


@dataclass(frozen=True, slots=True)
class Ways:
    """How peers stand to us. near: on our own network. network: where a peer is seen; empty where
    that counts as none. connected: whom we can ask at once; speaks: which of them know how."""

    me: str
    near: Callable[[str], bool] = lambda peer: False
    network: Callable[[str], str] = lambda peer: ""
    pinned: Collection[str] = ()
    connected: Callable[[], Sequence[str]] = lambda: ()
    speaks: Callable[[str], bool] = lambda peer: True


@dataclass(slots=True)
class Counts:
    """Bytes that came, since the start. false: of those from peers, which were thrown away."""

    peers: int = 0
    root: int = 0
    false: int = 0


@dataclass(slots=True)
class _State:
    """Of one file, between fetches."""

    beliefs: Beliefs
    lock: trio.Lock = field(default_factory=trio.Lock)
    providers: list[str] = field(default_factory=list)
    tables: dict[str, bytes] = field(default_factory=dict)  # as signed
    found_s: float = -math.inf
    asked_s: float = -math.inf
    from_s: dict[str, float] = field(default_factory=dict)  # who did not answer: when to ask again


class Puller:
    """For one node. `counts` tells what came from where."""

    def __init__(
        self,
        host: Host,
        finds: Finds,
        library: Library,
        poisoners: Poisoners,
        ways: Ways,
        dice: random.Random,
    ) -> None:
        self._host = host
        self._finds = finds
        self._library = library
        self._poisoners = poisoners
        self._ways = ways
        self._dice = dice
        self._states: dict[bytes, _State] = {}
        self._nobody_s = -math.inf  # when a file was waited for in vain
        self.counts = Counts()
        self.begun: Callable[[PieceFile], None] = lambda file: None

    async def ensure(self, file: PieceFile, wanted: Sequence[int], root: Root | None) -> None:
        """These pieces are on disk, checked, when it returns. root: None: peers alone. Raises
        UserError when they cannot be had, or the disk takes no more."""
        if not file.lacks(wanted):
            return
        together = set(wanted) | file.had().keys()
        whole = len(together) >= WHOLE_SHARE * file.count
        if whole:
            wanted = range(file.count)
        lacking = file.lacks(wanted)
        size = sum(piece_bytes(file.size, one) for one in lacking)
        await trio.to_thread.run_sync(self._library.make_room, size, (file.sha256,))
        state = self._states.get(file.sha256)
        if state is None:
            known = file.vouched()
            state = self._states[file.sha256] = _State(Beliefs(file.size, whole, known))
        async with state.lock:
            state.beliefs.whole = whole
            self.begun(file)
            await self._look(file, state)
            await self._all(file, state, wanted, root)
            if whole and not await trio.to_thread.run_sync(self._library.whole, file):
                await self._mend(file, state, root)

    async def _all(
        self, file: PieceFile, state: _State, wanted: Sequence[int], root: Root | None
    ) -> None:
        silent, trouble = 0, ""
        need = samples_of(len(wanted))
        while left := file.lacks(wanted):
            await self._ask(file, state)
            window = self._window(left)
            await self._from_peers(file, state, window, need)
            rest = file.lacks(window)
            if rest and root is not None:
                try:
                    await self._from_root(file, state, root, rest, need)
                except TransportError as error:
                    trouble = str(error)
                    await trio.sleep(PAUSE_S)
            elif rest:
                trouble = "the hub is not asked, and no peer that may be believed has it all"
                await trio.sleep(PAUSE_S)
            silent = 0 if len(file.lacks(wanted)) < len(left) else silent + 1
            if silent >= SILENT_MAX:
                raise UserError(
                    f"{file.about.name}: {len(left)} of {file.count} MiB cannot be had ({trouble});"
                    " what came is kept: try again, or join others who have it"
                )

    def _window(self, left: Sequence[int]) -> list[int]:
        """So many of them in a row, from anywhere."""
        at = self._dice.randrange(len(left)) if len(left) > WINDOW else 0
        return [left[(at + one) % len(left)] for one in range(min(WINDOW, len(left)))]

    # ---- peers

    async def _look(self, file: PieceFile, state: _State) -> None:
        """Before the root is asked for anything: who has just joined knows nobody yet."""
        if state.tables or trio.current_time() < self._nobody_s + NOBODY_S:
            return
        with trio.move_on_after(FIRST_S):
            while self._ways.connected() and not state.tables:
                state.found_s = state.asked_s = -math.inf
                await self._ask(file, state)
                await trio.sleep(0.0 if state.tables else FIRST_EVERY_S)
        if not state.tables:
            self._nobody_s = trio.current_time()

    async def _ask(self, file: PieceFile, state: _State) -> None:
        now = trio.current_time()
        if now - state.found_s >= FIND_EVERY_S:
            try:
                found = (await self._finds.providers([file.sha256])).get(file.sha256, ())
            except TransportError as error:
                log.debug("no providers", why=str(error))
                found = ()
            for one in found:
                self._host.learn(one.peer, one.addresses)
            state.providers = [one.peer for one in found if one.peer != self._ways.me]
            state.found_s = now
        if now - state.asked_s < ASK_EVERY_S + file.count * 0.002:  # tables grow with the file
            return
        state.asked_s = now
        here = [one for one in self._ways.connected() if self._ways.speaks(one)]
        asked = [
            one for one in dict.fromkeys([*state.providers, *here])
            if not self._poisoners.banned(one) and state.from_s.get(one, now) <= now
        ]  # fmt: skip
        asked.sort(key=lambda one: (not self._ways.near(one), self._dice.random()))
        asked = asked[:PEERS_MAX]
        state.from_s |= dict.fromkeys(asked, now + SILENT_S)  # until it has answered
        with trio.move_on_after(TABLES_S + seconds_for(file.count * DIGEST_BYTES)):
            async with trio.open_nursery() as nursery:
                for peer in asked:
                    nursery.start_soon(self._ask_one, file, state, peer)

    async def _ask_one(self, file: PieceFile, state: _State, peer: str) -> None:
        try:
            found = await ask_table(self._host, peer, file.sha256, file.size)
        except RemoteError as error:
            self._host.blame(peer, error)
            return
        except (TransportError, Refused):
            return
        state.from_s.pop(peer, None)
        if found is None:
            return
        table, state.tables[peer] = found
        lies = state.beliefs.heard(
            peer, table,
            network=self._ways.network(peer), pinned=peer in self._ways.pinned,
        )  # fmt: skip
        await self._convict(file, state, lies)

    async def _from_peers(
        self, file: PieceFile, state: _State, window: Sequence[int], need: int
    ) -> None:
        wanted, holders = state.beliefs.chunks(window, need)
        if not wanted:
            return
        places: dict[bytes, list[int]] = {}
        for index, chunk in wanted.items():
            places.setdefault(chunk.digest, []).append(index)
        near = {peer for peer in holders if self._ways.near(peer)}
        poisoned: list[tuple[str, RemoteError]] = []

        def caught(peer: str, error: RemoteError) -> None:
            state.beliefs.gone(peer)
            poisoned.append((peer, error))
            self.counts.false += error.chunk.size if isinstance(error, Forged) else 0

        fetcher = Fetcher(
            self._host, Into(file, places), caught, salt=self._ways.me.encode(), near=near
        )
        size = sum(chunk.size for chunk in wanted.values())
        with trio.move_on_after(ROUND_S + seconds_for(size)):
            try:
                await fetcher.fetch(wanted.values(), holders)
            except TransportError as error:
                log.debug("not all from peers", file=file.about.name, why=str(error))
        self.counts.peers += fetcher.received_bytes
        for peer, why in poisoned:
            if not await trio.to_thread.run_sync(self._poisoners.gave, peer, why):
                self._host.blame(peer, why)
        self._poisoners.tell()

    # ---- the root

    async def _from_root(
        self, file: PieceFile, state: _State, root: Root, rest: Sequence[int], need: int
    ) -> None:
        """Read a few pieces: what is disputed first, samples of a peer, what nobody has, any."""
        beliefs = state.beliefs
        chosen = beliefs.disputed(rest)[:ROOT_RUN]
        if not chosen and not beliefs.whole:
            chosen = beliefs.samples(rest, need, self._dice.randrange)
        if not chosen:
            free = [one for one in rest if not beliefs.said(one)] or list(rest)
            at = self._dice.randrange(len(free))
            chosen = free[at : at + ROOT_RUN]
        for start, stop in runs_of(chosen):
            for index, raw in await self._read(file, root, start, stop):
                await self._learn(file, state, index, raw)

    async def _read(
        self, file: PieceFile, root: Root, start: int, stop: int
    ) -> list[tuple[int, bytes]]:
        """Pieces start to stop, by the root. Raises TransportError."""
        at = start * CHUNK_BYTES
        end = min(file.size, stop * CHUNK_BYTES)
        raw = await trio.to_thread.run_sync(
            root.read, at, end,
            abandon_on_cancel=True,  # type: ignore[call-arg]  # libp2p's stubs of trio are old
        )  # fmt: skip
        if len(raw) != end - at:
            raise TransportError(f"{len(raw)} bytes where {end - at} were asked for")
        self.counts.root += len(raw)
        return [
            (index, raw[(index - start) * CHUNK_BYTES : (index - start + 1) * CHUNK_BYTES])
            for index in range(start, stop)
        ]

    async def _learn(self, file: PieceFile, state: _State, index: int, raw: bytes) -> None:
        def keep() -> bytes:
            return file.put(index, raw, vouched=True)

        name = await trio.to_thread.run_sync(keep)
        await self._convict(file, state, state.beliefs.learned(index, name))

    async def _convict(self, file: PieceFile, state: _State, lies: Sequence[Lie]) -> None:
        for lie in lies:
            table = state.tables.get(lie.peer, b"")
            await trio.to_thread.run_sync(self._poisoners.signed, lie, file.sha256, table)
        self._poisoners.tell()

    async def _mend(self, file: PieceFile, state: _State, root: Root | None) -> None:
        """All is here, and its sha256 is wrong: somebody lied. Read again what peers gave."""
        mine = file.vouched()
        doubted = [index for index in range(file.count) if index not in mine]
        log.warning("false weights came", file=file.about.name, pieces=len(doubted))
        if root is None:
            await trio.to_thread.run_sync(file.forget, doubted)
            raise UserError(f"{file.about.name}: what peers gave is false; have the hub asked too")
        for start, stop in runs_of(doubted):
            for at in range(start, stop, ROOT_RUN):
                try:
                    read = await self._read(file, root, at, min(stop, at + ROOT_RUN))
                except TransportError as error:
                    left = [one for one in doubted if one >= at]
                    await trio.to_thread.run_sync(file.forget, left)
                    raise UserError(f"{file.about.name}: {error}; try again") from error
                for index, raw in read:
                    await self._learn(file, state, index, raw)
        if not await trio.to_thread.run_sync(self._library.whole, file):
            raise UserError(
                f"{file.about.name}: the hub gives other bytes than its sha256 says; remove it"
                " with potluck models rm, and try another revision"
            )


def runs_of(indices: Sequence[int]) -> list[tuple[int, int]]:
    """The half-open runs that these numbers make."""
    found: list[tuple[int, int]] = []
    for one in sorted(set(indices)):
        if found and found[-1][1] == one:
            found[-1] = (found[-1][0], one + 1)
        else:
            found.append((one, one + 1))
    return found
