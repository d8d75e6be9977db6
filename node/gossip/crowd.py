"""The swarm as one process knows it beyond the directory: peers drawn from all, and their records.

sampling.py ── contacts ──▶ registry.py ── beside its own keepers ──▶ the directory's reader
     └─ ranked ─▶ lookouts.py   ▲ each record of ours that the directory signs ◀──┘
                      └── a path of its own in each look-up ──▶ the directory

A client has no registry, and only watches: it asks its lookouts for what theirs hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

import trio

from ...dht.known import Known
from ...swarm.sampling_events import Member as Seat
from ..member import Member
from .lookouts import Watch
from .registry import Registrar
from .sampling import Sampler


class Outlook:
    """A client's. shunned: whom neither to know nor to believe, asked whenever one is named;
    pinned: whom the owner named."""

    def __init__(
        self,
        member: Member,
        dice: Random,
        *,
        shunned: Callable[[str], bool] = lambda peer: False,
        pinned: Iterable[Seat] = (),
        watches: bool = True,
    ) -> None:
        self.sampler = Sampler(
            member.host, member.directory, dice, shunned=shunned, pinned=pinned, watches=watches
        )
        self.watch = Watch(member.host, self.sampler, shunned=shunned)
        member.directory.ask_also(self.watch.contacts)

    async def run(self) -> None:
        """A service."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sampler.run)
            nursery.start_soon(self.watch.run)

    def known(self, now: float) -> tuple[Known, ...]:
        """The lookouts, as peers to join by. now: unix seconds."""
        return tuple(Known(one.peer, one.addresses, now) for one in self.watch.contacts())

    def shun(self, peer: str) -> None:
        """Forget a peer that was banned, and all that it said."""
        self.sampler.shun(peer)
        self.watch.shun(peer)

    def counts(self) -> dict[str, int]:
        return {**self.sampler.counts(), **self.watch.counts()}


class Crowd(Outlook):
    """A node's, with the registry beside."""

    def __init__(
        self,
        member: Member,
        dice: Random,
        *,
        shunned: Callable[[str], bool] = lambda peer: False,
        pinned: Iterable[Seat] = (),
    ) -> None:
        super().__init__(member, dice, shunned=shunned, pinned=pinned, watches=False)
        self.registrar = Registrar(member.host, self.sampler.contacts, dice, shunned=shunned)
        member.directory.signed.append(self.registrar.put)
        member.directory.beside.append(self.registrar.at)

    async def run(self) -> None:
        """A service."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(super().run)
            nursery.start_soon(self.registrar.run)

    def shun(self, peer: str) -> None:
        super().shun(peer)
        self.registrar.shun(peer)

    def counts(self) -> dict[str, int]:
        return {**super().counts(), **self.registrar.counts()}
