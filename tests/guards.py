"""A guarded group in memory: every member a machine and a workshop, some of them liars.

Time is a number, roads take `delay_s`, and everything comes in the order of the clock. A member's
contribution is a vector that its seed gives (`work_of`), so that others can work it out again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random

import numpy as np

from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError
from potluck.node.runs.btard_judge import Law
from potluck.node.runs.btard_numbers import NUMBER
from potluck.node.runs.btard_work import Workshop
from potluck.swarm.machine import Fired, SetTimer
from potluck.swarm.run.btard import Guard
from potluck.swarm.run.btard_events import (
    Came,
    Convict,
    Done,
    Effect,
    Event,
    Loaded,
    Over,
    Send,
    SendLoad,
    Terms,
    Work,
    Worked,
)
from potluck.swarm.run.coin import batch_seed

RUN, ANCHOR, COIN = b"r" * 32, b"a" * 32, b"c" * 32
NUMBERS = 40
RADIUS = 1.0


def key(number: int) -> IdentityKey:
    return IdentityKey.from_bytes(bytes((number + 1,)) * 32)


def work_of(anchor: bytes, seed: bytes) -> bytes:
    """All agree on a direction, and each adds its batches' noise."""
    dice = np.random.default_rng(list(seed))
    return (1.0 + 0.3 * dice.standard_normal(NUMBERS)).astype(NUMBER).tobytes()


class Member:
    """One that keeps to the rules; liars of the tests change one thing each."""

    shop_kind: type[Workshop] = Workshop

    def __init__(self, terms: Terms, key: IdentityKey, dice: Random, tolerance: float) -> None:
        self.terms, self.key, self.peer = terms, key, key.peer_id
        self.seat = terms.roster.index(self.peer)
        self.guard = Guard(terms, key, dice.randbytes)
        self.law = Law(terms.roster, NUMBERS, terms.radius, terms.numerics, tolerance)
        self.shop = self.shop_kind(self.law, self.contribution(), self.again)
        self.done: Done | None = None
        self.over: Over | None = None
        self.convicted: list[Convict] = []
        self.faults: list[RemoteError] = []

    def contribution(self) -> bytes:
        return self.again(self.terms.anchor, batch_seed(self.terms.coin, self.peer))

    def again(self, anchor: bytes, seed: bytes) -> bytes:
        return work_of(anchor, seed)

    def acts(self, effects: list[Effect]) -> Iterable[Effect]:
        """What it really does."""
        return effects


class Silent(Member):
    """Dead, or as good as that."""

    def acts(self, effects: list[Effect]) -> Iterable[Effect]:
        return [one for one in effects if not isinstance(one, Send | SendLoad)]


@dataclass
class Table:
    """Where they sit. kinds: by number, for the others `Member`."""

    members: int
    kinds: dict[int, type[Member]] = field(default_factory=dict)
    seed: int = 1
    delay_s: float = 0.05
    numerics: dict[int, str] = field(default_factory=dict)
    tolerance: float = 0.0
    far_most: float = 1e30
    radius: float = RADIUS
    validators: int = 1
    road: Callable[[str, str, Effect], bool] = lambda frm, to, effect: True  # False: it is lost

    def __post_init__(self) -> None:
        keys = sorted((key(number) for number in range(self.members)), key=lambda one: one.peer_id)
        self.roster = tuple(one.peer_id for one in keys)
        dice = Random(self.seed)
        coin = dice.randbytes(32)
        self.now = 0.0
        self.tick = count()
        self.heap: list[tuple[float, int, str, Event]] = []
        self.all: dict[str, Member] = {}
        for seat, one in enumerate(keys):
            terms = Terms(
                RUN, 7, self.roster, ANCHOR, coin, self.radius, self.far_most,
                self.numerics.get(seat, "plain"), self.validators,
                gather_s=30.0, phase_s=4.0, check_s=10.0,
            )  # fmt: skip
            kind = self.kinds.get(seat, Member)
            self.all[one.peer_id] = kind(terms, one, Random(dice.random()), self.tolerance)

    def seat(self, number: int) -> Member:
        return self.all[self.roster[number]]

    @property
    def honest(self) -> list[Member]:
        return [self.seat(at) for at in range(self.members) if at not in self.kinds]

    def run(self, until_s: float = 2000.0) -> None:
        """Until every honest member is through with the step."""
        for member in self.all.values():
            self.perform(member, member.guard.start(self.now))
        while self.heap and not all(one.done or one.over for one in self.honest):
            self.now, _, peer, event = heapq.heappop(self.heap)
            assert self.now < until_s, "it never ends"
            self.happen(self.all[peer], event)
        while self.heap and isinstance(self.heap[0][3], Came | Loaded):  # what is on its way
            self.now, _, peer, event = heapq.heappop(self.heap)
            self.happen(self.all[peer], event)

    def happen(self, member: Member, event: Event | tuple[str, bytes]) -> None:
        if isinstance(event, tuple):
            sender, load = event
            if not member.guard.wants(sender, digest := member.shop.keep(load)):
                return
            event = Loaded(digest)
        try:
            effects = member.guard.handle(event, self.now)
        except RemoteError as error:
            member.faults.append(error)
            return
        self.perform(member, effects)

    def perform(self, member: Member, effects: list[Effect]) -> None:
        for effect in member.acts(effects):
            match effect:
                case Send(peer, message):
                    self.send(member, peer, effect, Came(member.peer, message))
                case SendLoad(peer, digest):
                    self.send(member, peer, effect, (member.peer, member.shop.loads[digest]))
                case Work(key_, job):
                    self.put(member.peer, 0.01, Worked(key_, member.shop.do(job)))
                case SetTimer(timer, at_s):
                    self.put(member.peer, at_s - self.now, Fired(timer))
                case Convict():
                    member.convicted.append(effect)
                case Done():
                    member.done = effect
                case Over():
                    member.over = effect

    def send(self, member: Member, peer: str, effect: Effect, event: object) -> None:
        if self.road(member.peer, peer, effect):
            self.put(peer, self.delay_s, event)  # type: ignore[arg-type]

    def put(self, peer: str, after_s: float, event: Event) -> None:
        heapq.heappush(self.heap, (self.now + max(after_s, 0.0), next(self.tick), peer, event))

    # ---- what tests ask

    def outcomes(self) -> set[tuple[object, ...]]:
        """Of the honest: one, when all agree."""
        return {
            (one.done.standing, one.done.results, one.done.coin) if one.done else (one.over,)
            for one in self.honest
        }

    def convicts(self, member: Member | None = None) -> set[int]:
        """Seats that the honest, or one of them, saw convicted."""
        asked = [member] if member else self.honest
        return {self.roster.index(one.peer) for each in asked for one in each.convicted}

    def average(self, member: Member) -> np.ndarray:
        assert member.done is not None
        joined = b"".join(member.shop.loads[one] for one in member.done.results)
        return np.frombuffer(joined, NUMBER)


__all__ = ["Member", "Silent", "Table", "key", "replace"]
