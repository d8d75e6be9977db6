"""What a busy device gives to whom: Sybils with forged tallies, and one who comes as many.

One device that takes one step at a time; a turn is a pass of 50 ms. What others did for it is in
the tallies it was told (swarm/credit.py); whose pass is next, swarm/schedule.py and favour.py say.

    sybils     two contributors, and 50 Sybils with forged tallies for each other, all of them
               waiting all the time. The gain: what the Sybils get together, in times of what one
               honest client without credit gets that stands in their place; and, with both there,
               in times of what is left to it; by how many networks they come from, and by how long
               the honest one was known
    split      one of two equal contributors comes as 20 identities, each way that there is: what it
               gets, in times of what it gets as one
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from ...crypto.keys import IdentityKey
from ..credit import Credit
from ..favour import Favour, Place
from ..schedule import Schedule
from ..tally import first_of, next_of

PASS_S = 0.05
ROWS = 32  # of the step that makes a turn
SYBILS = 50
FORGED = 1e12
GIVEN = 1e9  # more than is used up in any run
PASSES = 24_000  # so many that 50 in the commons get enough of them to be counted


def peer(name: str) -> str:
    return IdentityKey.from_bytes(name.encode().ljust(32, b".")).peer_id


ME = peer("me")


def give(credit: Credit, giver: str, taker: str, work: float) -> None:
    tally = next_of(
        first_of(giver, taker), giver, boot=1, gave=work, took=0.0, now=0.0, since=bytes(32)
    )
    credit.settle(tally, 0.0)


def place(number: int, narrow: int = 0, age: str = "new") -> Place:
    """A /24 of the /16 of this number."""
    return age, f"{number}/16", f"{number}.{narrow}/24"


class Device:
    """Takes one step at a time, each a turn."""

    def __init__(self, favour: Favour) -> None:
        self._favour = favour
        self._schedule: Schedule[int] = Schedule(favour)
        self._whose: dict[int, str] = {}
        self._count = itertools.count()
        self.now = 0.0

    def ask(self, whose: str) -> None:
        key = next(self._count)
        self._whose[key] = whose
        self._schedule.add(key, whose, [ROWS], cut=False, until_s=math.inf)

    def turn(self) -> str | None:
        """Who had it; None when nobody waits."""
        lead = self._schedule.lead(self.now)
        taken = self._schedule.next(ROWS, self.now, steps_max=1, lead=lead)
        if not taken:
            return None
        self.now += PASS_S
        self._schedule.took(PASS_S, self.now)
        return self._whose.pop(taken[0].key)


def backlogged(
    credit: Credit, waiting: Mapping[str, Place], passes: int = 6000
) -> dict[str, float]:
    """What each gets of the device when all wait all the time."""
    favour = Favour()
    for name, where in waiting.items():
        favour.place(name, where)
    favour.fund(credit.weights(list(waiting), 0.0))
    device, had = Device(favour), dict.fromkeys(waiting, 0.0)
    for name in waiting:
        device.ask(name)
    for _ in range(passes):
        whose = device.turn()
        assert whose is not None
        had[whose] += 1 / passes
        device.ask(whose)
    return had


def sybils(passes: int = PASSES) -> dict[str, Any]:
    """By where they come from."""
    gang = [peer(f"sybil {number}") for number in range(SYBILS)]
    honest, givers = peer("honest"), [peer("giver 1"), peer("giver 2")]
    cases = {
        "one /24": ("new", [place(9)] * SYBILS),
        "50 /24s of one /16": ("new", [place(9, number) for number in range(SYBILS)]),
        "50 /16s": ("new", [place(100 + number) for number in range(SYBILS)]),
        "50 /16s, the honest one known since yesterday": (
            "a day",
            [place(100 + number) for number in range(SYBILS)],
        ),
    }
    plain, forged = Credit(ME, 0.0), Credit(ME, 0.0)
    for credit, giver in itertools.product((plain, forged), givers):
        give(credit, giver, ME, GIVEN)
    for number, sybil in enumerate(gang):
        for other in gang[number + 1 : number + 5]:
            give(forged, sybil, other, FORGED)
    contributors = {giver: place(number) for number, giver in enumerate(givers)}
    found: dict[str, Any] = {
        "credit_by_forging": sum(forged.weights(gang, 0.0).values()),
        "standing_by_forging": max(forged.standing(sybil, 0.0, GIVEN) for sybil in gang),
    }
    for where, (age, places) in cases.items():
        alone = backlogged(plain, contributors | {honest: place(5, age=age)}, passes)[honest]
        ours = dict(zip(gang, places, strict=True))
        had = backlogged(forged, contributors | ours, passes)
        beside = backlogged(forged, contributors | ours | {honest: place(5, age=age)}, passes)
        beside_it = sum(beside[sybil] for sybil in gang)
        found[where] = {
            "one_honest_alone": round(alone, 4),
            "gain_in_its_place": round(sum(had[sybil] for sybil in gang) / alone, 3),
            "together_to_one_beside_it": round(beside_it / beside[honest], 3),
            "commons_with_both": round(beside_it + beside[honest], 4),
        }
    return found


def split(passes: int = PASSES // 2) -> dict[str, float]:
    """By the way in which the 20 hold together what the one gave; all from one network."""
    rival, parts = peer("rival"), [peer(f"part {number}") for number in range(20)]

    def share(way: str) -> float:
        credit = Credit(ME, 0.0)
        give(credit, rival, ME, GIVEN)
        mine = parts[:1] if way == "one" else parts
        for part in mine if way == "evenly" else mine[:1]:
            give(credit, part, ME, GIVEN / (len(mine) if way == "evenly" else 1))
        if way == "owed by the first":
            for part in parts[1:]:
                give(credit, part, parts[0], FORGED)
        had = backlogged(
            credit,
            {rival: place(1), peer("newcomer"): place(3)} | dict.fromkeys(mine, place(2)),
            passes,
        )
        return sum(had[part] for part in mine)

    alone = share("one")
    ways = ("evenly", "owed by the first", "newcomers beside it")
    return {way: round(share(way) / alone, 4) for way in ways}
