"""Bar E7 in simulation: Sybils, splitting, free riders, against swarm/credit.py's own objects.

    python -m integration.credit_sim [--seeds 10]

One busy device; a turn is a pass of 50 ms. What others did for it is in the tallies it was told.

    sybils     two contributors, one honest newcomer and 50 Sybils with forged tallies for each
               other, all of them waiting all the time: what the Sybils get together, in times of
               what the honest newcomer gets; by how many networks they come from
    split      one of two equal contributors comes as 20 identities, each way that there is: what it
               gets, in times of what it gets as one
    riders     a contributor's requests come by chance (512 tokens of prompt: four turns; then 16
               turns more), against ten free riders that ask again at once: its p95 time to first
               token, in times of what it is with nobody else there
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections import deque
from typing import Any

from potluck.crypto.keys import IdentityKey
from potluck.swarm.credit import Credit, Turns
from potluck.swarm.tally import first_of, next_of

PASS_S = 0.05
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


def network(wide: int, narrow: int = 0) -> tuple[str, ...]:
    return f"10.{wide}/16", f"10.{wide}.{narrow}/24"


def backlogged(
    credit: Credit, waiting: dict[str, tuple[str, ...]], passes: int = 6000
) -> dict[str, float]:
    """What each gets of the device when all wait all the time."""
    turns, had = Turns(credit), dict.fromkeys(waiting, 0.0)
    for number in range(passes):
        now = number * PASS_S
        turn = turns.next(waiting, now)
        had[turn.peer] += 1 / passes
        turns.charge(turn, waiting[turn.peer], PASS_S, now, contended=True)
    return had


def sybils() -> dict[str, Any]:
    """Passes are many, so that 50 in the commons get enough of them to be counted."""
    gang = [peer(f"sybil {number}") for number in range(SYBILS)]
    honest, givers = peer("honest"), [peer("giver 1"), peer("giver 2")]
    places = {
        "one /24": [network(9)] * SYBILS,
        "50 /24s of one /16": [network(9, number) for number in range(SYBILS)],
        "50 /16s": [network(100 + number) for number in range(SYBILS)],
    }
    found: dict[str, Any] = {}
    for where, nets in places.items():
        shares = {}
        for forged in (False, True):
            credit = Credit(ME, 0.0)
            for giver in givers:
                give(credit, giver, ME, GIVEN)
            if forged:
                for number, sybil in enumerate(gang):
                    for other in gang[number + 1 : number + 5]:
                        give(credit, sybil, other, FORGED)
            waiting = {giver: network(number) for number, giver in enumerate(givers)}
            waiting[honest] = network(5)
            waiting |= dict(zip(gang, nets, strict=True))
            had = backlogged(credit, waiting, 8000)
            shares[forged] = sum(had[sybil] for sybil in gang) / had[honest]
        found[where] = {
            "together_to_one_honest": round(shares[True], 3),
            "each_to_one_honest": round(shares[True] / SYBILS, 3),
            "gain_by_forging": round(shares[True] / shares[False], 3),
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
            {rival: network(1), peer("newcomer"): network(3)} | dict.fromkeys(mine, network(2)),
        )
        return sum(had[part] for part in mine)

    alone = share("one")
    ways = ("evenly", "owed by the first", "newcomers beside it")
    return {way: round(share(way) / alone, 4) for way in ways}


def first_token_s(seed: int, load: float, riders: int, hours: float = 0.25) -> list[float]:
    """A contributor's times to first token. load: of the device, by its own requests."""
    dice = random.Random(seed)
    mine = peer("contributor")
    credit = Credit(ME, 0.0)
    give(credit, mine, ME, GIVEN)
    turns = Turns(credit)
    nets = {peer(f"rider {number}"): network(10 + number) for number in range(riders)}
    queue: deque[tuple[float, int]] = deque()  # (asked at, turns that were had)
    every_s = PASS_S * (PROMPT_TURNS + DECODE_TURNS) / load
    arrives_s = dice.expovariate(1 / every_s)
    waits: list[float] = []
    now = 0.0
    while now < hours * 3600:
        while arrives_s <= now:
            queue.append((arrives_s, 0))
            arrives_s += dice.expovariate(1 / every_s)
        waiting = nets | ({mine: network(1)} if queue else {})
        if not waiting:
            now = arrives_s  # an idle device begins at once
            continue
        turn = turns.next(waiting, now)
        turns.charge(turn, waiting[turn.peer], PASS_S, now, contended=len(waiting) > 1)
        now += PASS_S
        if turn.peer == mine:
            asked_s, had = queue.popleft()
            if had + 1 == PROMPT_TURNS:
                waits.append(now - asked_s)
            if had + 1 < PROMPT_TURNS + DECODE_TURNS:
                queue.appendleft((asked_s, had + 1))
    return waits


def riders(seeds: int) -> dict[str, Any]:
    found = {}
    for load in (0.3, 0.5, 0.6, 0.7, 0.8):
        alone, among = (
            [
                statistics.quantiles(first_token_s(seed, load, count), n=20)[-1]
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
    return {"sybils": sybils(), "split": split(), "riders": riders(seeds)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    print(json.dumps(measure(parser.parse_args().seeds), indent=2))
