"""Weights, for one process: what is here is given to peers, and what is not is brought.

    a thread that loads ── ready(file, bytes) ──▶ a task of ours ──▶ Puller ──▶ peers, the hub
              waits    ◀───────────── done, or why not ──┘
    peers ──▶ tables and pieces, of all that the library has, as fast as the owner allows
    the directory is told of each file of which anything is here

Everything that waits is in one nursery, and ends with it; whoever waits for bytes then is told.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio

from ...crypto.keys import IdentityKey
from ...dht.network import NOWHERE
from ...errors import PotluckError, TransportError, UserError
from ...swarm.chunk import CHUNK_BYTES
from ...swarm.chunk import PROTOCOL as CHUNKS
from ...swarm.weights import PROTOCOL as TABLES
from ...swarm.weights import covering
from ..chunks.serve import ChunkServer
from ..chunks.uplink import Uplink
from ..compute.digests import FileFact
from ..compute.hub import Span
from ..log import get_logger
from ..net.observed import is_public
from .ask import TableServer
from .library import Library
from .parts import About, PieceFile
from .poison import Poisoners
from .pull import Puller, Ways
from .root import HubRoot, Root

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ...dht.record import Provider
    from ..compute.checkpoint import Checkpoint
    from ..net.host import Host

    class Providing(Protocol):
        """What it needs of a directory."""

        async def provide(self, chunks: Sequence[bytes]) -> int: ...
        async def keep_providing(self, chunks: Callable[[], Sequence[bytes]]) -> None: ...
        async def providers(
            self, chunks: Sequence[bytes]
        ) -> Mapping[bytes, tuple[Provider, ...]]: ...


COUNT_EVERY_S: Final = 300.0  # guess: how many others have our files, for what goes first
TELL_S: Final = 10.0

RootOf = Callable[[str, str, str], Root]  # of a model, its commit, and one of its files

log = get_logger()


class Weights:
    """`ready` and `open` are compute/hub.py's Supply, for threads."""

    def __init__(
        self,
        library: Library,
        puller: Puller,
        directory: Providing,
        nursery: trio.Nursery,
        me: str,
        *,
        root: RootOf | None = HubRoot,
    ) -> None:
        """root: None: the hub is asked for nothing."""
        self.library = library
        self.puller = puller
        self._directory = directory
        self._nursery = nursery
        self._me = me
        self._root = root
        self.uplink = Uplink()
        self._token = trio.lowlevel.current_trio_token()
        self._told: set[bytes] = set()
        self._copies: dict[str, int] = {}
        library.copies = lambda about: self._copies.get(about.sha256, 0)
        puller.begun = self._begun

    # ---- for threads that load

    def open(self, model: str, commit: str, fact: FileFact) -> Path:
        """Raises UserError."""
        return self._file(model, commit, fact).open()

    def ready(self, model: str, commit: str, fact: FileFact, spans: Iterable[Span]) -> None:
        """Raises UserError."""
        file = self._file(model, commit, fact)
        wanted = [one for one in covering(spans) if one < file.count]
        if not file.lacks(wanted):
            return
        root = None if self._root is None else self._root(model, commit, fact.name)
        done: Future[None] = Future()
        try:
            self._token.run_sync_soon(self._start, file, wanted, root, done)
        except trio.RunFinishedError:
            raise UserError("the process ends") from None
        done.result()

    def _file(self, model: str, commit: str, fact: FileFact) -> PieceFile:
        known = self.library.file(bytes.fromhex(fact.sha256))
        if known is not None and self.library.uses(known.sha256):
            return known
        return self.library.have(About(fact.sha256, fact.size, f"{model}@{commit[:12]}", fact.name))

    def _start(
        self, file: PieceFile, wanted: list[int], root: Root | None, done: Future[None]
    ) -> None:
        try:
            self._nursery.start_soon(self._bring, file, wanted, root, done)
        except RuntimeError:  # it is closed
            done.set_exception(UserError("the process ends"))

    async def _bring(
        self, file: PieceFile, wanted: list[int], root: Root | None, done: Future[None]
    ) -> None:
        try:
            size = len(wanted) * CHUNK_BYTES
            if not await trio.to_thread.run_sync(self.library.fits, size):
                with trio.move_on_after(TELL_S):
                    await self.count_copies()  # by which it is decided what goes
            await self.puller.ensure(file, wanted, root)
        except PotluckError as error:
            done.set_exception(error)
        finally:
            if not done.done() and not file.lacks(wanted):
                done.set_result(None)
            elif not done.done():  # cancelled, or broken: who waits is not left behind
                done.set_exception(UserError("the process ends"))

    # ---- what is told

    def _begun(self, file: PieceFile) -> None:
        """Others may want it too, and begin now: let them find us."""
        if file.sha256 not in self._told:
            self._told.add(file.sha256)
            self._nursery.start_soon(self._tell, [file.sha256])

    async def _tell(self, files: list[bytes]) -> None:
        with trio.move_on_after(TELL_S):
            try:
                await self._directory.provide(files)
            except TransportError as error:
                log.debug("nobody was told of our weights", why=str(error))

    def _names(self) -> list[bytes]:
        return [one.sha256 for one in self.library.files() if one.had()]

    def give(self, files: Callable[[], Iterable[tuple[Path, About]]]) -> None:
        """As `share`, from now on and beside everything else."""
        self._nursery.start_soon(self.share, files)

    async def share(self, files: Callable[[], Iterable[tuple[Path, About]]]) -> None:
        """Give whole files that lie elsewhere: each is read once. files: blocks."""
        try:
            for path, about in await trio.to_thread.run_sync(lambda: list(files())):
                file = await trio.to_thread.run_sync(
                    self.library.adopt, path, about,
                    abandon_on_cancel=True,  # type: ignore[call-arg]  # as in pull.py
                )  # fmt: skip
                if file is not None:
                    self._begun(file)
        except (UserError, OSError) as error:
            log.info("not given to others", why=str(error))

    async def run(self) -> None:
        """A service: the directory knows what is here, and we how rare it is."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._directory.keep_providing, self._names)
            while True:
                await trio.sleep(COUNT_EVERY_S)
                await self.count_copies()

    async def count_copies(self) -> None:
        """How many others have each of our files, as far as the directory tells."""
        try:
            found = await self._directory.providers(self._names())
        except TransportError as error:
            log.debug("copies not counted", why=str(error))
            return
        for name, told in found.items():
            self._copies[name.hex()] = sum(one.peer != self._me for one in told)


def ways_of(host: Host, pinned: Collection[str] = ()) -> Ways:
    """How peers stand to this host, by the roads to them."""

    def near(peer: str) -> bool:
        connection = host.best(peer)
        direct = connection is not None and connection.relay is None
        return direct and connection is not None and not is_public(connection.remote[0])

    def network(peer: str) -> str:
        where = host.where(peer)
        return "" if where == NOWHERE else where[1]

    def speaks(peer: str) -> bool:
        connection = host.best(peer)
        return connection is not None and connection.speaks(TABLES)

    return Ways(host.peer_id, near, network, frozenset(pinned), host.connected, speaks)


def whole_files(checkpoint: Checkpoint, name: str) -> Iterator[tuple[Path, About]]:
    """The weight files of a model that lie here whole. Blocks. Raises UserError."""
    facts = {fact.name: fact for fact in checkpoint.facts()}
    for file in checkpoint.weight_files():
        path, fact = checkpoint.whole(file), facts[file]
        if path is not None:
            yield path, About(fact.sha256, fact.size, name, file)


@asynccontextmanager
async def open_weights(
    host: Host,
    directory: Providing,
    key: IdentityKey,
    home: Path,
    poisoners: Poisoners,
    *,
    pinned: Collection[str] = (),
    disk_bytes: int = 0,
    share: bool = True,
    root: RootOf | None = HubRoot,
) -> AsyncIterator[Weights]:
    """Until it is left. disk_bytes: of our own pieces, 0: what the disk has. share: whether
    anything is given. Raises UserError."""
    library = await trio.to_thread.run_sync(Library, home, disk_bytes)
    puller = Puller(
        host, directory, library, poisoners, ways_of(host, pinned), random.SystemRandom()
    )
    async with trio.open_nursery() as nursery:
        weights = Weights(library, puller, directory, nursery, key.peer_id, root=root)
        if share:
            host.handle(CHUNKS, ChunkServer(library, weights.uplink).serve)
            host.handle(TABLES, TableServer(key, library.table, weights.uplink).serve)
            nursery.start_soon(weights.run)
        try:
            yield weights
        finally:
            if share:
                host.unhandle(CHUNKS)
                host.unhandle(TABLES)
            nursery.cancel_scope.cancel()
