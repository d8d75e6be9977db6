"""The leader's end of a chain: what a session pushes on to the next hop, and who may come for it.

    its output ─▶ Leading ─ queue ─▶ stream that the follower opened

The client's ticket says who may come, once (swarm/ticket.py). Whoever comes before it waits some
seconds for it; what is to be pushed waits some seconds for whoever is to come. Neither queue grows
beyond QUEUE_MAX steps, or the session's own length.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import trio

from ..crypto.keys import IdentityKey
from ..errors import RemoteError, TransportError
from ..swarm.ticket import name_of
from ..swarm.wire import Fault, Join, Joined, Push
from .frames import FrameStream
from .net.host import Host
from .net.stream import Stream
from .opening import OPEN_S

QUEUE_MAX: Final = 64  # steps; an honest client has 48 on the way at most (swarm/chain.py)
EARLY_S: Final = 5.0  # guess: by which a follower may be here before our client's word
EARLY_MAX: Final = 64  # guess: of those that wait so; more are refused, and come with a consent
EARLY_EACH: Final = 8  # of one peer
JOIN_S: Final = 10.0  # guess: a dial over a bad road, and its answer
PUSH_S: Final = 30.0  # to take one push: as long as a client has to take an answer
TICKETS_MAX: Final = 64  # guess: of one session; each change of a hop takes one


class Chains:
    """One node's. wall: unix seconds."""

    def __init__(self, host: Host, key: IdentityKey, wall: Callable[[], float] = time.time) -> None:
        self.host = host
        self.key = key
        self.wall = wall
        self._awaited: dict[bytes, Leading] = {}  # by the ticket's name: one for each session
        self._early: dict[bytes, tuple[str, trio.Event]] = {}  # whose session has not told us yet

    async def serve(self, stream: Stream) -> None:
        """A follower comes. Raises RemoteError for one that is not awaited under its ticket."""
        frames = FrameStream(stream, payload_bytes_max=0)
        with trio.move_on_after(OPEN_S) as deadline:
            received = await frames.receive()
        if deadline.cancelled_caught:
            raise RemoteError(f"no word in {OPEN_S:.0f} s after opening a chain")
        if received is None:
            return
        asked = received[0]
        if not isinstance(asked, Join):
            raise RemoteError(f"{type(asked).__name__} before Join")
        leading = await self._find(name_of(asked.ticket), frames.peer)
        if leading is not None and leading.follower != frames.peer:
            raise RemoteError(f"the ticket of {leading.follower}, shown by {frames.peer}")
        if leading is None:  # used, or its session is over
            with trio.move_on_after(1):
                await frames.send(Fault("nobody is awaited by this ticket"))
                await frames.close()
            return
        self.forget(leading)
        await leading.run(frames)

    async def _find(self, name: bytes, peer: str) -> Leading | None:
        """What is pushed under this ticket; its client's word may be behind the follower's."""
        each = sum(one == peer for one, _ in self._early.values())
        if name in self._awaited or name in self._early:
            return self._awaited.get(name)
        if len(self._early) >= EARLY_MAX or each >= EARLY_EACH:
            return None
        told = trio.Event()
        self._early[name] = peer, told
        try:
            with trio.move_on_after(EARLY_S):
                await told.wait()
        finally:
            del self._early[name]
        return self._awaited.get(name)

    def awaits(self, leading: Leading) -> None:
        self._awaited[leading.name] = leading
        if leading.name in self._early:
            self._early[leading.name][1].set()

    def forget(self, leading: Leading) -> None:
        self._awaited.pop(leading.name, None)


@dataclass(eq=False)
class Leading:
    """What one session pushes, and to whom. told: of why it is over. came: the follower has, or is
    not waited for any more."""

    name: bytes
    follower: str
    bytes_max: int
    told: Callable[[str], Awaitable[None]]
    came: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _queue: deque[tuple[Push, memoryview]] = field(default_factory=deque)
    _pending: trio.Event = field(default_factory=trio.Event)

    def push(self, push: Push, payload: memoryview) -> bool:
        """Whether it will be sent, if the follower comes and takes it."""
        if self.scope.cancel_called:
            return False
        held = sum(len(one) for _, one in self._queue)
        if len(self._queue) >= QUEUE_MAX or (self._queue and held + len(payload) > self.bytes_max):
            self.scope.cancel()
            return False
        self._queue.append((push, payload))
        self._pending.set()
        return True

    async def run(self, frames: FrameStream) -> None:
        """Push to this stream until it breaks, or the session needs it no more."""
        why = ""
        self.came.set()
        with self.scope:
            try:
                await frames.send(Joined())
                while True:
                    await self._send_queued(frames)
            except TransportError as error:
                why = str(error)
            except trio.TooSlowError:
                why = f"no push was taken in {PUSH_S:.0f} s"
        self.scope.cancel()
        await frames.reset()
        if why:
            with suppress(TransportError):  # its session's client has gone, too
                await self.told(why)

    async def expire(self, chains: Chains) -> None:
        """Give up a follower that has not come."""
        with trio.move_on_after(JOIN_S) as late:
            await self.came.wait()
        if not late.cancelled_caught:
            return
        chains.forget(self)
        self.scope.cancel()
        if self._queue:
            with suppress(TransportError):
                await self.told(f"the follower has not come in {JOIN_S:.0f} s")

    def end(self) -> None:
        """Nothing more is to be pushed."""
        self.came.set()
        self.scope.cancel()

    async def _send_queued(self, frames: FrameStream) -> None:
        while self._queue:
            with trio.fail_after(PUSH_S):
                await frames.send(*self._queue[0])
            self._queue.popleft()
        self._pending = trio.Event()
        await self._pending.wait()
