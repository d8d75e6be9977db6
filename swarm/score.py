"""How a neighbour in gossip is judged: what it brought counts for it, what it cost us against it.

The peer score of gossipsub 1.1 (Vyzovitis et al., 2020), with the constants of algorithms.md 3.5:

    + 0.01 a second as a neighbour, 3 at most           P1
    + 1    for each message that it was first to bring  P2   fades by 3 % a second, 50 at most
    - 20   times the square of what was wrong           P4   fades by 1 % in ten seconds
    + 10   (2 R - 1), for how far it is trusted         P5   R in 0..1, one half of a stranger
    - 10   times the square of ids beyond 2 in its /24  P6
    - 10   times the square of its nuisances            P7   fades by 10 % a second

Who fell below GRAYLIST is not heard at all for a minute, and until it is forgiven. A score outlives
its neighbour for ten minutes, so that nobody washes himself by coming anew. Nothing here reads a
clock.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..dht.network import NOWHERE, PER_NETWORK, Prefixes

GOSSIP: Final = -20.0  # below: it is told of no messages, and asked for none
PUBLISH: Final = -50.0  # below: it is sent none
GRAYLIST: Final = -100.0  # below: what it says is not read
SHUN_S: Final = 60.0  # at least: a nuisance is forgiven within seconds
KEEP_S: Final = 600.0  # of who has left
KEPT_MAX: Final = 4096

_TIME_S, _TIME_MOST = 0.01, 3.0
_FIRST_FADING, _FIRST_MOST = 0.97, 50.0
_WRONG, _WRONG_FADING = -20.0, 0.99**0.1
_TRUST = 10.0
_CROWD = -10.0
_NUISANCE, _NUISANCE_FADING = -10.0, 0.9


@dataclass(slots=True)
class _Counts:
    where: Prefixes
    since_s: float
    at_s: float  # when the others were last faded
    first: float = 0.0
    wrong: float = 0.0
    nuisance: float = 0.0
    left_s: float | None = None
    shunned_s: float = -math.inf  # until when

    def fade(self, now: float) -> None:
        gone_s = now - self.at_s
        if gone_s > 0:
            self.first *= _FIRST_FADING**gone_s
            self.wrong *= _WRONG_FADING**gone_s
            self.nuisance *= _NUISANCE_FADING**gone_s
            self.at_s = now


class Scores:
    """Of every neighbour, and of who was one a short while ago. trust: in 0..1, of a peer."""

    def __init__(self, trust: Callable[[str], float] = lambda peer: 0.5) -> None:
        self._trust = trust
        self._counts: dict[str, _Counts] = {}
        self._crowds: Counter[str] = Counter()  # neighbours in each /24

    def came(self, peer: str, where: Prefixes, now: float) -> None:
        """It is a neighbour now."""
        counts = self._counts.pop(peer, None) or _Counts(where, now, now)
        counts.where, counts.since_s, counts.left_s = where, now, None
        self._counts[peer] = counts
        self._crowds[where[2]] += 1

    def left(self, peer: str, now: float) -> None:
        counts = self._counts.pop(peer)
        self._crowds[counts.where[2]] -= 1
        if not self._crowds[counts.where[2]]:
            del self._crowds[counts.where[2]]
        counts.left_s = now
        self._counts[peer] = counts  # the last that left is the last that is forgotten
        self._forget(now)

    def first(self, peer: str, now: float) -> None:
        """It was first to bring something that is passed on."""
        counts = self._faded(peer, now)
        counts.first = min(_FIRST_MOST, counts.first + 1)

    def wrong(self, peer: str, now: float) -> None:
        """It passed on what no honest peer passes on."""
        self._faded(peer, now).wrong += 1

    def nuisance(self, peer: str, share: float, now: float) -> None:
        """It cost us something; three whole ones are nearly the end."""
        self._faded(peer, now).nuisance += share

    def of(self, peer: str, now: float) -> float:
        """Zero of a stranger."""
        counts = self._counts.get(peer)
        if counts is None:
            return 0.0
        counts.fade(now)
        here = counts.left_s is None
        crowd = self._crowds[counts.where[2]] if here and counts.where != NOWHERE else 0
        return (
            min(_TIME_MOST, _TIME_S * (now - counts.since_s if here else 0.0))
            + counts.first
            + _WRONG * counts.wrong**2
            + _TRUST * (2 * self._trust(peer) - 1)
            + _CROWD * max(0, crowd - PER_NETWORK) ** 2
            + _NUISANCE * counts.nuisance**2
        )

    def shunned(self, peer: str, now: float) -> bool:
        """Whether it is not to be heard."""
        counts = self._counts.get(peer)
        if counts is None:
            return False
        if self.of(peer, now) < GRAYLIST:
            counts.shunned_s = now + SHUN_S
        return now < counts.shunned_s

    def _faded(self, peer: str, now: float) -> _Counts:
        counts = self._counts[peer]
        counts.fade(now)
        return counts

    def _forget(self, now: float) -> None:
        """Who left long ago; of too many the one whose score is the best, for it loses least."""
        gone = [
            peer
            for peer, one in self._counts.items()
            if one.left_s is not None and now - one.left_s > KEEP_S
        ]
        for peer in gone:
            del self._counts[peer]
        if len(self._counts) > KEPT_MAX:
            away = (peer for peer, one in self._counts.items() if one.left_s is not None)
            del self._counts[max(away, key=lambda peer: self.of(peer, now))]
