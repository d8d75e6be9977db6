"""The state that all members of a run have alike: kept, claimed, given to others, fetched.

    after an exchange ─▶ snapshot ─▶ Checkpoints ─▶ claim on `/potluck/state/1`
                                          └────────▶ chunks on `/potluck/chunks/1`
    late, or back ─▶ claims of several ─▶ what enough of them say ─▶ chunks from all who have it

For exchanges that leave everybody with equal bits: guarded groups, and runs by scalars. In gossip
each peer has weights of its own, so a newcomer pulls several of them (gossip.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from ...crypto.keys import IdentityKey
from ...errors import RemoteError, UserError
from ...swarm.chunk import PROTOCOL as CHUNKS
from ...swarm.run.checkpoint import Shapes
from ...swarm.run.claims import PROTOCOL as STATES
from ...swarm.run.claims import holders, vouched
from ..chunks.fetch import Blame, Fetcher
from ..chunks.fetch import Host as Roads
from ..chunks.serve import ChunkServer
from ..compute.snapshot import Snapshot
from ..log import get_logger
from ..net.stream import Stream
from .states import StateServer, ask_states, take
from .store import Checkpoints

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Protocol

    Handler = Callable[[Stream], Awaitable[None]]

    class Host(Roads, Protocol):
        """What is needed of node/net/host.py's Host."""

        def handle(self, protocol: str, handler: Handler) -> None: ...
        def unhandle(self, protocol: str) -> None: ...


SHARED: Final = "shared"

log = get_logger()


class Shared:
    """Of one run, on one peer."""

    def __init__(
        self, host: Host, key: IdentityKey, folder: Path, run: bytes, blame: Blame
    ) -> None:
        """folder: of the run. Raises UserError."""
        self._host = host
        self._blame = blame
        self.kept = Checkpoints(folder / SHARED, run)
        self.fetcher = Fetcher(host, self.kept.chunks, blame, salt=key.peer_id.encode())
        self._states = StateServer(key, lambda asked: self.kept if asked == run else None)
        self._chunks = ChunkServer(self.kept.chunks)
        self._asked = trio.Event()

    def open(self) -> None:
        """From now on others are answered."""
        self._host.handle(STATES, self._told)
        self._host.handle(CHUNKS, self._chunks.serve)

    def close(self) -> None:
        self._host.unhandle(STATES)
        self._host.unhandle(CHUNKS)

    async def asked(self) -> None:
        """Until somebody asks again what we have."""
        await self._asked.wait()

    async def _told(self, stream: Stream) -> None:
        self._asked.set()
        self._asked = trio.Event()
        await self._states.serve(stream)

    async def save(self, snapshot: Snapshot) -> None:
        """A disk that takes no more ends no run: then others have it."""
        try:
            await trio.to_thread.run_sync(self.kept.save, snapshot)
        except UserError as error:
            log.warning("a shared state was not kept", why=str(error))

    async def latest(self) -> Snapshot | None:
        """The newest of our own."""
        return await trio.to_thread.run_sync(self.kept.latest)

    async def ask(self, peers: Iterable[str], votes: int, after: int, shapes: Shapes) -> (
        Snapshot | None
    ):  # fmt: skip
        """The newest state of an epoch behind `after` for which so many of these peers vouch; None
        where there is none yet. Raises TransportError, RemoteError; UserError for our disk."""
        answers = await ask_states(self._host, peers, self.kept.run, self._blame)
        claim = vouched(answers, votes)
        if claim is None or claim.epoch <= after:
            return None
        having = holders(answers, claim)
        mark = await take(self.fetcher, self.kept, claim, having, shapes)
        found = await trio.to_thread.run_sync(self.kept.load, mark.manifest)
        if found is None:
            raise RemoteError("a state that cannot be read")
        return found
