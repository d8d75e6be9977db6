"""Keeps connections to a few peers that nobody chose for us, and asks them too when we look around.

Who they are is said in swarm/lookouts.py; here they are dialled, and their connections kept. What
stands on them:

    the directory     one path of every look-up starts at them (dht/lookup.py), and each answers a
                      read with some of what its registry holds: records that the keepers of a
                      place, if liars hold them all, would hide
    gossip            goes to whoever is connected: they are
    the next start    they are written down first among those to join by (node/peerstore.py)

So who serves a model, who may audit and who may judge is read where no one party could choose all
who answer. What it does not do: give anybody a better reputation; help before the first of them is
known, which takes seconds to minutes and rests on whom we joined by; or help a process of some
seconds, such as one answer of a client, which has those of its home's last node to join by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio

from ...dht.message import Contact
from ...errors import TransportError
from ...swarm.lookouts import Lookouts
from ...swarm.sampling_events import Member
from ..log import get_logger
from ..net.host import Host
from .talks import TALK_S

LOOK_S: Final = 5.0  # between two looks at who is there: the sampling's round
REST_S: Final = 60.0  # guess: for who could not be reached
RESTING_MAX: Final = 64
WHY: Final = "lookouts"

log = get_logger()


class Draws(Protocol):
    """What this needs of the sampling."""

    def ranked(self) -> Sequence[Member]: ...


class Watch:
    """One for a process. shunned: whom never to have, besides those that the host does not
    welcome."""

    def __init__(
        self,
        host: Host,
        sampler: Draws,
        *,
        shunned: Callable[[str], bool] = lambda peer: False,
    ) -> None:
        self._host = host
        self._sampler = sampler
        self._shunned = shunned
        self._lookouts = Lookouts()
        self._resting: dict[str, float] = {}

    def contacts(self) -> tuple[Contact, ...]:
        """Those that are connected now."""
        there = set(self._host.connected())
        return tuple(
            Contact(one.peer, (f"{one.address}/p2p/{one.peer}",))
            for one in self._lookouts.members()
            if one.peer in there
        )

    def shun(self, peer: str) -> None:
        """It was banned."""
        self._lookouts.lose(peer)

    def counts(self) -> dict[str, int]:
        return {"lookouts": len(self.contacts())}

    async def run(self) -> None:
        """A service."""
        try:
            while True:
                await trio.sleep(LOOK_S)
                await self._look()
        finally:
            self._host.keep(WHY, set())

    async def _look(self) -> None:
        now = trio.current_time()
        self._resting = {peer: until for peer, until in self._resting.items() if now < until}
        chosen = self._lookouts.tend(self._sampler.ranked(), now, fit=self._fits)
        self._host.keep(WHY, {one.peer for one in chosen})
        there = set(self._host.connected())
        async with trio.open_nursery() as nursery:
            for one in chosen:
                if one.peer not in there:
                    nursery.start_soon(self._call, one)

    def _fits(self, peer: str) -> bool:
        return self._host.welcomes(peer) and not self._shunned(peer) and peer not in self._resting

    async def _call(self, member: Member) -> None:
        self._host.learn(member.peer, (member.address,))
        failure = f"no answer within {TALK_S:.0f} s"
        with trio.move_on_after(TALK_S):
            try:
                await self._host.dial_known(member.peer)
                return
            except TransportError as error:
                failure = str(error)
        log.debug("lookout not reached", peer=member.peer, reason=failure)
        self._lookouts.lose(member.peer)
        self._resting[member.peer] = trio.current_time() + REST_S
        while len(self._resting) > RESTING_MAX:
            del self._resting[next(iter(self._resting))]
