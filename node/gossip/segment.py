"""Keeps watch over the peers that serve the same model: who of them is there no more.

The rules stand in swarm/membership.py; here is what waits. The directory says who there is, with a
delay of up to 90 s; probes and the ends of connections say within seconds who is gone. Whoever we
miss, by our own finding, is left out of what `find` tells until a fresher record of it is read. But
who hears nobody is cut off itself, and leaves out nobody: where no member of the segment is left to
be heard, as where there are but two, a client or any other peer on another machine will do.

    directory.find ── without the missed ──▶ elections, places, routes
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import trio

from ...crypto.envelope import sign
from ...crypto.keys import IdentityKey
from ...dht.allowance import Allowances
from ...dht.record import SKEW_MAX_S, Announcement
from ...errors import RemoteError, TransportError
from ...swarm.blocks import BlockRange
from ...swarm.machine import Fired, SetTimer, StopTimer
from ...swarm.membership import PROBE_S, TIMEOUT_S, Membership
from ...swarm.membership_events import Effect, Event, Known, Received, Send, Tell, Unreached
from ...swarm.rumour import DOMAIN, LETTER_BYTES_MAX, Message, pack, protocol_of, unpack
from ..log import get_logger
from ..net.host import TICK_S, Host
from ..net.peers import Connection
from ..net.stream import Stream
from ..placing import Finds
from ..timers import Timers

log = get_logger()

READ_EVERY_S = 15.0  # guess: of the directory, for who there is; half of a record's refresh
CELL_MAX = 64  # peers; guess: a death among them is noticed within a minute even if no road tells
LETTERS_S = 4.0  # of one peer, on the mean: a probe and its errands are one or two in PROBE_S
LETTERS_SAVED = 40.0
SENDING_MAX = 64  # letters on their way; SWIM holds with lost ones
CLAIMS_KEPT = 256


@dataclass(frozen=True, slots=True)
class _Missed:
    """Since when a peer is: by unix seconds, and by trio's clock."""

    wall_s: float
    at_s: float


class Segment:
    """One for a node. `find` is the directory's, without those that we miss."""

    def __init__(
        self,
        host: Host,
        directory: Finds,
        key: IdentityKey,
        model: str,
        boot: int,
        dice: Random,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._directory = directory
        self._model = model
        self._protocol = protocol_of(model)
        self._dice = dice
        self._wall = wall
        self._machine = Membership(key.peer_id, dice.shuffle, boot)
        self._sign = lru_cache(CLAIMS_KEPT)(lambda claim: sign(key, DOMAIN, claim))
        self._timers = Timers(lambda key: self._dispatch(Fired(key)))
        self._outgoing, self._letters = trio.open_memory_channel[tuple[str, Message]](SENDING_MAX)
        self._missed: dict[str, _Missed] = {}
        self._allowances = Allowances(LETTERS_S, LETTERS_SAVED)

    @property
    def missed(self) -> frozenset[str]:
        """Who is gone, by our own finding."""
        return frozenset(self._missed)

    def counts(self) -> dict[str, int]:
        """How many are watched and there, and how many are missed."""
        return {"members": len(self._machine.alive()), "missed": len(self._missed)}

    async def find(self, model: str) -> tuple[Announcement, ...]:
        """The directory's answer, without the records of whom we miss that are older than that."""
        found = await self._directory.find(model)
        if model != self._model:
            return found
        return tuple(told for told in found if not self._is_missed(told))

    def _is_missed(self, told: Announcement) -> bool:
        since = self._missed.get(told.peer)
        if since is None or told.issued_s > since.wall_s + SKEW_MAX_S:
            return False
        return self._machine.hears() or self._has_heard(since.at_s)

    def _has_heard(self, since_s: float) -> bool:
        """Whether anybody on another machine, and not missed, has given a sign of life since."""
        now = trio.current_time()
        return any(
            now - (one.mux.silent_ticks + 1) * TICK_S >= since_s
            for one in self._host.connections()
            if one.mux.peer not in self._missed and one.remote[0] != one.local_host
        )

    async def run(self, around: Callable[[], BlockRange | None]) -> None:
        """A service. around: the blocks that we serve now; the nearest to them are watched."""
        self._host.handle(self._protocol, self._receive)
        self._perform(self._machine.start(trio.current_time() + self._dice.uniform(0, PROBE_S)))
        async with trio.open_nursery() as nursery:

            def came(connection: Connection) -> None:
                nursery.start_soon(self._until_over, connection)

            self._host.came.append(came)
            try:
                for connection in self._host.connections():
                    came(connection)
                nursery.start_soon(self._timers.run)
                nursery.start_soon(self._keep_known, around)
                async for peer, message in self._letters:  # left open: handlers may outlive us
                    nursery.start_soon(self._send, peer, message)
            finally:
                self._host.came.remove(came)
                self._host.unhandle(self._protocol)

    # ---- what happens

    def _dispatch(self, event: Event) -> None:
        self._perform(self._machine.handle(event, trio.current_time()))
        missed = self._machine.missed()
        for peer in [peer for peer in self._missed if peer not in missed]:
            del self._missed[peer]
            log.info("found again", missed=peer)
        for peer in missed - self._missed.keys():
            self._missed[peer] = _Missed(self._wall(), trio.current_time())
            log.info("missed", missed=peer)

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, message):
                    with suppress(trio.WouldBlock):  # too many are on the way: as if it were lost
                        self._outgoing.send_nowait((peer, message))
                case SetTimer(key, at_s):
                    self._timers.set(key, at_s)
                case StopTimer(key):
                    self._timers.stop(key)
                case Tell(peer, state):
                    log.debug("member", member=peer, state=state)

    async def _keep_known(self, around: Callable[[], BlockRange | None]) -> None:
        while True:
            blocks = around()
            with suppress(TransportError):  # who we knew is who we know
                if blocks is not None:
                    self._know(await self._directory.find(self._model), blocks)
            await trio.sleep(READ_EVERY_S * self._dice.uniform(0.8, 1.2))

    def _know(self, found: Sequence[Announcement], blocks: BlockRange) -> None:
        members = [told for told in nearest(found, blocks) if self._may_speak(told.peer)]
        for told in members:
            self._host.learn(told.peer, told.addresses)
        peers = tuple(told.peer for told in members)
        self._dispatch(Known(peers, tuple(told.boot for told in members)))

    def _may_speak(self, peer: str) -> bool:
        """Whether it may be probed: not one that is barred, or of a version without this."""
        claims = self._host.claims(peer)
        speaks = claims is None or self._protocol in claims.protocols
        return peer != self._host.peer_id and speaks and self._host.welcomes(peer)

    # ---- the road

    async def _until_over(self, connection: Connection) -> None:
        await connection.over.wait()
        peer = connection.mux.peer
        if self._machine.state(peer) is not None and peer not in self._host.connected():
            self._dispatch(Unreached(peer))

    async def _send(self, peer: str, message: Message) -> None:
        raw = pack(message, self._model, self._sign)
        try:
            with trio.move_on_after(TIMEOUT_S):
                stream = await self._host.open_stream(peer, self._protocol)
                try:
                    await stream.send(raw)
                finally:
                    with trio.CancelScope(shield=True):
                        await stream.close()
        except TransportError:
            self._dispatch(Unreached(peer))

    async def _receive(self, stream: Stream) -> None:
        """The handler: one letter to a stream."""
        now = trio.current_time()  # to check a signature costs more than to repeat it
        if not self._allowances.of(stream.peer, now).has(now):
            await stream.reset()
            return
        raw = bytearray()
        with trio.move_on_after(TIMEOUT_S) as deadline:
            while data := await stream.receive():
                raw += data
                if len(raw) > LETTER_BYTES_MAX:
                    raise RemoteError(f"a letter above {LETTER_BYTES_MAX} bytes")
            await stream.close()
        if deadline.cancelled_caught:
            raise TransportError(f"a letter was not whole in {TIMEOUT_S:.0f} s")
        known = self._machine.state(stream.peer) is not None
        message = unpack(bytes(raw), self._model, heed_news=known)
        self._dispatch(Received(stream.peer, message))


def nearest(found: Sequence[Announcement], blocks: BlockRange) -> list[Announcement]:
    """Those that serve this model and are watched from these blocks: the nearest, up to CELL_MAX.

    Who joins or leaves is in no cell: the one does not answer yet, the other soon not any more.
    """

    def distance(told: Announcement) -> tuple[int, str]:
        return abs(told.start + told.stop - blocks.start - blocks.stop), told.peer

    return sorted((told for told in found if told.state == "online"), key=distance)[:CELL_MAX]
