"""What a hostile peer does: seeded, by kind, each as far into the node as it gets.

A unit is one stream or one frame that no honest peer sends, or an honest one that is then left
alone. Identities are as cheap as they are in the world: one that is banned is thrown away.

    raw TCP ──▶ noise ──▶ yamux ──▶ negotiation ──▶ identify, ping, directory, relay, session
        foe_links.py                    foe_words.py, foe_nat.py           foe_sessions.py
                                                └──▶ credit, exhibits, registry, views, gossip,
                                                     probes, vouches: foe_news.py

    python -m integration.enemy ADDRESS --model DIGEST --seed 7 --units 1000
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from potluck.errors import RemoteError, TransportError

from . import foe_links, foe_nat, foe_news, foe_sessions, foe_words
from .foe import Foe, Target, open_foe

LANES = 4  # attacks under way at once, each under an identity of its own
BATCH = 48  # units of one identity: below the faults after which it is banned
STREAMS = 8  # of one identity at once

Attack = Callable[[Foe], Awaitable[int]]  # how many units it was

ATTACKS: dict[str, tuple[Attack, float]] = {  # and its share of all units
    "session: mutated bytes": (foe_sessions.session_bytes, 0.13),
    "session: evil values": (foe_sessions.session_values, 0.08),
    "session: lying lengths": (foe_sessions.session_lengths, 0.06),
    "session: unknown messages": (foe_sessions.session_unknown, 0.06),
    "session: half-open": (foe_sessions.session_half_open, 0.02),
    "session: slow readers": (foe_sessions.session_slow_reader, 0.005),
    "directory: mutated bytes": (foe_words.directory_bytes, 0.07),
    "directory: lying lengths": (foe_words.directory_lengths, 0.03),
    "directory: forged records": (foe_words.directory_forged, 0.07),
    "directory: hostile keepers": (foe_words.keeper, 0.005),
    "identify and ping": (foe_words.claims, 0.03),
    "identify: claims pushed": (foe_nat.pushed_claims, 0.025),
    "identify: claims asked for": (foe_nat.asked_claims, 0.005),
    "relay: hop": (foe_nat.relay_hop, 0.05),
    "relay: stop": (foe_nat.relay_stop, 0.02),
    "relay: circuits": (foe_nat.circuits, 0.01),
    "punch": (foe_nat.dcutr, 0.01),
    "dial-back": (foe_nat.dial_back, 0.02),
    "credit": (foe_news.credit, 0.02),
    "exhibits": (foe_news.exhibit, 0.01),
    "registry": (foe_news.registry, 0.02),
    "views": (foe_news.sample, 0.02),
    "gossip": (foe_news.gossip, 0.03),
    "probes": (foe_news.swim, 0.015),
    "vouches": (foe_news.vouch, 0.01),
    "negotiation": (foe_words.negotiation, 0.05),
    "yamux: mutated frames": (foe_links.yamux, 0.06),
    "yamux: rapid resets": (foe_links.rapid_resets, 0.04),
    "noise: garbage": (foe_links.noise_garbage, 0.02),
    "noise: unsealed": (foe_links.sealed_garbage, 0.01),
}


async def attack(target: Target, seed: int, units: int) -> dict[str, object]:
    """Send `units` units, by the shares above. Returns what was sent, and how it ended."""
    left = {kind: math.ceil(units * share) for kind, (_, share) in ATTACKS.items()}
    sent: Counter[str] = Counter()
    ended: dict[str, Counter[str]] = {kind: Counter() for kind in ATTACKS}
    began_s = time.monotonic()

    async def lane(number: int) -> None:
        dice = random.Random(f"{seed}/{number}")
        while open_kinds := [kind for kind in ATTACKS if left[kind] > 0]:
            kind = dice.choices(open_kinds, [left[kind] for kind in open_kinds])[0]
            left[kind] -= (batch := min(BATCH, left[kind]))
            done = await _batch(target, dice, kind, batch, ended[kind])
            sent[kind] += done
            left[kind] += batch - done

    async with trio.open_nursery() as nursery:
        for number in range(LANES):
            nursery.start_soon(lane, number)
    return {
        "units": sent.total(),
        "seconds": round(time.monotonic() - began_s, 1),
        "by_kind": {kind: {"sent": sent[kind], **ended[kind]} for kind in ATTACKS},
    }


async def _batch(
    target: Target, dice: random.Random, kind: str, units: int, ended: Counter[str]
) -> int:
    """Units of one kind under one identity, several at once; how many were sent."""
    run = ATTACKS[kind][0]
    sent = 0
    try:
        async with open_foe(target, dice) as foe:
            foe.ended = ended

            async def work() -> None:
                nonlocal sent
                while sent < units and not foe.spent:
                    try:
                        done = await run(foe)
                        sent += done
                    except (TransportError, RemoteError):
                        foe.spent = True

            async with trio.open_nursery() as nursery:
                for _ in range(STREAMS):
                    nursery.start_soon(work)
    except TransportError:
        ended["not let in"] += 1
    return sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--model", required=True, help="digest")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--units", type=int, default=1000)
    asked = parser.parse_args()
    target = Target(asked.address, asked.model, asked.width, asked.blocks)
    print(json.dumps(trio.run(attack, target, asked.seed, asked.units)))


if __name__ == "__main__":
    main()
