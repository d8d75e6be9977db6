"""Views under a flood: each honest peer has the daemon's own `Slots`, and rounds are in step.

What a message would carry is an array of numbers. The liars know every honest peer from the first
round, name only liars, and send `FORCE` views to honest peers for each one that an honest peer
sends. Everybody begins with `FIRST` peers drawn from all, liars among them, and hears of `walk`
more of them each round on its walks through the directory, honest ones in proportion.

    spread    30 % liars, evenly over the networks
    crowd     18.8 % of the peers stand in one /24, alone in its /8, and behave as the liars do
    eclipse   30 % liars, all of whose views go to a few victims

An id that was offered once is not offered again to slots that have not been drawn anew since:
ranks do not change, so this changes nothing but the time it takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...dht.network import Prefixes
from ..sampling import QUIET_ROUNDS, resets_a_round
from ..slots import EMPTY, Ints, Slots, key_of, keys_of

FORCE = 5  # views that a liar sends for each of an honest peer
FIRST = 20  # peers known at the start: a bucket of the directory
# Heard of a round, 21 of them honest. A walk, each third round, hears of some 120 honest ones where
# 30 % answer with nothing but liars: integration/walk_reach.py.
WALK = 30
LIARS = {"spread": 0.3, "crowd": 0.188, "eclipse": 0.3}
VICTIMS = 5  # of an eclipse: the first honest ones
WIDE = 200  # /8s in use: of 256, less those that the Internet does not route
CROWD: Prefixes = ("crowd/8", "crowd/16", "crowd/24")


@dataclass
class Flood:
    """Peers 0..liars-1 lie, the others are honest."""

    story: str
    peers: int
    slots: int
    dice: np.random.Generator
    wide: int = WIDE
    walk: int = WALK
    faster: float = 1.0  # than the rule resets slots
    views: list[Slots] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.liars = round(LIARS[self.story] * self.peers)
        self.honest = self.peers - self.liars
        self.keys = keys_of([key_of(f"peer {n}", self._network(n)) for n in range(self.peers)])
        self.seen: NDArray[np.bool_] = np.zeros((self.honest, self.peers), dtype=np.bool_)
        self.young: list[list[int]] = [[] for _ in range(self.honest)]  # slots drawn anew
        self.samples = np.zeros(self.peers, dtype=np.int64)
        self.rate = self.faster * resets_a_round(self.slots, self.peers, LIARS[self.story])
        self.due = 0.0
        self.turn = 0
        for me in range(self.honest):
            self.views.append(Slots(self.dice.integers(2**64, size=self.slots, dtype=np.uint64)))
            self.take(me, self.dice.integers(self.peers, size=FIRST))

    def _network(self, number: int) -> Prefixes:
        if self.story == "crowd" and number < self.liars:
            return CROWD
        wide, middle, narrow = self.dice.integers((self.wide, 256, 256)).tolist()
        return f"{wide}/8", f"{wide}.{middle}/16", f"{wide}.{middle}.{narrow}/24"

    def take(self, me: int, named: Ints) -> None:
        """What the machine does with the members of a view."""
        heard = np.unique(named[named != me + self.liars])
        new = heard[~self.seen[me, heard]]
        self.seen[me, new] = True
        self.views[me].offer(new, self.keys[new])
        if self.young[me]:
            young = np.array(self.young[me], dtype=np.int64)
            self.views[me].offer(heard, self.keys[heard], young)

    def round(self, number: int) -> None:
        before = [np.unique(view.kept) for view in self.views]
        named: list[list[Ints]] = [[] for _ in range(self.honest)]
        everybody = np.arange(self.liars)
        for me, view in enumerate(self.views):
            asked, told = (self._contact(view) for _ in range(2))
            if told >= self.liars:
                named[told - self.liars] += [before[me], np.array([me + self.liars])]
            if asked >= self.liars:
                named[me].append(before[asked - self.liars])
                named[asked - self.liars].append(np.array([me + self.liars]))  # it has spoken
            else:
                named[me].append(self.dice.choice(everybody, self.slots))
            named[me].append(self.dice.integers(self.peers, size=self.walk))
        victims = VICTIMS if self.story == "eclipse" else self.honest
        for target in self.dice.integers(victims, size=FORCE * self.liars).tolist():
            named[target].append(self.dice.integers(self.liars, size=self.slots))
        for me, parts in enumerate(named):
            self.take(me, np.concatenate(parts))
        if number > QUIET_ROUNDS:
            self._reset()

    def _contact(self, view: Slots) -> int:
        slot = view.choose()
        assert slot is not None
        return int(view.kept[slot])

    def _reset(self) -> None:
        self.due += self.rate
        while self.due >= 1:
            self.due -= 1
            for me, view in enumerate(self.views):
                seed = int(self.dice.integers(2**64, dtype=np.uint64))
                known = np.unique(view.kept)
                self.samples[view.reseed(self.turn, seed)] += 1
                view.offer(known, self.keys[known], np.array([self.turn]))
                self.young[me].append(self.turn)
            self.turn = (self.turn + 1) % self.slots

    def shares(self) -> NDArray[np.float64]:
        """Of each honest view, the part of its slots that liars hold."""
        kept = np.stack([view.kept for view in self.views])
        assert (kept != EMPTY).all()
        found: NDArray[np.float64] = (kept < self.liars).mean(axis=1)
        return found
