"""Fetches chunks from several peers at once, checks each as it comes, and keeps it on disk.

Whom to ask for what is the rules' (swarm/fetching.py). Here a task speaks with each peer, one
request after another, and every wait has a deadline. A peer that sends other bytes than were asked
for is blamed, and asked for nothing any more; one that breaks off is asked again, a few times. What
came is kept whatever happens then, so that whoever begins again fetches only the rest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Final, Protocol

import trio

from ...crypto.codec import decode_any, encode
from ...errors import Refused, RemoteError, TransportError, UserError
from ...swarm.chunk import ANSWERS, LETTER_BYTES_MAX, PROTOCOL, Chunk, Have, Later, Want
from ...swarm.fetching import Fetching
from ..letters import receive_letter, receive_up_to, send_letter
from ..net.stream import Stream
from ..pieces import seconds_for
from .deadline import within

PEERS_MAX: Final = 8  # guess: spoken to at a time; four home links' uplinks fill one downlink
LIARS_MAX: Final = 4096  # that are remembered
WAIT_S: Final = 10.0  # guess: for an answer to begin, beside what its bytes take

Blame = Callable[[str, RemoteError], None]  # host.blame, or less


class Host(Protocol):
    """What it needs of node/net/host.py."""

    def open_stream(self, peer: str, protocol: str) -> Awaitable[Stream]: ...


class Store(Protocol):
    """Where chunks come to: a ChunkStore, or a file that they are pieces of. All of it blocks."""

    @property
    def folder(self) -> Path: ...
    @property
    def bytes_max(self) -> int: ...
    def lacks(self, chunks: Iterable[Chunk]) -> list[Chunk]: ...
    def put(self, chunk: Chunk, raw: bytes) -> None: ...
    def used_bytes(self) -> int: ...


class Fetcher:
    """For one node: what all its fetches share."""

    def __init__(
        self, host: Host, store: Store, blame: Blame, *, salt: bytes, near: Collection[str] = ()
    ) -> None:
        """salt: the node's own, for its order among equals. near: who is asked first."""
        self._near = near
        self._host = host
        self._store = store
        self._blame = blame
        self._salt = salt
        self._liars: OrderedDict[str, None] = OrderedDict()  # asked for nothing any more
        self.received_bytes = 0  # of chunks, since the start, in vain or not

    async def fetch(self, wanted: Iterable[Chunk], holders: Mapping[str, Iterable[bytes]]) -> None:
        """All of these are in the store when it returns; those that are there are not asked for.

        holders: who has which, as far as is told. How long it may take in all is the caller's to
        say: each wait is bounded, but a peer may say again and again that others ask. Raises
        TransportError when something is with
        nobody who gives it, and then the rest is there; UserError when the disk takes no more.
        """
        lacking = await trio.to_thread.run_sync(self._store.lacks, list(wanted))
        await trio.to_thread.run_sync(self._check_room, lacking)
        fetching = Fetching(lacking, salt=self._salt, near=self._near)
        one = _Fetch(fetching, self._ask, self._caught)
        for peer, digests in holders.items():
            if peer not in self._liars:
                one.fetching.told(peer, digests)
        await one.run()
        if left := one.fetching.left:
            raise TransportError(
                f"{len(left)} of {len(lacking)} chunks are with nobody who gives them"
            )

    def _caught(self, peer: str, error: RemoteError) -> None:
        self._liars[peer] = None
        if len(self._liars) > LIARS_MAX:
            self._liars.popitem(last=False)
        self._blame(peer, error)

    def _check_room(self, lacking: list[Chunk]) -> None:
        size, room = sum(one.size for one in lacking), self._store.bytes_max
        used = self._store.used_bytes() if lacking else 0
        if used + size > room:
            raise UserError(
                f"{size} bytes are to be fetched into {self._store.folder}, where {used} of {room}"
                " are taken: allow more, or remove what is not needed"
            )

    async def _ask(self, peer: str, batch: tuple[Chunk, ...], fetching: Fetching) -> None:
        """One request. Raises Refused, RemoteError, TransportError; UserError for our disk."""
        stream: Stream | None = None
        finished = False
        try:
            with within(peer, WAIT_S):
                stream = await self._host.open_stream(peer, PROTOCOL)
                want = Want(tuple(chunk.digest for chunk in batch))
                await send_letter(stream, encode(want))
            for chunk in batch:
                await self._hear(stream, chunk, fetching)
            finished = True
        finally:
            if stream is not None:
                with trio.CancelScope(shield=True):
                    await (stream.close() if finished else stream.reset())

    async def _hear(self, stream: Stream, chunk: Chunk, fetching: Fetching) -> None:
        peer, raw, letter = stream.peer, b"", None
        with within(peer, WAIT_S + seconds_for(chunk.size)):
            letter = await receive_letter(stream, LETTER_BYTES_MAX)
            answer = None if letter is None else decode_any(letter, ANSWERS)
            if isinstance(answer, Have):
                if answer.size != chunk.size:
                    raise RemoteError(f"a chunk of {answer.size} bytes, where {chunk.size} are due")
                raw = await receive_up_to(stream, chunk.size)
        if answer is None or (isinstance(answer, Have) and len(raw) < chunk.size):
            raise TransportError(f"{peer} has left")
        if isinstance(answer, Later):
            raise Refused("others ask", retry_after_s=answer.retry_after_s)
        now = trio.current_time()
        if not isinstance(answer, Have):
            fetching.lacks(peer, chunk.digest, now)
            return
        self.received_bytes += len(raw)
        await trio.to_thread.run_sync(self._store.put, chunk, raw)
        fetching.came(peer, chunk.digest, now)


Ask = Callable[[str, tuple[Chunk, ...], Fetching], Awaitable[None]]


class _Fetch:
    """One fetch: a task for each peer, until all is there or nobody has more."""

    def __init__(self, fetching: Fetching, ask: Ask, blame: Blame) -> None:
        self.fetching = fetching
        self._ask = ask
        self._blame = blame
        self._changed = trio.Event()
        self._failure: UserError | None = None

    async def run(self) -> None:
        """Raises UserError."""
        limit = trio.CapacityLimiter(PEERS_MAX)
        async with trio.open_nursery() as nursery:
            for peer in self.fetching.peers:
                nursery.start_soon(self._speak, peer, limit, nursery.cancel_scope)
        if self._failure is not None:
            raise self._failure

    async def _speak(self, peer: str, limit: trio.CapacityLimiter, all_: trio.CancelScope) -> None:
        async with limit:
            while self.fetching.open(peer):
                now = trio.current_time()
                batch = self.fetching.take(peer, now)
                if not batch:
                    with trio.move_on_at(self.fetching.wake_s(peer, now)):
                        await self._changed.wait()
                    continue
                try:
                    await self._ask(peer, batch, self.fetching)
                except Refused as refusal:
                    self.fetching.lost(peer, trio.current_time(), refusal.retry_after_s)
                except TransportError:
                    self.fetching.lost(peer, trio.current_time())
                except RemoteError as error:
                    self.fetching.lied(peer)
                    self._blame(peer, error)
                except UserError as error:
                    self._failure = error  # the nursery would wrap it in a group
                if self._failure is not None or not self.fetching.left:
                    all_.cancel()  # whoever is slow brings nothing that is wanted
                self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
