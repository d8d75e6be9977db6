"""Issue F, bar 6: sixteen peers train one adapter in a guarded group, and seven of them lie.

    python -m integration.guarded [--peers 16] [--liars 7] [--steps 60]      one JSON line

Every peer is a host of its own on loopback, all in one process. The adapter is a low-rank one of
the demo model's last block, its text the docstrings of installed packages (as in
node/compute/average/lab.py); batches come from the group's coin. Each liar sends other weights than
its batches give, in every step, by an attack of node/compute/average/attacks.py or one that only a
validator can see; as validators and as judges liars find one another innocent. It ends when all of
them are convicted. How long that takes is chance: guarded_draws.py has the figure of many groups.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import trio
from torch import Tensor

from potluck.crypto.keys import IdentityKey
from potluck.errors import TransportError
from potluck.node.compute.average.attacks import LABEL_FLIP
from potluck.node.compute.average.band import Band, Diet
from potluck.node.compute.average.lab import SCORED_TOKENS
from potluck.node.compute.average.liar import Liar
from potluck.node.compute.average.reading import FOR_SCORE, TO_TRAIN, read_text
from potluck.node.compute.average.rules import RULES as AVERAGES
from potluck.node.net.host import HostConfig, open_host
from potluck.node.runs.btard import GuardedExchange
from potluck.node.runs.btard_place import Conviction, Place, Rules
from potluck.swarm.run.btard_events import Found, Judge
from potluck.swarm.run.coin import elect

from .guarded_draws import bound

INNER_STEPS = 2
TOKENS = 64
RATE = 3e-3
RULES = Rules(radius=0.1, gather_s=120.0, phase_s=8.0, check_s=60.0)
RUN = b"bar six of issue F, guarded runs"


class School:
    """The model and its text: one for all peers, who come one at a time."""

    def __init__(self, windows: int) -> None:
        """windows: of text, of each package."""
        text = read_text(windows)
        self._band = Band(Diet(1, TOKENS, RATE, None, seed=1), text)
        self._learnt = text.tokens(TO_TRAIN)
        held = text.tokens(FOR_SCORE)
        self._held = held[:: max(len(held) // SCORED_TOKENS, 1)][:SCORED_TOKENS]
        self._lock = threading.Lock()
        self.begin = self._band.weights()[0].clone()

    def trains(self, anchor: Tensor, seed: bytes, flipped: int = 0) -> Tensor:
        band, dice = self._band, torch.Generator().manual_seed(int.from_bytes(seed[:7]))
        with self._lock:
            band.put(anchor[None])
            band.forget()
            for _ in range(INNER_STEPS):
                picks = torch.randint(len(self._learnt), (1, TOKENS), generator=dice)
                band.step(self._learnt[picks], flipped)
            return band.weights()[0].clone()

    def loss(self, weights: Tensor) -> float:
        with self._lock:
            return float(self._band.losses(weights[None], self._held)[0])


MORE = "a tenth more"
LIES = ("sign flip", "inner product", "noise", "constant", "delayed", LABEL_FLIP, MORE)


class Lies:
    """What one liar says in place of its own weights. It sees nobody else's, and aims by them."""

    def __init__(self, name: str, school: School, seed: int) -> None:
        self._name, self._school = name, school
        self._liar: Liar | None = None
        if name not in (LABEL_FLIP, MORE):
            self._liar = Liar(name, AVERAGES["mean"], liars=1, asked=1, believed=0, seed=seed)
            self._liar.heard("me", school.begin)  # who delays says this at first

    def of(self, anchor: Tensor, seed: bytes, honest: Tensor) -> Tensor:
        if self._liar is None:
            if self._name == MORE:
                return anchor + 1.1 * (honest - anchor)
            return self._school.trains(anchor, seed, 1)
        self._liar.begin(anchor)
        self._liar.heard("me", honest)
        told = self._liar.reply("me")
        assert told is not None
        return told


class Loyal(GuardedExchange):
    """A liar's. fellows: all that lie."""

    fellows: frozenset[str] = frozenset()

    def _begin(self, number: int, contribution: bytes) -> Any:
        step = super()._begin(number, contribution)
        judge, roster = step.shop.judge, step.terms.roster

        def judged(job: Judge) -> Found:
            return Found(()) if roster[job.case.about] in self.fellows else judge(job)

        step.shop.judge = judged  # type: ignore[method-assign]
        return step


@dataclass
class Peer:
    """One of them. lies: None for the honest. caught: by peer, at which attempt. escaped: liars
    whom somebody honest had drawn in an attempt that stands."""

    group: GuardedExchange
    school: School
    lie: str = ""
    lies: Lies | None = None
    liars: frozenset[str] = frozenset()
    escaped: int = 0
    weights: Tensor = field(default_factory=lambda: torch.zeros(0))
    caught: dict[str, int] = field(default_factory=dict)
    why: str = ""

    def told(self, conviction: Conviction) -> None:
        self.caught.setdefault(conviction.peer, self.group.attempts)

    async def go(self, steps: int, honest: int) -> None:
        for step in range(steps):
            if len(self.group.place.roster) <= honest:
                return
            anchor, seed = self.weights, self.group.seed
            mine = await trio.to_thread.run_sync(self.school.trains, anchor, seed)
            if self.lies is not None:
                mine = await trio.to_thread.run_sync(self.lies.of, anchor, seed, mine)
            try:
                found = await self.group.exchange(step, mine, 1)
            except TransportError as error:
                self.why = str(error)
                return
            self.weights = found.weights
            for by, about in elect(self.group.place.coin, found.peers, RULES.validators):
                self.escaped += by not in self.liars and about in self.liars


async def run(peers: int, liars: int, steps: int, seed: int, windows: int) -> dict[str, Any]:
    dice = random.Random(seed)
    school = await trio.to_thread.run_sync(School, windows)
    keys = sorted(
        (IdentityKey.from_bytes(dice.randbytes(32)) for _ in range(peers)),
        key=lambda one: one.peer_id,
    )
    roster = tuple(one.peer_id for one in keys)
    lying = dict(zip(dice.sample(range(peers), liars), LIES * liars, strict=False))
    fellows = frozenset(roster[one] for one in lying)
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(open_host(HostConfig(seed=one.seed()))) for one in keys
        ]
        for one in hosts:
            for other in hosts:
                one.learn(other.peer_id, other.addresses())
        nursery = await stack.enter_async_context(trio.open_nursery())
        found: list[Peer] = []
        for number, (host, key) in enumerate(zip(hosts, keys, strict=True)):
            caught: list[Callable[[Conviction], None]] = []
            lie = lying.get(number, "")
            group = (Loyal if lie else GuardedExchange)(
                host, key, RUN, Place(0, RUN, roster), school.begin, RULES, school.trains,
                lambda conviction, caught=caught: caught[0](conviction),
                entropy=random.Random(dice.random()).randbytes,
            )  # fmt: skip
            if isinstance(group, Loyal):
                group.fellows = fellows
            lies = Lies(lie, school, seed + number) if lie else None
            weights = school.begin.clone()
            peer = Peer(group, school, lie, lies, fellows, weights=weights)
            caught.append(peer.told)
            found.append(peer)
            await nursery.start(group.run)
        began_s = time.monotonic()
        async with trio.open_nursery() as going:
            for peer in found:
                going.start_soon(peer.go, steps, peers - liars)
        spent_s = time.monotonic() - began_s
        nursery.cancel_scope.cancel()
    return _told(found, roster, school, spent_s)


def _told(
    found: list[Peer], roster: tuple[str, ...], school: School, spent_s: float
) -> dict[str, Any]:
    honest = [peer for peer in found if not peer.lie]
    innocent = {roster[at] for at, peer in enumerate(found) if not peer.lie}
    first = honest[0]
    attempts = {
        found[roster.index(peer)].lie: at for peer, at in first.caught.items() if peer in roster
    }
    n, b = len(found), len(found) - len(honest)
    return {
        "peers": n,
        "liars": b,
        "convicted_by_all": len(set.intersection(*(set(peer.caught) for peer in honest))),
        "honest_convicted": len(innocent & {peer for one in honest for peer in one.caught}),
        "honest_without_outcome": sum(bool(peer.why) for peer in honest),
        "states": len({peer.weights.numpy().tobytes() for peer in honest}),
        "steps": first.group.place.epoch,
        "attempts": first.group.attempts,
        "drawn_and_not_convicted": sum(peer.escaped for peer in honest),
        "attempts_until_convicted": attempts,
        "attempts_mean": sum(attempts.values()) / max(len(attempts), 1),
        "attempts_bound": round(bound(n, b), 2),
        "loss_before": round(school.loss(school.begin), 4),
        "loss_after": round(school.loss(first.weights), 4),
        "bytes_sent_per_peer_and_attempt": round(
            first.group.sent_bytes / max(first.group.attempts, 1)
        ),
        "seconds": round(spent_s, 1),
    }


def measure(
    peers: int = 16, liars: int = 7, steps: int = 200, seed: int = 1, windows: int = 200
) -> dict[str, Any]:
    torch.set_num_threads(1)
    return trio.run(run, peers, liars, steps, seed, windows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=16)
    parser.add_argument("--liars", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.peers, asked.liars, asked.steps, asked.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
