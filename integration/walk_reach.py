"""Of how many peers one hears on a walk through the directory of a large swarm, liars and honest.

The daemon's own `Lookup`, asked for a random place; every honest peer's routing table is full, with
liars in proportion; whoever lies answers with the twenty liars that are nearest to the place.

    python -m integration.walk_reach              16 walks among 10,000 peers: half a minute
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from heapq import nsmallest
from random import Random
from statistics import mean
from typing import Any

from potluck.dht.keyspace import PLACE_BYTES, peer_point
from potluck.dht.lookup import ASKS_MAX, PATHS, Lookup
from potluck.dht.message import CONTACTS_MAX, Contact
from potluck.dht.table import BUCKET_SIZE

STEP_S = 0.01  # between two looks at the clock; nobody is slow


class Swarm:
    """Peers 0..liars-1 lie."""

    def __init__(self, peers: int, liars: float, seed: int) -> None:
        self.dice = Random(seed)
        self.contacts = [Contact(f"peer {number}", ()) for number in range(peers)]
        self.points = [int.from_bytes(peer_point(one.peer)) for one in self.contacts]
        self.number = {one.peer: number for number, one in enumerate(self.contacts)}
        self.liars = range(round(liars * peers))
        self.table = cache(self._table)

    def _table(self, me: int) -> list[int]:
        buckets: dict[int, list[int]] = {}
        for other in self.dice.sample(range(len(self.points)), len(self.points)):
            bucket = buckets.setdefault((self.points[me] ^ self.points[other]).bit_length(), [])
            if other != me and len(bucket) < BUCKET_SIZE:
                bucket.append(other)
        return [other for bucket in buckets.values() for other in bucket]

    def _nearest(self, place: bytes, among: range | list[int]) -> list[Contact]:
        target = int.from_bytes(place)
        near = nsmallest(CONTACTS_MAX, among, key=lambda number: self.points[number] ^ target)
        return [self.contacts[number] for number in near]

    def answer(self, peer: int, place: bytes) -> list[Contact]:
        return self._nearest(place, self.liars if peer in self.liars else self.table(peer))

    def walk(self) -> tuple[int, set[int]]:
        """(how many answered, of whom it heard), by an honest peer."""
        me = self.dice.randrange(len(self.liars), len(self.points))
        place = self.dice.randbytes(PLACE_BYTES)
        lookup = Lookup(place, self.answer(me, place), me=self.contacts[me].peer)
        now = 0.0
        while not lookup.done():
            now += STEP_S
            for contact in lookup.next(now):
                lookup.answered(contact.peer, self.answer(self.number[contact.peer], place))
        heard = {self.number[contact.peer] for contact in lookup.heard()}
        return len(lookup.closest(PATHS * ASKS_MAX)), heard


def measure(peers: int = 10_000, walks: int = 16, liars: float = 0.3, seed: int = 5) -> Any:
    swarm = Swarm(peers, liars, seed)
    found = [swarm.walk() for _ in range(walks)]
    honest = [sum(number not in swarm.liars for number in heard) for _, heard in found]
    return {
        "peers": peers,
        "liars": len(swarm.liars),
        "answered": round(mean(answered for answered, _ in found), 1),
        "heard_of": round(mean(len(heard) for _, heard in found), 1),
        "honest_heard_of": round(mean(honest), 1),
        "least_and_most": [min(honest), max(honest)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--walks", type=int, default=16)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.peers, asked.walks), indent=2))


if __name__ == "__main__":
    main()
