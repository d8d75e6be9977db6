"""Whom to stay connected with: a few peers that the sampling drew, and that nobody chose for us.

Every other peer that we are connected to came to us, or was named by somebody who may have chosen
it. Heilman et al. ("Eclipse Attacks on Bitcoin's Peer-to-Peer Network", 2015) take over a node by
being all whom it talks to; what helps are connections of its own choice that it keeps. Here these
are samples (sampling.py): one that is lost is replaced at once, and one a while steps down for the
next, so that a liar who was drawn is not there for good.

    drawn ──▶ at most LOOKOUTS, of different networks ── lost, or TENURE_S ──▶ the next drawn

With a share f of liars in the view all of them are liars f^LOOKOUTS of the time: 0.8 % at 0.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from ..dht.network import diverse, prefixes_of
from .sampling_events import Member

LOOKOUTS: Final = 4
TENURE_S: Final = 900.0  # guess: a connection lives as long as one that nobody uses


class Lookouts:
    """Who they are."""

    def __init__(self, count: int = LOOKOUTS, tenure_s: float = TENURE_S) -> None:
        self._count = count
        self._tenure_s = tenure_s
        self._since: dict[Member, float] = {}  # the longest first
        self._changed_s = 0.0

    def members(self) -> tuple[Member, ...]:
        return tuple(self._since)

    def lose(self, peer: str) -> None:
        """It cannot be reached, or is banned."""
        self._since = {one: since for one, since in self._since.items() if one.peer != peer}

    def tend(
        self, drawn: Iterable[Member], now: float, *, fit: Callable[[str], bool]
    ) -> tuple[Member, ...]:
        """Who they are from now on. drawn: whom to take next, the best first; fit: whether to have
        anything to do with a peer."""
        self._since = {one: since for one, since in self._since.items() if fit(one.peer)}
        serving = {one.peer for one in self._since}
        new = [one for one in dict.fromkeys(drawn) if one.peer not in serving and fit(one.peer)]
        stay = list(self._since)
        if len(stay) >= self._count and new and now - self._changed_s >= self._tenure_s:
            stay = stay[1:]
        if len(stay) < self._count:
            ranked = ((one, (prefixes_of(one.address),)) for one in (*stay, *_once(new)))
            stay = list(diverse(ranked, self._count))
            self._changed_s = now
        self._since = {one: self._since.get(one, now) for one in stay}
        return self.members()


def _once(members: Iterable[Member]) -> list[Member]:
    """Each peer under the first of its addresses."""
    return list({one.peer: one for one in reversed(list(members))}.values())[::-1]
