"""Ten thousand peers, 30 % of them flooding liars: what honest views and samples hold.

Each honest peer has the daemon's own `Slots`; rounds are in step, and what a message would carry is
an array of numbers. The liars know every honest peer from the first round, name only liars, and
send `FORCE` views to honest peers for each one that an honest peer sends. Everybody begins with
`FIRST` peers drawn from all, liars among them, and hears of `WALK` more of them each round on its
walks through the directory, honest ones in proportion. Without walks (`--walk 0`) 10,000 peers are
captured.

    spread    30 % liars, evenly over the networks
    crowd     18.8 % of the peers stand in one /24, alone in its /8, and behave as the liars do

An id that was offered once is not offered again to slots that have not been drawn anew since:
ranks do not change, so this changes nothing but the time it takes.

    python -m integration.sampling_sim                       both, some minutes
    python -m integration.sampling_sim --story crowd --peers 3000 --slots 100
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potluck.dht.network import Prefixes
from potluck.swarm.sampling import QUIET_ROUNDS, resets_a_round
from potluck.swarm.slots import EMPTY, Ints, Slots, key_of, keys_of

PEERS, SLOTS, ROUNDS = 10_000, 160, 100
FORCE = 5  # views that a liar sends for each of an honest peer
FIRST = 20  # peers known at the start: a bucket of the directory
# Heard of a round, 21 of them honest. A walk, each third round, hears of some 120 honest ones where
# 30 % answer with nothing but liars: integration/walk_reach.py.
WALK = 30
LIARS = {"spread": 0.3, "crowd": 0.188}
WIDE = 200  # /8s in use: of 256, less those that the Internet does not route
CROWD: Prefixes = ("crowd/8", "crowd/16", "crowd/24")


@dataclass
class Swarm:
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
        for target in self.dice.integers(self.honest, size=FORCE * self.liars).tolist():
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


def measure(
    story: str, peers: int, slots: int, rounds: int, *,
    seed: int, wide: int = WIDE, walk: int = WALK, faster: float = 1.0,
) -> dict[str, Any]:  # fmt: skip
    began_s = time.process_time()
    swarm = Swarm(story, peers, slots, np.random.default_rng(seed), wide, walk, faster)
    told: dict[str, Any] = {
        "story": story, "peers": peers, "liars": swarm.liars, "slots": slots, "wide": wide,
        "walk": walk, "seed": seed, "resets_a_round": round(swarm.rate, 3),
        "liars_share_of_views": {},
    }  # fmt: skip
    for number in range(1, rounds + 1):
        swarm.round(number)
        if number in (1, 2, 5) or number % 10 == 0:
            shares = swarm.shares()
            told["liars_share_of_views"][number] = {
                "mean": round(float(shares.mean()), 4), "largest": round(float(shares.max()), 4),
                "isolated": int((shares == 1).sum()),
            }  # fmt: skip
            now = told["liars_share_of_views"][number]
            print(f"{story}, round {number}: {now}", file=sys.stderr, flush=True)
    total = int(swarm.samples.sum())
    told["samples"] = total
    told["liars_share_of_samples"] = (
        round(int(swarm.samples[: swarm.liars].sum()) / total, 5) if total else None
    )
    return told | {
        "processor_s": round(time.process_time() - began_s, 1),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--story", choices=sorted(LIARS))
    parser.add_argument("--peers", type=int, default=PEERS)
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--wide", type=int, default=WIDE)
    parser.add_argument("--walk", type=int, default=WALK)
    parser.add_argument("--faster", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    for story in [asked.story] if asked.story else ["spread", "crowd"]:
        told = measure(
            story, asked.peers, asked.slots, asked.rounds,
            seed=asked.seed, wide=asked.wide, walk=asked.walk, faster=asked.faster,
        )  # fmt: skip
        print(json.dumps(told, indent=2), flush=True)


if __name__ == "__main__":
    main()
