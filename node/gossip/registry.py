"""Keeps every peer's newest record beside those of all others, by comparing with random peers.

The rules stand in swarm/replica.py; here is what waits. The directory keeps a record at the twenty
peers around its place, and whoever holds those twenty can hide it; the registry is with everybody,
and spreads from one to another along contacts that nobody chose (node/gossip/sampling.py).

    our own records ─┐                     ┌─▶ at(place): one keeper more for the directory's reader
    Give of others ──┴─▶ Replica ──────────┴─▶ proved: two records of one signer that contradict

Refreshes of records that are known spread at leisure, a talk each ROUND_S; only what nobody here
had heard of, as when a swarm that was cut in two is whole again, makes us hurry. So a swarm that is
too large for that rate lags, and floods nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Final, TypeVar

import trio

from ...dht.allowance import Intake
from ...dht.network import Prefixes, place_of
from ...dht.reading import Checker
from ...dht.record import Announcement, ModelList, Record, Stale, read
from ...errors import RemoteError, TransportError
from ...swarm.replica import (
    HURRY_S,
    LETTER_BYTES_MAX,
    PROTOCOL,
    ROUND_S,
    Give,
    Listing,
    Replica,
    Summary,
    Want,
)
from ...swarm.testimony import Contradiction
from ..log import get_logger
from ..net.host import Host
from ..net.stream import Stream
from .talks import TALK_S, Talk, open_talk

log = get_logger()

T = TypeVar("T")

KINDS: Final = (Summary, Listing, Give, Want)
OF_EACH: Final = (1.0, 20.0)  # talks a second, and at once: an honest one hurries no more
OF_ALL: Final = (10.0, 40.0)  # one is expected each ROUND_S; who is turned away is asked by us
CHECKED_AT_ONCE: Final = 16  # records, 2 ms; then others have their turn
JITTER: Final = 0.2


class Registrar:
    """One for a node. contacts: so many random peers (Sampler.contacts); shunned: not believed."""

    def __init__(
        self,
        host: Host,
        contacts: Callable[[int], Sequence[str]],
        dice: Random,
        *,
        shunned: Callable[[str], bool] = lambda peer: False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.proved: list[Callable[[Contradiction], None]] = []  # told of each proof of a lie
        self._host = host
        self._contacts = contacts
        self._dice = dice
        self._shunned = shunned
        self._wall = wall
        self._replica = Replica()
        self._checker = Checker()
        self._intake = Intake(OF_EACH, OF_ALL)
        self._heard_first = trio.Event()  # set, and replaced, when a peer was heard of

    def put(self, record: Record) -> None:
        """Take in a record of our own."""
        with suppress(Stale):  # it has expired already: the clock jumped
            self._merge(record)

    def check(self, raw: bytes) -> Record:
        """A record that was passed on. Raises RemoteError; Stale when only its time is wrong."""
        return self._checker.check(raw, None, self._wall())

    def hold(self, record: Record) -> Record | None:
        """Take in a checked record; what is held of its slot then."""
        with suppress(RemoteError):  # older than that, or too many of its signer
            self._merge(record)
        return self._replica.of(record.slot)

    def at(self, place: bytes) -> list[Record]:
        """The records that are held under this place."""
        return self._replica.at(place, self._wall())

    def digest(self) -> bytes:
        """Equal with whoever holds the same records."""
        return self._replica.digest(self._wall())

    def shun(self, peer: str) -> None:
        """Forget all that it said: it was banned."""
        self._replica.drop(peer)

    def counts(self) -> dict[str, int]:
        return {"registered": len(self._replica)}

    async def run(self) -> None:
        """A service."""
        self._host.handle(PROTOCOL, self._receive)
        try:
            while True:
                with trio.move_on_after(ROUND_S * self._dice.uniform(1 - JITTER, 1 + JITTER)):
                    await self._heard_first.wait()
                    await trio.sleep(HURRY_S)
                for peer in self._contacts(1):
                    await self._compare(peer)
        finally:
            self._host.unhandle(PROTOCOL)

    # ---- the road

    async def _compare(self, peer: str) -> None:
        """Ask a peer what it holds otherwise, and exchange that."""
        try:
            async with open_talk(self._host, peer, PROTOCOL, KINDS, LETTER_BYTES_MAX) as talk:
                await talk.send(self._replica.summary(self._wall()))
                listing = await talk.receive()
                if listing is None:
                    return  # it holds the same
                give, want = self._replica.compare(_of(Listing, listing), self._wall())
                await talk.send(give, want)
                back = await talk.receive()
                if back is not None:
                    await self._take(_of(Give, back))
        except TransportError as error:
            log.debug("not compared", peer=peer, reason=str(error))
        except RemoteError as error:
            self._host.blame(peer, error)

    async def _receive(self, stream: Stream) -> None:
        """The handler: one comparison to a stream."""
        if not self._intake.takes(stream.peer, trio.current_time()):
            await stream.reset()
            return
        talk = Talk(stream, KINDS, LETTER_BYTES_MAX)
        with trio.move_on_after(TALK_S) as deadline:
            await self._answer(talk)
            await talk.close()
        if deadline.cancelled_caught:
            raise TransportError(f"not all was said in {TALK_S:.0f} s")

    async def _answer(self, talk: Talk) -> None:
        theirs = await talk.receive()
        if theirs is None:
            return
        listing = self._replica.listing(_of(Summary, theirs), self._wall())
        if listing is None:
            return
        await talk.send(listing)
        give, want = await talk.receive(), await talk.receive()
        if give is None or want is None:
            return
        await self._take(_of(Give, give))
        await talk.send(self._replica.give(_of(Want, want), self._wall()))

    async def _take(self, given: Give) -> None:
        """Raises RemoteError at the first record that is forged: honest peers give none."""
        for number, raw in enumerate(given.records, start=1):
            with suppress(Stale):  # it was long on its way
                record = self._checker.check(raw, None, self._wall())
                with suppress(RemoteError):  # its signer's fault, and not of who passes it on
                    self._merge(record)
            if number % CHECKED_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()

    def _merge(self, record: Record) -> None:
        """Raises RemoteError for one that is rolled back, nonsense, or too many of its signer."""
        if self._shunned(record.slot.peer):
            return
        where = _where(record, self._host.where(record.slot.peer))
        merged = self._replica.merge(record, self._wall(), where=where)
        if merged.proof is not None:
            for tell in self.proved:
                tell(merged.proof)
        if merged.first:
            self._heard_first.set()
            self._heard_first = trio.Event()


def _where(record: Record, seen: Prefixes) -> Prefixes:
    """The network that its signer is seen in, else says to be in. Raises RemoteError when it says
    nonsense."""
    if record.kind == ModelList.KIND:
        read(record, ModelList)
        return seen
    return place_of(read(record, Announcement).addresses, seen)


def _of(kind: type[T], message: object) -> T:
    if not isinstance(message, kind):
        raise RemoteError(f"{type(message).__name__} where {kind.__name__} belongs")
    return message
