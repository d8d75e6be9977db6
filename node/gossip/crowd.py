"""The swarm as one node knows it beyond the directory: peers drawn from all, and all their records.

sampling.py ── contacts ──▶ registry.py ── beside its own keepers ──▶ the directory's reader
                                ▲ each record of ours that the directory signs ◀──┘
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import trio

from ..member import Member
from .registry import Registrar
from .sampling import Sampler


class Crowd:
    """One for a node. shunned: whom neither to know nor to believe, asked whenever one is named."""

    def __init__(
        self, member: Member, dice: Random, *, shunned: Callable[[str], bool] = lambda peer: False
    ) -> None:
        self.sampler = Sampler(member.host, member.directory, dice, shunned=shunned)
        self.registrar = Registrar(member.host, self.sampler.contacts, dice, shunned=shunned)
        member.directory.signed.append(self.registrar.put)
        member.directory.beside.append(self.registrar.at)

    async def run(self) -> None:
        """A service."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sampler.run)
            nursery.start_soon(self.registrar.run)

    def shun(self, peer: str) -> None:
        """Forget a peer that was banned, and all that it said."""
        self.sampler.shun(peer)
        self.registrar.shun(peer)

    def counts(self) -> dict[str, int]:
        return {**self.sampler.counts(), **self.registrar.counts()}
