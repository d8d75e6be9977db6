"""Issue F, bar 6: after how many attempts liars are convicted, over many guarded groups.

    python -m integration.guarded_draws [--peers 16] [--liars 7] [--groups 16]      one JSON line

In memory and in virtual time: the members' own machines, workshops and signatures, over vectors of
forty numbers, since of work nothing counts here but whether it is true. All liars lie in every
attempt, from the first; as validators and as judges they find one another innocent.

Published is a chance: of n members, b of whom lie, a given liar is checked by somebody honest with
(n - b) / n / (n - 1) in a step (Gorbunov et al., 2022: check_proba of its code, one pair). So its
mean is n (n - 1) / (n - b) steps, 26.7 of 16 with 7, and by chance a third of all liars stay longer
than that: a bound for a mean, which one group cannot tell from luck (its own mean has a deviation
of 6). Who is convicted makes the group smaller and the chance greater, so that groups have a mean
of their own (`foreseen`: 17.8). `of_published`: convictions, over those that the published chance
gives for the attempts that were made; below 1 a draw would be lost on the way to the conviction.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from random import Random
from statistics import fmean, stdev
from typing import Any

from potluck.swarm.run.coin import elect

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # its helpers, as pytest has them

GROUPS = 16
DEVIATIONS = 1.96  # of a mean: 95 of 100 lie within


def chance(honest: int, liars: int) -> float:
    """That a given liar is checked by somebody honest."""
    count = honest + liars
    return honest / count / (count - 1)


def bound(peers: int, liars: int) -> float:
    """Attempts until a given liar of a group is convicted, as published: on average."""
    return 1 / chance(peers - liars, liars)


def foreseen(peers: int, liars: int) -> float:
    """The same, where whoever was convicted before is there no more: of the k that are left each
    has its chance, and each of them waits."""
    honest = peers - liars
    return sum(1 / chance(honest, left) for left in range(1, liars + 1)) / liars


@dataclass
class Group:
    """left: liars with a seat. caught: the attempt in which each was convicted. due: how many
    convictions the published chance gives."""

    honest: int
    left: int
    attempts: int = 0
    due: float = 0.0
    caught: list[int] = field(default_factory=list)
    innocent: int = 0  # honest ones that were convicted

    def step(self, dice: Random) -> None:
        """Raises AssertionError when the honest do not agree, or a liar was drawn by somebody
        honest in an attempt that stands, or nobody was convicted in one that came to nothing."""
        from guard_liars import Fellow, together
        from guards import Table

        count = self.honest + self.left
        liars = dice.sample(range(count), self.left)
        table = together(Table(count, dict.fromkeys(liars, Fellow), seed=dice.getrandbits(32)))
        table.run()
        (outcome,) = table.outcomes()
        done, convicts = table.honest[0].done, table.convicts()
        assert done is not None, outcome
        assert len(convicts) == done.attempts - 1, "an attempt is void by a conviction alone"
        peers = [table.roster[seat] for seat in done.standing.members]
        ((by, about),) = elect(done.coin, peers, 1)
        lying = {table.roster[seat] for seat in liars}
        assert by in lying or about not in lying, "a liar that is drawn is convicted"
        self.innocent += len(convicts - set(liars))
        for number in range(1, done.attempts + 1):
            self.due += self.left * chance(self.honest, self.left)
            if number < done.attempts:
                self.caught.append(self.attempts + number)
                self.left -= 1
        self.attempts += done.attempts


def convicted(peers: int, liars: int, seed: int) -> Group:
    """A group, from its first step until no liar is left."""
    group, dice = Group(peers - liars, liars), Random(seed)
    while group.left and not group.innocent:
        group.step(dice)
    return group


def measure(peers: int = 16, liars: int = 7, groups: int = GROUPS, seed: int = 1) -> dict[str, Any]:
    began_s = time.monotonic()
    found = [convicted(peers, liars, seed + number) for number in range(groups)]
    means = [fmean(one.caught) if one.caught else 0.0 for one in found]
    caught = sum(len(one.caught) for one in found)
    return {
        "peers": peers,
        "liars": liars,
        "groups": groups,
        "convicted": caught,
        "honest_convicted": sum(one.innocent for one in found),
        "attempts_mean": round(fmean(means), 2),
        "within": round(DEVIATIONS * stdev(means) / sqrt(groups), 2),
        "foreseen": round(foreseen(peers, liars), 2),
        "bound": round(bound(peers, liars), 2),
        "of_published": round(caught / sum(one.due for one in found), 3),
        "of_published_within": round(DEVIATIONS / sqrt(caught), 3),
        "means": [round(one, 1) for one in means],
        "last": [max(one.caught, default=0) for one in found],
        "seconds": round(time.monotonic() - began_s, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=16)
    parser.add_argument("--liars", type=int, default=7)
    parser.add_argument("--groups", type=int, default=GROUPS)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.peers, asked.liars, asked.groups, asked.seed)))


if __name__ == "__main__":
    main()
