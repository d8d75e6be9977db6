"""Bar E1 in simulation: chunks until the ban against 1 / (p q), by the rules of swarm/audit.py.

    python -m integration.audit_sim [--runs 400]

A client sends sessions of one chunk through three peers each time, drawn from twelve of which three
cheat, audits by receipts' lots, takes disputes to peers drawn the same way, and bans whom it
convicts. A cheat is seen through with probability q (a comparison that misses one calls it right).
Of longer sessions tells audit_law.py.

    trusted    every peer has 200 valid audits behind it, so that the rate is at its floor: cheated
               chunks until the ban of each cheater, which should be geometric with p q
    new        nobody is known; the same
    honest     audits of honest peers until one is banned: never, while 30 % of the peers that are
               asked lie together about whom they audit
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from dataclasses import dataclass, field
from typing import Any

from potluck.swarm.audit import (
    AuditConfig,
    Dispute,
    Lots,
    Signed,
    choose_auditor,
    draw,
    draw_whole,
    rate,
)
from potluck.swarm.reputation import Reputation

PEERS, CHEATERS, HOPS = 12, 3, 3
CHUNK_S = 2.0  # between two chunks of one session
CONFIG = AuditConfig(floor=0.05)


@dataclass
class World:
    """One client's run. cheats: with which probability each peer cheats in a chunk."""

    seed: int
    cheats: dict[str, float]
    seen: float  # q
    liars: frozenset[str] = frozenset()  # who, asked to audit, confirms or invents what suits them
    know: int = 0  # valid audits that everybody has behind it at the start
    now: float = 0.0
    cheated: dict[str, int] = field(default_factory=dict)
    banned_at: dict[str, int] = field(default_factory=dict)  # cheated chunks until then
    audits: int = 0
    asked: int = 0  # computations by others
    number: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.lots = Lots(self.dice.randbytes(32))
        self.book = Reputation()
        for peer in self.cheats:
            self.cheated[peer] = 0
            for _ in range(self.know):
                self.book.audited(peer, right=True, weight=1, now=self.now)

    def chunk(self) -> None:
        """One chunk, through HOPS peers that are not banned; what was drawn of it is audited."""
        self.now += CHUNK_S
        usable = [peer for peer in self.cheats if not self.book.banned(peer, self.now)]
        for peer in self.dice.sample(usable, min(HOPS, len(usable))):
            self.number += 1
            false = self.dice.random() < self.cheats[peer]
            self.cheated[peer] += false
            signed = Signed(peer, self.number.to_bytes(32), 0, 32, 32)
            looked = draw([signed], self.lots, self._rate, CONFIG)
            if looked or draw_whole(signed.name, self._rate(peer), self.lots, CONFIG):
                self._audit(signed, false and self.dice.random() < self.seen, usable)

    def _rate(self, peer: str) -> float:
        return rate(self.book.valid(peer), self.book.trust(peer, self.now), CONFIG)

    def _audit(self, signed: Signed, visible: bool, usable: list[str]) -> None:
        """Who is honest gives the right answer. Liars give the accused's when it cheated, and one
        of their own against an honest accused: the same each time."""
        self.audits += 1
        answers = {signed.peer: "false" if visible else "right"}
        auditor = choose_auditor(usable, self.lots, signed.name, avoid=answers)
        assert auditor is not None
        dispute = Dispute(signed.peer, auditor)
        self._answer(dispute, answers, auditor, signed.peer)
        turn = 0
        while (found := dispute.outcome(lambda peer: self.book.mean(peer, self.now))).ask:
            turn += 1
            third = choose_auditor(usable, self.lots, signed.name, avoid=answers, turn=turn)
            if third is None:
                break
            dispute.add(third)
            self._answer(dispute, answers, third, signed.peer)
        for peer in found.right:
            self.book.audited(peer, right=True, weight=1, now=self.now)
        for peer in found.wrong:
            self.book.audited(peer, right=False, weight=1, now=self.now)
            self.book.convict(peer, self.now)
            self.banned_at[peer] = self.cheated[peer]
        if not found.right:
            for peer in found.doubted:
                self.book.doubted(peer, weight=1, now=self.now)

    def _answer(self, dispute: Dispute, answers: dict[str, str], peer: str, accused: str) -> None:
        self.asked += 1
        lie = answers[accused] if accused in self.liars else "a lie"
        answer = lie if peer in self.liars else "right"
        for other, told in answers.items():
            if told == answer:
                dispute.agree(peer, other)
        answers[peer] = answer


def cheaters(cheat: float, seed: int) -> dict[str, float]:
    order = [f"peer {number}" for number in range(PEERS)]
    bad = set(random.Random(seed).sample(order, CHEATERS))
    return {peer: cheat if peer in bad else 0.0 for peer in order}


def until_ban(runs: int, cheat: float, seen: float, know: int) -> dict[str, Any]:
    """Cheated chunks until each cheater's ban; the rate is held at its floor where all are known:
    200 valid audits, and more with each that passes."""
    counts: list[int] = []
    wrong_bans = unbanned = 0
    for seed in range(runs):
        world = World(seed, cheaters(cheat, seed), seen, know=know)
        bad = {peer for peer, often in world.cheats.items() if often}
        chunks = 0
        while len(world.banned_at.keys() & bad) < len(bad) and chunks < 10_000:
            world.chunk()
            chunks += 1
        counts += [world.banned_at[peer] for peer in bad if peer in world.banned_at]
        unbanned += len(bad - world.banned_at.keys())
        wrong_bans += len(world.banned_at.keys() - bad)
    if len(counts) < 2:
        return {"cheaters": len(counts), "not_banned": unbanned, "honest_banned": wrong_bans}
    mean = statistics.mean(counts)
    half = 1.96 * statistics.stdev(counts) / math.sqrt(len(counts))
    expected = 1 / (CONFIG.floor * seen)
    return {
        "cheaters": len(counts),
        "mean": round(mean, 2),
        "interval_95": [round(mean - half, 2), round(mean + half, 2)],
        "expected_1_over_pq": round(expected, 2) if know else round(1 / seen, 2),
        "p95": sorted(counts)[int(0.95 * len(counts))],
        "expected_p95": round(math.log(0.05) / math.log(1 - CONFIG.floor * seen), 1),
        "not_banned": unbanned,
        "honest_banned": wrong_bans,
    }


def honest_bans(runs: int, liars: int, know: int, chunks: int = 4000) -> dict[str, Any]:
    """Nobody cheats in its own work, but so many lie together when they are asked to audit."""
    banned = caught = audits = asked = 0
    for seed in range(runs):
        world = World(seed, cheaters(0.0, seed), 1.0, know=know)
        world.liars = frozenset(random.Random(seed).sample(sorted(world.cheats), liars))
        for _ in range(chunks):
            world.chunk()
        banned += len(world.banned_at.keys() - world.liars)
        caught += len(world.banned_at.keys() & world.liars)
        audits += world.audits
        asked += world.asked
    return {
        "audits": audits,
        "honest_banned": banned,
        "liars_banned": f"{caught} of {liars * runs}",
        "computations_an_audit": round(asked / audits, 3),
    }


def measure(runs: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for cheat, seen in ((1.0, 0.99), (0.1, 0.99), (1.0, 0.5), (0.1, 0.5)):
        found[f"trusted: cheats in {cheat:.0%} of chunks, q {seen}"] = until_ban(
            runs, cheat, seen, 200
        )
    for cheat, seen in ((1.0, 0.99), (0.1, 0.99)):
        found[f"new: cheats in {cheat:.0%} of chunks, q {seen}"] = until_ban(runs, cheat, seen, 0)
    for liars in (1, 3, 4):
        found[f"{liars} of 12 lie when they audit, nobody known"] = honest_bans(
            max(1, runs // 20), liars, 0
        )
    found["4 of 12 were honest for 200 audits, then lie together"] = honest_bans(
        max(1, runs // 20), 4, 200
    )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    print(json.dumps(measure(parser.parse_args().runs), indent=2))
