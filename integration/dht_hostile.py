"""Look-ups among liars: 30 % of the peers are hostile, and the right record is found all the same.

Real directories under a virtual clock (dht_world.py), and a small swarm of real hosts. The hostile
know one another and every honest peer, are known to all, and each behaves in one way:

    drop      takes every question, answers none
    deny      knows nobody and nothing, and says that it keeps what it throws away
    old       hands out the first version that it ever saw of each record
    forge     hands out records with broken or foreign signatures
    route     names only its own kind, and peers that do not exist
    eclipse   all of them, with ids ground so that they are the closest to one key

A look-up is right when it returns the owner's newest version and nothing else.

    python -m integration.dht_hostile                 the bar: minutes
    python -m integration.dht_hostile --seeds 2
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from typing import Any

import trio

from potluck.crypto.codec import decode, encode
from potluck.crypto.envelope import Envelope
from potluck.crypto.keys import IdentityKey
from potluck.dht.calls import Stream
from potluck.dht.keyspace import distance, peer_point, spans_of
from potluck.dht.message import (
    CONTACTS_MAX,
    PROTOCOL,
    Contact,
    Fetch,
    Fetched,
    Find,
    Found,
    FrameReader,
    Hello,
    Kept,
    Put,
    Reply,
    Request,
    read_request,
    to_frame,
)
from potluck.dht.record import REFRESH_S, check_record
from potluck.errors import RemoteError

from .dht_world import Peer, Road, World, run

KINDS = ("drop", "deny", "old", "forge", "route")
HOSTILE_SHARE = 0.3
PEERS = 100
LOOKUPS = 150  # in each world
SEEDS = 8
GROUND = 200  # ids that an attacker tries for each that he uses


class Gang:
    """All that the hostile share: who they are, what they saw."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.foes: list[Foe] = []
        self.first_seen: dict[tuple[bytes, str], bytes] = {}
        self.answers: Counter[str] = Counter()

    def add(self, kind: str, key: IdentityKey) -> None:
        road = self.world.road(key.peer_id)
        foe = Foe(self, kind, key, road)
        road.handle(PROTOCOL, foe.serve)
        self.foes.append(foe)

    def nearest(self, place: bytes) -> tuple[Contact, ...]:
        contacts = [Contact(foe.key.peer_id, foe.road.addresses()) for foe in self.foes]
        near = nsmallest(
            CONTACTS_MAX, contacts, key=lambda one: distance(peer_point(one.peer), place)
        )
        return tuple(near)

    async def push(self, victims: Sequence[Peer]) -> None:
        """Speak to every victim, so that its table may hold us."""
        async with trio.open_nursery() as nursery:
            for foe in self.foes:
                for victim in victims:
                    nursery.start_soon(foe.greet, victim.key.peer_id)


@dataclass(eq=False)
class Foe:
    gang: Gang
    kind: str
    key: IdentityKey
    road: Road

    def hello(self) -> Hello:
        return Hello(self.road.addresses(), True)

    async def greet(self, victim: str) -> None:
        stream = await self.road.open_stream(victim, PROTOCOL)
        await stream.send(to_frame(self.hello()))
        await stream.send(to_frame(Find(1, peer_point(victim), False, b"")))
        await stream.receive()
        stream.reset_now()

    async def serve(self, stream: Stream) -> None:
        frames = FrameReader(1 << 20)
        while piece := await stream.receive():
            frames.feed(piece)
            while (raw := frames.next()) is not None:
                reply = self._reply(read_request(raw))
                if reply is not None:
                    await stream.send(to_frame(reply))

    def _reply(self, request: Request) -> Reply | None:
        self.gang.answers[self.kind] += 1
        match request:
            case Hello():
                return self.hello()
            case Put(number, records):
                for raw in records:
                    self._see(raw)
                return None if self.kind == "drop" else Kept(number, (True,) * len(records))
            case Fetch(number):
                return None if self.kind == "drop" else Fetched(number, ())
            case Find():
                return None if self.kind == "drop" else self._found(request)

    def _found(self, find: Find) -> Found:
        near = self.gang.nearest(find.place)
        old = [raw for (place, _), raw in self.gang.first_seen.items() if place == find.place]
        match self.kind:
            case "deny":
                return Found(find.id, (), ())
            case "old":
                return Found(find.id, near, tuple(old) if find.want else ())
            case "forge":
                return Found(find.id, near, tuple(self._forge(raw) for raw in old))
            case "route":
                dice = self.gang.world.dice
                nobody = IdentityKey.from_bytes(dice.randbytes(32)).peer_id
                return Found(find.id, (*near[:-1], Contact(nobody, near[0].addresses)), ())
            case _:
                return Found(find.id, near, ())

    def _see(self, raw: bytes) -> None:
        try:
            record = check_record(raw, None, self.gang.world.peers[0].directory._wall())
        except RemoteError:
            return
        self.gang.first_seen.setdefault((record.slot.place, record.slot.peer), raw)

    def _forge(self, raw: bytes) -> bytes:
        """The body with one byte other than its owner signed, or signed by ourselves."""
        envelope = decode(raw, Envelope)
        if self.gang.world.dice.random() < 0.5:
            return encode(replace(envelope, signature=self.key.sign(envelope.body)))
        body = bytearray(envelope.body)
        body[-1] ^= 1
        return encode(replace(envelope, body=bytes(body)))


@dataclass(slots=True)
class Count:
    lookups: int = 0
    right: int = 0
    empty: int = 0
    wrong: int = 0  # an old or forged version was believed
    seconds: list[float] | None = None

    async def look(self, reader: Peer, owner: Peer) -> None:
        began_s = trio.current_time()
        found = await reader.directory.find(owner.model)
        self.lookups += 1
        told = [(one.peer, one.cache_tokens_free) for one in found]
        right = told == [(owner.key.peer_id, owner.version)]
        self.right += right
        self.empty += not told
        self.wrong += bool(told) and not right
        if self.seconds is not None:
            self.seconds.append(trio.current_time() - began_s)


async def _mixed(world: World, peers: int, lookups: int) -> Count:
    """All kinds at once; hostile and honest peers come in any order."""
    gang, count = Gang(world), Count(seconds=[])
    hostile = round(peers * HOSTILE_SHARE)
    order = ["honest"] * (peers - hostile - 1) + ["foe"] * hostile
    world.dice.shuffle(order)
    first = await world.join()
    for number, who in enumerate(order):
        if who == "foe":
            kind = KINDS[number % len(KINDS)]
            gang.add(kind, IdentityKey.from_bytes(world.dice.randbytes(32)))
            continue
        await gang.push(world.peers[-1:])
        await world.join(first.road.addresses())
    await gang.push(world.peers)
    return await _announce_and_look(world, world.peers, lookups, count)


async def _eclipse(world: World, peers: int, lookups: int) -> Count:
    """Every hostile peer is closer to one key than any honest one."""
    gang, count = Gang(world), Count(seconds=[])
    hostile = round(peers * HOSTILE_SHARE)
    first = await world.join()
    while len(world.peers) < peers - hostile:
        await world.join(first.road.addresses())
    owner = world.dice.choice(world.peers[1:])
    place = spans_of(owner.model)
    tries = [IdentityKey.from_bytes(world.dice.randbytes(32)) for _ in range(hostile * GROUND)]
    tries.sort(key=lambda key: distance(peer_point(key.peer_id), place))
    for key in tries[:hostile]:
        gang.add("eclipse", key)
    await gang.push(world.peers)
    return await _announce_and_look(world, [owner], lookups, count)


async def _announce_and_look(
    world: World, owners: Sequence[Peer], lookups: int, count: Count
) -> Count:
    for _ in range(2):  # the first version is what some of the hostile hand out for ever
        for owner in owners:
            await owner.announce()
    while count.lookups < lookups:
        owner = world.dice.choice(owners)
        reader = world.dice.choice(world.peers)
        if reader is owner:
            continue
        if count.lookups % 20 == 19 or trio.current_time() - owner.announced_s > REFRESH_S:
            await owner.announce()
        await count.look(reader, owner)
    return count


def measure(
    seeds: int = SEEDS, *, peers: int = PEERS, lookups: int = LOOKUPS, first_seed: int = 1
) -> dict[str, Any]:
    """Both attacks, each in `seeds` worlds."""
    found: dict[str, Any] = {"peers": peers, "hostile": round(peers * HOSTILE_SHARE)}
    began_s = time.process_time()
    for name, story in (("mixed", _mixed), ("eclipse", _eclipse)):
        counts = [
            run(lambda world, story=story: story(world, peers, lookups), seed=seed)
            for seed in range(first_seed, first_seed + seeds)
        ]
        total = sum(count.lookups for count in counts)
        seconds = sorted(s for count in counts for s in count.seconds or ())
        found[name] = {
            "lookups": total,
            "right_share": round(sum(count.right for count in counts) / total, 5),
            "worst_seed_share": round(min(count.right / count.lookups for count in counts), 5),
            "empty": sum(count.empty for count in counts),
            "wrong": sum(count.wrong for count in counts),
            "seconds_p50": round(seconds[total // 2], 3),
            "seconds_p95": round(seconds[int(total * 0.95)], 3),
        }
    return found | {
        "processor_s": round(time.process_time() - began_s, 1),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--peers", type=int, default=PEERS)
    parser.add_argument("--lookups", type=int, default=LOOKUPS)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.seeds, peers=asked.peers, lookups=asked.lookups), indent=2))


if __name__ == "__main__":
    main()
