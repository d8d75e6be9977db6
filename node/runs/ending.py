"""Whether all who take part in a run by scalars have come to its end, and know the same.

    talk to each ─▶ it is under way ──────────────────▶ waited for
                 ├▶ it knows what we do not, or less ──▶ both have told each other; asked again
                 └▶ it answers three times nothing ────▶ gone, and waited for no more

Who has ended says nothing more, so what all know when all have ended stays as it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from ...swarm.run.scalars import Sync, parted
from .hearing import Hearing

TRIES: Final = 3  # talks in a row: who answers none of them has gone


class Ending:
    """Of one peer's part, which had so many rounds. talk: with one peer; how far it had come."""

    def __init__(
        self, hearing: Hearing, rounds: int, talk: Callable[[str], Awaitable[Sync | None]]
    ) -> None:
        self._hearing = hearing
        self._rounds = rounds
        self._talk = talk
        self._gone: set[str] = set()

    async def reached_by(self, peers: Sequence[str]) -> bool:
        """Whether it is the end for all of these that are there, and they know what we know."""
        before, wait = self._hearing.log.ask(), False

        async def look(peer: str) -> None:
            nonlocal wait
            for _ in range(TRIES):
                theirs = await self._talk(peer)
                if theirs is not None:
                    ended = any(
                        one.peer == peer and one.next >= self._rounds for one in theirs.heads
                    )
                    if not ended or parted(self._hearing.log.ask(), theirs) is not None:
                        wait = True
                    return
            self._gone.add(peer)

        async with trio.open_nursery() as nursery:
            for peer in peers:
                if peer not in self._gone:
                    nursery.start_soon(look, peer)
        # what came from one is not yet what another was asked about
        return not wait and self._hearing.log.ask() == before
