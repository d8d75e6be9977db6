"""Gossip with the peers that we are connected to; what is said, and to whom, is in swarm/gossip.py.

libp2p's gossipsub 1.2 on the wire, by a router of our own: of py-libp2p's one 0.9 MB request makes
the host answer 40 MB, what peers have it remember has no bound, and it names messages by their
sender only (DECISIONS.md). A stream each way, kept open while both ends live:

    a connection ─▶ who is it? ─▶ speaks gossip ─▶ our stream: all that is said to it
                                   its stream ─▶ what it says: each word has a bound
                        malformed, over a bound ─▶ that stream ends, and costs the sender its score
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from random import Random
from typing import Final

import trio

from ...dht.allowance import allowance
from ...errors import Refused, RemoteError, TransportError
from ...swarm.gossip import Gossip
from ...swarm.gossip_events import (
    Effect,
    Event,
    Heard,
    Joined,
    Left,
    Publish,
    Say,
    Shun,
    Subscribe,
)
from ...swarm.machine import Fired, SetTimer
from ...swarm.recent import Verdict
from ...swarm.topics import PROTOCOL, Message, Rpc, is_ours
from ..log import get_logger
from ..timers import Timers
from .gossip_wire import Reader, pack
from .host import Host
from .peers import Connection
from .stream import Stream

SAYING_MAX: Final = 128  # to one neighbour, not sent yet; more are lost, and told of again
SEND_S: Final = 10.0  # until a neighbour that does not read is none
AGAIN_S: Final = 30.0  # guess: until a neighbour that was lost, or refused us, is tried again
READ_S, READ_SAVED = 64 * 1024.0, 512 * 1024.0  # bytes of one neighbour: the rest has to wait
RPC_COST, PART_COST = 256, 64  # bytes: 20 us and 5 us, where a byte of a message costs 0.1 us

log = get_logger()


class _Line:
    """What is said to one neighbour, and the stream on which it speaks."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.heard: trio.CancelScope | None = None
        self.out: tuple[trio.MemorySendChannel[Rpc], trio.MemoryReceiveChannel[Rpc]] = (
            trio.open_memory_channel(SAYING_MAX)
        )


class Gossiper:
    """One for a node. judge: see swarm/gossip.py; it may publish, and must not wait."""

    def __init__(
        self,
        host: Host,
        judge: Callable[[Message], Verdict],
        dice: Random,
        trust: Callable[[str], float] = lambda peer: 0.5,
        admits: Callable[[str], bool] = is_ours,
    ) -> None:
        self._host = host
        self._machine = Gossip(judge, admits, dice.shuffle, trust)
        self._timers = Timers(self._fire)
        self._lines: dict[str, _Line] = {}
        self._events: deque[Event] = deque()
        self._busy = False
        self._wished = trio.Event()
        self._nursery: trio.Nursery | None = None

    # ---- for the node

    def subscribe(self, topics: Iterable[str]) -> None:
        """Hear these from now on, and no others."""
        self._dispatch(Subscribe(frozenset(topics)))

    def publish(self, topic: str, data: bytes) -> None:
        """To whoever is there; who comes within some seconds is told as well."""
        self._dispatch(Publish(Message(topic, data)))

    def score(self, peer: str) -> float:
        return self._machine.score(peer, trio.current_time())

    def neighbours(self) -> tuple[str, ...]:
        return self._machine.neighbours()

    def mesh(self, topic: str) -> tuple[str, ...]:
        return self._machine.mesh(topic)

    def subscribed(self, topic: str) -> tuple[str, ...]:
        """The neighbours that want it."""
        return self._machine.subscribed(topic)

    async def until_wanted(self, topic: str) -> None:
        """Until a neighbour wants it."""
        while not self.subscribed(topic):
            await self._wished.wait()

    def counts(self) -> dict[str, int]:
        return self._machine.counts()

    async def run(self) -> None:
        """A service."""
        self._perform(self._machine.start(trio.current_time()))
        async with trio.open_nursery() as self._nursery:
            self._host.came.append(self._came)
            self._host.handle(PROTOCOL, self._hear)
            try:
                for connection in self._host.connections():
                    self._came(connection)
                await self._timers.run()
            finally:
                self._host.came.remove(self._came)
                self._host.unhandle(PROTOCOL)
                self._nursery = None

    # ---- what happens

    def _fire(self, key: Hashable) -> None:
        self._dispatch(Fired(key))

    def _dispatch(self, event: Event) -> None:
        """One after the other: to judge one message may be to publish another."""
        self._events.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._events:
                event = self._events.popleft()
                self._perform(self._machine.handle(event, trio.current_time()))
        finally:
            self._busy = False

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Say(peer, rpc):
                    line = self._lines.get(peer)
                    if line is not None:
                        with suppress(trio.WouldBlock):
                            line.out[0].send_nowait(rpc)
                case Shun(peer):
                    line = self._lines.get(peer)
                    if line is not None and not line.scope.cancel_called:
                        log.info("gossip shunned", shunned=peer, score=round(self.score(peer)))
                        line.scope.cancel()
                case SetTimer(key, at_s):
                    self._timers.set(key, at_s)

    # ---- what we say

    def _came(self, connection: Connection) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._meet, connection)

    async def _meet(self, connection: Connection) -> None:
        """Have this peer for a neighbour, for as long as the connection lives."""
        await connection.asked.wait()
        peer = connection.mux.peer
        while not connection.over.is_set():
            wanted = connection.speaks(PROTOCOL) and peer not in self._lines
            if wanted and not self._refusal(connection):
                await self._talk(self._begin(connection), connection)
            with trio.move_on_after(AGAIN_S):
                await connection.over.wait()

    def _refusal(self, connection: Connection) -> str:
        """Why this peer is no neighbour; "" if it may be one."""
        if self._machine.shunned(connection.mux.peer, trio.current_time()):
            return "it was a nuisance"
        room = self._machine.has_room(connection.network, dialed=connection.mux.dialer)
        return "" if room else "there are enough"

    def _begin(self, connection: Connection) -> _Line:
        peer = connection.mux.peer
        line = self._lines[peer] = _Line()
        self._dispatch(Joined(peer, connection.network, connection.mux.dialer))
        return line

    async def _talk(self, line: _Line, connection: Connection) -> None:
        """Say what there is to say, until the stream or the connection ends, or it is shunned."""
        peer = connection.mux.peer
        stream: Stream | None = None
        try:
            with line.scope:
                stream = await self._host.open_stream(peer, PROTOCOL)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_end_with, stream, line.scope)
                    await self._write(stream, line)
        except* TransportError as group:
            log.debug("gossip ended", neighbour=peer, reason=str(group.exceptions[0]))
        finally:
            del self._lines[peer]
            self._dispatch(Left(peer))
            if line.heard is not None:
                line.heard.cancel()
            if stream is not None:
                with trio.CancelScope(shield=True):
                    await stream.reset()

    async def _write(self, stream: Stream, line: _Line) -> None:
        async for rpc in line.out[1]:
            frames = [pack(rpc)]
            with suppress(trio.WouldBlock):
                while True:  # all that waits goes in one flush
                    frames.append(pack(line.out[1].receive_nowait()))
            with trio.move_on_after(SEND_S) as deadline:
                await stream.send(*frames)
            if deadline.cancelled_caught:
                raise TransportError(f"gossip was not taken within {SEND_S:.0f} s")

    # ---- what we hear

    async def _hear(self, stream: Stream) -> None:
        """The handler: one stream of each neighbour, the last one that it opened."""
        line = self._lines.get(stream.peer) or self._answer(stream.peer)
        if line.heard is not None:
            line.heard.cancel()
        with trio.CancelScope() as line.heard:
            await self._read(stream)
        await stream.reset()  # nothing is ever said on it

    async def _read(self, stream: Stream) -> None:
        reader = Reader()
        saved = allowance(READ_S, READ_SAVED, trio.current_time())
        while piece := await stream.receive():
            await trio.sleep(saved.take(trio.current_time(), len(piece)))
            try:
                for rpc in reader.feed(piece):
                    self._dispatch(Heard(stream.peer, rpc))
                    if rpc.subscriptions:
                        self._wished.set()
                        self._wished = trio.Event()
                    await trio.sleep(saved.take(trio.current_time(), _cost(rpc)))
            except RemoteError:
                self._dispatch(Heard(stream.peer, None))
                raise

    def _answer(self, peer: str) -> _Line:
        """It speaks first. Raises Refused."""
        connection = self._host.best(peer)
        if connection is None or self._nursery is None:
            raise Refused("the connection is over", retry_after_s=AGAIN_S)
        if why := self._refusal(connection):
            raise Refused(why, retry_after_s=AGAIN_S)
        line = self._begin(connection)
        self._nursery.start_soon(self._talk, line, connection)
        return line


async def _end_with(stream: Stream, scope: trio.CancelScope) -> None:
    """The stream's connection may be another than the one that we began with."""
    await stream.broken()
    scope.cancel()


def _cost(rpc: Rpc) -> int:
    """In bytes: what it takes to deal with, besides those that it has."""
    parts = (rpc.subscriptions, rpc.messages, rpc.ihave, rpc.iwant, rpc.graft, rpc.prune)
    return RPC_COST + PART_COST * (sum(map(len, parts)) + len(rpc.idontwant))
