"""Bar E7 in simulation: Sybils, splitting, free riders, against the rules' own objects.

    python -m integration.credit_sim [--seeds 10]

One busy device that takes one step at a time; a turn is a pass of 50 ms. What others did for it is
in the tallies it was told (swarm/credit.py); whose pass is next, swarm/schedule.py and favour.py
say. With the lane, its batches and its pace: integration/fairness.py.

    sybils     two contributors, and 50 Sybils with forged tallies for each other, all of them
               waiting all the time. The gain: what the Sybils get together, in times of what one
               honest client without credit gets that stands in their place; and, with both there,
               in times of what is left to it; by how many networks they come from, and by how long
               the honest one was known
    split      one of two equal contributors comes as 20 identities, each way that there is: what it
               gets, in times of what it gets as one
    riders     a contributor's requests come by chance (512 tokens of prompt: four turns; then 16
               turns more), against ten free riders that ask again at once: its p95 time to first
               token, in times of what it is with nobody else there; riders that stay, and riders
               that take another name in another network for each request
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from potluck.crypto.keys import IdentityKey
from potluck.swarm.credit import Credit
from potluck.swarm.favour import COMMONS, WINDOW_S, Favour, Place
from potluck.swarm.schedule import Schedule
from potluck.swarm.tally import first_of, next_of

PASS_S = 0.05
ROWS = 32  # of the step that makes a turn
PROMPT_TURNS, DECODE_TURNS = 4, 16
RIDERS = 10
SYBILS = 50
FORGED = 1e12
GIVEN = 1e9  # more than is used up in any run


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
        name = device.turn()
        assert name is not None
        had[name] += 1 / passes
        device.ask(name)
    return had


def sybils() -> dict[str, Any]:
    """Passes are many, so that 50 in the commons get enough of them to be counted."""
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
        alone = backlogged(plain, contributors | {honest: place(5, age=age)}, 24_000)[honest]
        ours = dict(zip(gang, places, strict=True))
        had = backlogged(forged, contributors | ours, 24_000)
        beside = backlogged(forged, contributors | ours | {honest: place(5, age=age)}, 24_000)
        beside_it = sum(beside[sybil] for sybil in gang)
        found[where] = {
            "one_honest_alone": round(alone, 4),
            "gain_in_its_place": round(sum(had[sybil] for sybil in gang) / alone, 3),
            "together_to_one_beside_it": round(beside_it / beside[honest], 3),
            "commons_with_both": round(beside_it + beside[honest], 4),
        }
    return found


def split() -> dict[str, float]:
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
            12_000,
        )
        return sum(had[part] for part in mine)

    alone = share("one")
    ways = ("evenly", "owed by the first", "newcomers beside it")
    return {way: round(share(way) / alone, 4) for way in ways}


def first_token_s(
    seed: int,
    load: float,
    riders: int,
    hours: float = 0.25,
    *,
    fresh: bool = False,
    commons: float = COMMONS,
    window_s: float = WINDOW_S,
) -> list[float]:
    """A contributor's times to first token. load: of the device, by its own requests. fresh: each
    request of a rider comes under a name, and from a network, never seen before."""
    dice = random.Random(seed)
    mine = peer("contributor")
    favour = Favour(commons, window_s)
    favour.fund({mine: GIVEN})
    favour.place(mine, place(1))
    device = Device(favour)
    names = _names(favour)
    queue: deque[tuple[float, int]] = deque()  # (asked at, turns that were had)
    every_s = PASS_S * (PROMPT_TURNS + DECODE_TURNS) / load
    arrives_s = dice.expovariate(1 / every_s)
    waits: list[float] = []
    asking = False
    for _ in range(riders):
        device.ask(next(names))
    turns_of: dict[str, int] = {}
    while device.now < hours * 3600:
        while arrives_s <= device.now:
            queue.append((arrives_s, 0))
            arrives_s += dice.expovariate(1 / every_s)
        if queue and not asking:
            device.ask(mine)
            asking = True
        whose = device.turn()
        if whose is None:
            device.now = arrives_s  # an idle device begins at once
        elif whose == mine:
            asking = False
            asked_s, had = queue.popleft()
            if had + 1 == PROMPT_TURNS:
                waits.append(device.now - asked_s)
            if had + 1 < PROMPT_TURNS + DECODE_TURNS:
                queue.appendleft((asked_s, had + 1))
        else:
            had = turns_of[whose] = turns_of.get(whose, 0) + 1
            device.ask(next(names) if fresh and had % (PROMPT_TURNS + DECODE_TURNS) == 0 else whose)
    return waits


def _names(favour: Favour) -> Iterator[str]:
    """Of riders, each from a /16 of its own."""
    for number in itertools.count():
        name = f"rider {number}"
        favour.place(name, place(200 + number))
        yield name


def riders(seeds: int, *, fresh: bool = False, **how: float) -> dict[str, Any]:
    found = {}
    for load in (0.3, 0.5, 0.6, 0.7, 0.8):
        alone, among = (
            [
                statistics.quantiles(first_token_s(seed, load, count, fresh=fresh, **how), n=20)[-1]
                for seed in range(seeds)
            ]
            for count in (0, RIDERS)
        )
        ratios = [b / a for a, b in zip(alone, among, strict=True)]
        found[f"load {load}"] = {
            "p95_alone_s": round(statistics.mean(alone), 3),
            "p95_among_riders_s": round(statistics.mean(among), 3),
            "ratio": round(statistics.mean(among) / statistics.mean(alone), 3),
            "worst_seed": round(max(ratios), 3),
        }
    return found


def measure(seeds: int = 10) -> dict[str, Any]:
    return {
        "sybils": sybils(),
        "split": split(),
        "riders": riders(seeds),
        "fresh_riders": riders(seeds, fresh=True),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    print(json.dumps(measure(parser.parse_args().seeds), indent=2))
