"""Whom to shun: bans by peer, no more than so many, and a flood of them displaces its own kind.

An identity costs nothing, and two words of it that contradict each other have it banned for ever:
whoever makes them up by the thousand fills any table. So it counts for how long we had known a peer
when it was banned, which nobody gets but by waiting in our sight, and in which network it stood:

    full ─▶ bans that are over ─▶ of whom was known least: of the /16 that holds most, the oldest

Those whom we never met go first, however many there are and however new. What a stranger's ban is
worth is known to those who see it announce itself, and they say it again (node/evidence.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal

from .testimony import Item

KNOWN_S: Final = (0.0, 3600.0, 86_400.0, 604_800.0)  # guess: who was known for longer is dearer
EVICTED_SHARE: Final = 1 / 64  # at once, so that a flood pays for the sorting


@dataclass(frozen=True, slots=True)
class Acquaintance:
    """How we had known a peer when it was banned. network: its /16, or as wide a part."""

    known_s: float = 0.0
    network: str = ""


STRANGER: Final = Acquaintance()


@dataclass(frozen=True, slots=True)
class Ban:
    """An effect: shun this peer until then (for ever: inf), and keep the proof."""

    peer: str
    until_s: float
    grounds: Literal["contradiction", "recomputed", "attested", "false accusations"]
    proof: Item
    known: Acquaintance = STRANGER


class Banned:
    """At most `most` bans."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bans: dict[str, Ban] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._bans)

    def of(self, peer: str) -> Ban | None:
        return self._bans.get(peer)

    def all(self) -> tuple[Ban, ...]:
        """The oldest first."""
        return tuple(self._bans.values())

    def put(self, ban: Ban, now: float) -> list[str]:
        """In the place of the last one of this peer. Who had to make room: perhaps this one."""
        self._bans.pop(ban.peer, None)
        self._bans[ban.peer] = ban
        if len(self._bans) <= self._most:
            return []
        gone = [peer for peer, one in self._bans.items() if one.until_s <= now]
        if not gone:
            count = len(self._bans) - self._most + int(EVICTED_SHARE * self._most)
            gone = self._least()[:count]
        for peer in gone:
            del self._bans[peer]
        return gone

    def _least(self) -> list[str]:
        """All, who is to go first first: each stands for how many newer ones its network has."""
        newer: Counter[tuple[int, str]] = Counter()
        ranked: list[tuple[int, int, int, str]] = []
        for age, ban in enumerate(reversed(self._bans.values())):
            rank = _rank(ban.known)
            ranked.append((rank, -newer[rank, ban.known.network], -age, ban.peer))
            newer[rank, ban.known.network] += 1
        return [peer for *_, peer in sorted(ranked)]


def _rank(known: Acquaintance) -> int:
    return sum(known.known_s > least for least in KNOWN_S)
