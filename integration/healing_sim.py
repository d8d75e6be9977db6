"""How soon all hold the same records again when a parting ends.

A swarm was parted in halves for longer than records live, so each half knows its own only. From
then on each peer meets another every `ROUND_S` (`HURRY_S` after a meeting that brought something)
and compares as replica.py says, with the daemon's own `Replica`, in a mesh under a virtual clock.
30 % of the peers are liars: they pass nothing on, and whoever meets one is told nothing but records
that were rolled back, and forged ones.

    quiet       nobody refreshes its record: what heals is the comparing alone
    refreshing  for 28 s all refresh every 30 s +-20 %, in the mesh; then nothing new, so that
                hashes can be equal: counted are those who hold something else after 30 s, and
                when nobody does

    python -m integration.healing_sim
    python -m integration.healing_sim --story quiet --peers 1000
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from potluck.crypto.codec import encode
from potluck.crypto.envelope import Envelope
from potluck.crypto.keys import IdentityKey
from potluck.dht.record import REFRESH_S, Record, Stale, check_record
from potluck.errors import RemoteError
from potluck.swarm.replica import HURRY_S, ROUND_S, Give, Listing, Replica, Summary, Want
from potluck.swarm.sim.clock import Clock

from .evidence_sim import LIARS, NOW, announced, key_of
from .gossip_world import Mesh

PEERS = 500
JITTER = 0.2  # of the time between refreshes
SETTLED_S = 2.0
STEP_S = 0.25  # between two looks at all hashes
LONGEST_S = 3 * REFRESH_S

Message = Summary | Listing | tuple[Give, Want] | Give


@dataclass
class Peer:
    key: IdentityKey
    half: int
    replica: Replica
    seq: int = 1
    brought: bool = False  # the last meeting did


class World:
    """Liars are the last numbers."""

    def __init__(self, peers: int, story: str, seed: int) -> None:
        self.dice = Random(seed)
        self.story = story
        self.count = peers
        self.honest = round(peers * (1 - LIARS))
        self.mesh = Mesh(peers, self.dice)
        self.clock = Clock(NOW)
        self.bytes = self.meetings = self.refused = 0
        self.peers = [Peer(key_of(n), n % 2, Replica()) for n in range(self.honest)]
        self.old: list[bytes] = []
        for peer in self.peers:
            self.old.append(announced(peer.key, 4, seq=0, now=NOW - REFRESH_S).raw)
            record = announced(peer.key, 8, now=NOW - self.dice.uniform(0, REFRESH_S))
            for other in self.peers:
                if other.half == peer.half:
                    other.replica.merge(record, NOW)
        for me in range(self.honest):
            self.clock.at(NOW + self.dice.uniform(0, ROUND_S), self._meet, me)
            if story == "refreshing":
                self.clock.at(NOW + self.dice.uniform(0, REFRESH_S), self._refresh, me)

    # ---- comparing

    def _meet(self, me: int) -> None:
        peer = self.peers[me]
        wait_s = HURRY_S if peer.brought else ROUND_S
        peer.brought = False
        self.clock.at(self.clock.now + wait_s, self._meet, me)
        other = self.dice.randrange(self.count - 1)
        other += other >= me
        self.meetings += 1
        self._say(me, other, peer.replica.summary(self.clock.now))

    def _say(self, sender: int, receiver: int, message: Message) -> None:
        parts = message if isinstance(message, tuple) else (message,)
        self.bytes += sum(len(encode(part)) for part in parts)
        when = self.clock.now + self.mesh.delay_s(sender, receiver)
        self.clock.at(when, self._hear, sender, receiver, message)

    def _hear(self, sender: int, me: int, message: Message) -> None:
        now = self.clock.now
        if me >= self.honest:
            if isinstance(message, Summary):
                self._say(me, sender, self._lies())
            return
        replica = self.peers[me].replica
        match message:
            case Summary():
                listing = replica.listing(message, now)
                if listing is not None:
                    self._say(me, sender, listing)
            case Listing():
                self._say(me, sender, replica.compare(message, now))
            case (Give() as given, Want() as want):
                self._take(me, given)
                self._say(me, sender, replica.give(want, now))
            case Give():
                self._take(me, message)

    def _take(self, me: int, given: Give) -> None:
        for raw in given.records:
            try:
                merged = self.peers[me].replica.merge(_checked(raw), self.clock.now)
            except RemoteError:
                self.refused += 1
                continue
            self.peers[me].brought |= merged.news

    def _lies(self) -> Give:
        some = self.dice.sample(self.old, 5)
        forged = [encode(Envelope(bytes(64), bytes(32), self.dice.randbytes(64)))]
        return Give((*some, *forged))

    # ---- refreshing

    def _refresh(self, me: int) -> None:
        now = self.clock.now
        if now > NOW + REFRESH_S - SETTLED_S:
            return
        peer = self.peers[me]
        peer.seq += 1
        record = announced(peer.key, 8, seq=peer.seq, now=now)
        self._gossip(me, me, record)
        wait_s = REFRESH_S * self.dice.uniform(1 - JITTER, 1 + JITTER)
        self.clock.at(now + wait_s, self._refresh, me)

    def _gossip(self, sender: int, me: int, record: Record) -> None:
        try:
            if not self.peers[me].replica.merge(record, self.clock.now).news:
                return
        except Stale:
            return
        for link in sorted(self.mesh.links[me] - {sender}):
            if link < self.honest:
                self.bytes += len(record.raw)
                when = self.clock.now + self.mesh.delay_s(me, link)
                self.clock.at(when, self._gossip, me, link, record)

    # ---- what came of it

    def others(self) -> int:
        """How many hold something else than most do."""
        hashes = Counter(peer.replica.digest(self.clock.now) for peer in self.peers)
        return len(self.peers) - max(hashes.values())

    def measure(self) -> dict[str, Any]:
        told = {"honest": self.honest, "others_before": self.others()}
        quiet_s = 0.0 if self.story == "quiet" else REFRESH_S - SETTLED_S
        alike_s = None
        while alike_s is None and self.clock.now < NOW + LONGEST_S:
            self.clock.run(self.clock.now + STEP_S)
            passed_s = self.clock.now - NOW
            if passed_s == REFRESH_S:
                told["others_after_one_refresh"] = self.others()
            if passed_s > quiet_s and self.others() == 0:
                alike_s = passed_s
        return told | {
            "alike_after_s": alike_s,
            "records_of_each": len(self.peers[0].replica),
            "without_honest_link": sum(
                min(self.mesh.links[me]) >= self.honest for me in range(self.honest)
            ),
            "meetings": self.meetings,
            "lies_refused": self.refused,
            "kilobits_s_of_each": round(self.bytes * 8 / 1000 / passed_s / self.honest, 1),
        }


@cache
def _outcome(raw: bytes) -> Record | RemoteError:
    try:
        return check_record(raw, None, NOW)
    except RemoteError as wrong:
        return wrong


def _checked(raw: bytes) -> Record:
    """As every receiver checks it, but each record once in this process."""
    told = _outcome(raw)
    if isinstance(told, RemoteError):
        raise told
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--story", choices=["quiet", "refreshing"])
    parser.add_argument("--peers", type=int, default=PEERS)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    for story in [asked.story] if asked.story else ["quiet", "refreshing"]:
        began_s = time.process_time()
        told = {"story": story, "peers": asked.peers, "seed": asked.seed}
        told |= World(asked.peers, story, asked.seed).measure()
        told["processor_s"] = round(time.process_time() - began_s, 1)
        told["load_average"] = round(os.getloadavg()[0], 1)
        print(json.dumps(told, indent=2), flush=True)


if __name__ == "__main__":
    main()
