"""How fast a liar is known to all, and whom a flood of false evidence gets banned.

The daemon's own `Replica` and `Evidence`, in a mesh (gossip_world.py) under a virtual clock.

    equivocators  10,000 peers, 30 % of them silent: they pass nothing on. Some of them sign two
                  records for one time, and tell half of their neighbours the one, half the other.
                  Measured: when 99 % of the honest have banned each.
    accusers      240 peers who serve one of 8 parts of a model, 30 % of them liars whom others
                  trust like honest peers. Each liar accuses an honest peer of work that was right,
                  and all liars attest that it was wrong; honest peers of the same part compute it
                  again, and so find a few accusations that are true. Each liar also sends forged
                  contradictions. Items come to all, some seconds later.
                  Measured: who is banned by whom.

Signatures are made and checked as they are, but each statement only once in a process: all would
find the same.

    python -m integration.evidence_sim                               both, some minutes
    python -m integration.evidence_sim --story equivocators --peers 1000
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from random import Random
from typing import Any

from potluck.crypto.codec import encode
from potluck.crypto.digest import digest
from potluck.crypto.envelope import sign
from potluck.crypto.keys import IdentityKey
from potluck.dht.record import DOMAIN, Record, check_record, sign_fact
from potluck.errors import RemoteError
from potluck.swarm import evidence
from potluck.swarm.banned import Ban
from potluck.swarm.evidence import (
    KNOWN_MIN_S,
    Attest,
    Effect,
    Evidence,
    Pass,
    Received,
    Recompute,
    Recomputed,
    Standing,
)
from potluck.swarm.machine import Fired, SetTimer
from potluck.swarm.receipt import CHUNK, OPENING, Chunk, Opening
from potluck.swarm.replica import Replica
from potluck.swarm.sim.clock import Clock
from potluck.swarm.testimony import (
    Accusation,
    Attestation,
    Case,
    Contradiction,
    Item,
    check_accusation,
    check_attestation,
    check_contradiction,
    contradiction_of,
    sign_accusation,
    sign_attestation,
)

from .forgery import announcement
from .gossip_world import Mesh

LIARS = 0.3
NOW = 1_900_000_000.0
MODEL = "ab" * 32
PARTS = 8  # of the model, that peers serve one of
AUDITED = 0.3  # of the others, whom a peer has audited
TRUST = (0.6, 0.95)
NETWORKS = 200  # /16s
COMPUTE_S = (2.0, 20.0)  # guess: until a peer has computed an accusation again
SPREAD_S = (0.1, 2.0)  # until an item has come to a peer


def key_of(number: int) -> IdentityKey:
    return IdentityKey.from_bytes(digest("sim key", number.to_bytes(4)))


def announced(key: IdentityKey, stop: int, *, seq: int = 1, now: float = NOW) -> Record:
    fact = replace(announcement(MODEL, key.peer_id), stop=stop)
    return sign_fact(key, fact, boot=1, seq=seq, now=now)


def accusation_of(accused: IdentityKey, part: int, dice: Random) -> Accusation:
    """Of work in this part of the model, which the accused has signed."""
    opening = Opening(
        dice.randbytes(16), dice.randbytes(16), NOW, bytes(32), "none", part, part + 1, 64, "f32",
    )  # fmt: skip
    some = digest("sim", dice.randbytes(8))
    return Accusation(
        accused.peer_id, sign(accused, OPENING, encode(opening)),
        sign(accused, CHUNK, encode(Chunk(some, 0, 32, 32, some, some))), some, 0.2, NOW,
    )  # fmt: skip


class Equivocators:
    """Silent liars are the last numbers; the first of them say two things."""

    def __init__(self, peers: int, equivocators: int, seed: int) -> None:
        dice = Random(seed)
        self.honest = round(peers * (1 - LIARS))
        self.mesh = Mesh(peers, dice)
        self.clock = Clock(NOW)
        self.replicas = [Replica() for _ in range(self.honest)]
        self.evidence = [Evidence(f"peer {n}", lambda peer, _: None) for n in range(self.honest)]
        self.banned_s: dict[str, list[float]] = {}
        self.messages = 0
        self.false_bans = 0
        for number in range(self.honest, self.honest + equivocators):
            key = key_of(number)
            self.banned_s[key.peer_id] = []
            versions = announced(key, 4).raw, announced(key, 8).raw
            for place, link in enumerate(sorted(self.mesh.links[number])):
                self._send(number, link, versions[place % 2])

    def _send(self, sender: int, receiver: int, what: bytes | Item) -> None:
        if receiver < self.honest:
            when = self.clock.now + self.mesh.delay_s(sender, receiver)
            self.clock.at(when, self._receive, sender, receiver, what)

    def _receive(self, sender: int, me: int, what: bytes | Item) -> None:
        self.messages += 1
        now = self.clock.now
        if isinstance(what, bytes):
            merged = self.replicas[me].merge(_checked(what), now)
            if merged.news:
                self._tell(me, what, but=sender)
            if merged.proof is None:
                return
            what, sender = merged.proof, me
        for effect in self.evidence[me].handle(Received(what), now):
            if isinstance(effect, Ban):
                self.banned_s[effect.peer].append(now - NOW)
            if isinstance(effect, Pass):
                self._tell(me, effect.item, but=sender)

    def _tell(self, me: int, what: bytes | Item, *, but: int) -> None:
        for link in sorted(self.mesh.links[me] - {but}):
            self._send(me, link, what)

    def measure(self) -> dict[str, Any]:
        self.clock.run(NOW + 60)
        most = round(0.99 * self.honest)
        times = [sorted(found) for found in self.banned_s.values()]
        return {
            "honest": self.honest,
            "equivocators": len(times),
            "known_to": [len(found) for found in times],
            "known_to_99_percent_s": [
                round(found[most - 1], 3) if len(found) >= most else None for found in times
            ],
            "messages": self.messages,
        }


class Accusers:
    """Peers 0..liars-1 lie. Peer n serves part n % PARTS."""

    def __init__(self, peers: int, true_ones: int, seed: int) -> None:
        self.dice = Random(seed)
        self.liars = round(peers * LIARS)
        self.keys = [key_of(n) for n in range(peers)]
        self.number = {key.peer_id: n for n, key in enumerate(self.keys)}
        self.network = [str(self.dice.randrange(NETWORKS)) for _ in range(peers)]
        self.clock = Clock(NOW)
        self.machines = {
            n: Evidence(self.keys[n].peer_id, self._standing_of()) for n in range(self.liars, peers)
        }
        self.bans: Counter[tuple[str, str]] = Counter()  # (who, on what grounds)
        self.refused = 0
        self.right: dict[bytes, bool] = {}
        for liar in range(self.liars):
            victim = self.dice.randrange(self.liars, peers)
            self._accuse(liar, victim, right=True)
            self._forge(liar, victim)
        for _ in range(true_ones):
            accuser = self.dice.randrange(self.liars, peers)
            self._accuse(accuser, self.dice.randrange(self.liars), right=False)

    def _standing_of(self) -> Any:
        """What one peer has found of the others in its audits."""
        found = {
            number: Standing(
                self.dice.uniform(*TRUST) if self.dice.random() < AUDITED else 0.0,
                self.network[number], KNOWN_MIN_S,
            )
            for number in range(len(self.keys))
        }  # fmt: skip

        def standing(peer: str, opening: Opening) -> Standing | None:
            number = self.number[peer]
            return found[number] if number % PARTS == opening.start else None

        return standing

    def _accuse(self, accuser: int, accused: int, *, right: bool) -> None:
        """right: the accused's work was."""
        told = accusation_of(self.keys[accused], accused % PARTS, self.dice)
        item = sign_accusation(self.keys[accuser], told)
        id = check_accusation(item).id
        self.right[id] = right
        self._spread(item)
        for liar in range(self.liars):  # they say the contrary of what is
            lie = Attestation(id, "wrong" if right else "right", NOW)
            attested = sign_attestation(self.keys[liar], lie)
            self.clock.at(NOW + SPREAD_S[1], self._spread, attested)  # when all know the case

    def _forge(self, liar: int, victim: int) -> None:
        """Of an honest peer's two records, one a second later, as if they were of one time."""
        one, other = announced(self.keys[victim], 4), announced(self.keys[liar], 8)
        self._spread(contradiction_of(DOMAIN, one.raw, other.raw))

    def _spread(self, item: Item) -> None:
        for me in self.machines:
            delay_s = self.dice.uniform(*SPREAD_S)
            self.clock.at(self.clock.now + delay_s, self._receive, me, Received(item))

    def _receive(self, me: int, event: evidence.Event) -> None:
        try:
            effects = self.machines[me].handle(event, self.clock.now)
        except RemoteError:
            self.refused += 1
            return
        for effect in effects:
            self._perform(me, effect)

    def _perform(self, me: int, effect: Effect) -> None:
        match effect:
            case SetTimer(key, at_s):
                self.clock.at(at_s, self._receive, me, Fired(key))
            case Recompute(case) if self._serves(me, case):
                verdict = "right" if self.right[case.id] else "wrong"
                delay_s = self.dice.uniform(*COMPUTE_S)
                event = Recomputed(case.id, verdict)  # type: ignore[arg-type]
                self.clock.at(self.clock.now + delay_s, self._receive, me, event)
            case Attest(told):
                self._spread(sign_attestation(self.keys[me], told))
            case Ban(peer, _, grounds, _):
                who = "liar" if self.number[peer] < self.liars else "honest"
                self.bans[who, grounds] += 1

    def _serves(self, me: int, case: Case) -> bool:
        return me % PARTS == case.opening.start

    def measure(self) -> dict[str, Any]:
        self.clock.run(NOW + 120)
        return {
            "honest": len(self.machines),
            "liars": self.liars,
            "false_accusations": sum(self.right.values()),
            "true_accusations": len(self.right) - sum(self.right.values()),
            "refused_items": self.refused,
            "honest_banned": sum(n for (who, _), n in self.bans.items() if who == "honest"),
            "bans": {f"{who}, {grounds}": n for (who, grounds), n in sorted(self.bans.items())},
        }


@lru_cache(maxsize=1024)
def _checked(raw: bytes) -> Record:
    return check_record(raw, None, NOW)


def _check_once() -> None:
    """A process needs to check a statement only once: who passes it on changes nothing."""
    evidence.check_accusation = lru_cache(maxsize=None)(check_accusation)
    evidence.check_attestation = lru_cache(maxsize=None)(check_attestation)
    cached = lru_cache(maxsize=None)(_verdict_of)

    def check(item: Contradiction) -> str:
        told = cached(item)
        if isinstance(told, RemoteError):
            raise told
        return told

    evidence.check_contradiction = check


def _verdict_of(item: Contradiction) -> str | RemoteError:
    try:
        return check_contradiction(item)
    except RemoteError as wrong:
        return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--story", choices=["equivocators", "accusers"])
    parser.add_argument("--peers", type=int)
    parser.add_argument("--equivocators", type=int, default=5)
    parser.add_argument("--true-ones", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    _check_once()
    for story in [asked.story] if asked.story else ["equivocators", "accusers"]:
        began_s = time.process_time()
        world: Equivocators | Accusers
        if story == "equivocators":
            world = Equivocators(asked.peers or 10_000, asked.equivocators, asked.seed)
        else:
            world = Accusers(asked.peers or 240, asked.true_ones, asked.seed)
        told = {"story": story, "seed": asked.seed} | world.measure()
        told["processor_s"] = round(time.process_time() - began_s, 1)
        told["load_average"] = round(os.getloadavg()[0], 1)
        print(json.dumps(told, indent=2), flush=True)


if __name__ == "__main__":
    main()
