"""Peers of a segment on a heap for a clock, and the roads between them, which lose and delay."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from potluck.swarm.hearsay import SUSPICION
from potluck.swarm.machine import Fired, SetTimer, StopTimer
from potluck.swarm.membership import PROBE_S, Membership
from potluck.swarm.membership_events import Effect, Event, Known, Received, Send, Tell, Unreached
from potluck.swarm.rumour import Ping


@dataclass
class World:
    """Machines, a heap for a clock, and roads between them."""

    seed: int
    loss: float = 0.0
    delay_s: Callable[[str, str], float] = lambda a, b: 0.05
    now: float = 0.0
    machines: dict[str, Membership] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)  # the road says at once that it is not there
    cut: set[tuple[str, str]] = field(default_factory=set)  # roads, as both ends see them
    dark: set[str] = field(default_factory=set)  # nothing reaches them, or comes from them
    pings: Counter[str] = field(default_factory=Counter)  # by whose they are
    told: list[tuple[float, str, str, str]] = field(default_factory=list)  # when, who, of whom
    sent: int = 0

    def __post_init__(self) -> None:
        self.dice = Random(self.seed)
        self._heap: list[tuple[float, int, str, Event]] = []
        self._timers: dict[tuple[str, object], int] = {}
        self._count = 0

    def begin(self, names: list[str]) -> World:
        for name in names:
            self.machines[name] = Membership(name, self.dice.shuffle)
        for name, machine in self.machines.items():
            self._perform(name, machine.handle(Known(tuple(names)), self.now))
            self._perform(name, machine.start(self.now + self.dice.uniform(0, PROBE_S)))
        return self

    def hand(self, name: str, event: Event) -> None:
        self._perform(name, self.machines[name].handle(event, self.now))

    def run(self, until_s: float) -> None:
        while self._heap and self._heap[0][0] <= until_s:
            self.now, number, name, event = heapq.heappop(self._heap)
            if isinstance(event, Fired) and self._timers.get((name, event.key)) != number:
                continue  # it was moved, or stopped
            if name not in self.dead:
                self.hand(name, event)
        self.now = until_s

    def _push(self, at_s: float, name: str, event: Event) -> int:
        self._count += 1
        heapq.heappush(self._heap, (at_s, self._count, name, event))
        return self._count

    def _perform(self, name: str, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case SetTimer(key, at_s):
                    self._timers[(name, key)] = self._push(at_s, name, Fired(key))
                case StopTimer(key):
                    self._timers.pop((name, key), None)
                case Send(peer, message):
                    self.sent += 1
                    self.pings[name] += isinstance(message, Ping)
                    if {name, peer} & self.dark:
                        continue
                    gone = peer in self.refused
                    if gone or (name, peer) in self.cut or (peer, name) in self.cut:
                        self._push(self.now + self.delay_s(name, peer), name, Unreached(peer))
                    elif self.dice.random() >= self.loss:
                        delay_s = self.delay_s(name, peer)
                        self._push(self.now + delay_s, peer, Received(name, message))
                case Tell(peer, state):
                    self.told.append((self.now, name, peer, state))

    def missed(self) -> set[frozenset[str]]:
        """All different opinions of those who live."""
        return {one.missed() for name, one in self.machines.items() if name not in self.dead}

    def said(self, state: str) -> list[tuple[float, str, str, str]]:
        return [one for one in self.told if one[3] == state]


def names(count: int) -> list[str]:
    return [f"p{number:02}" for number in range(count)]


def least_wait_s(count: int) -> float:
    return SUSPICION * max(1.0, math.log10(count)) * PROBE_S
