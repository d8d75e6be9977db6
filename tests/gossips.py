"""Machines of gossip, joined by a road that takes no time, and what they said and heard."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random

from potluck.dht.network import NOWHERE, Prefixes
from potluck.swarm.gossip import BEAT, Gossip
from potluck.swarm.gossip_events import (
    Event,
    Heard,
    Joined,
    Left,
    Publish,
    Say,
    Shun,
    Subscribe,
)
from potluck.swarm.machine import Fired
from potluck.swarm.recent import Verdict
from potluck.swarm.topics import EVIDENCE, Message, Rpc, is_ours

NEWS = EVIDENCE


def network(number: int) -> Prefixes:
    """A /24 of its own, in a /16 of its own."""
    return f"{number}", f"{number}.0", f"{number}.0.0"


@dataclass
class Ear:
    """One machine, what it judged, and what it wanted to say."""

    machine: Gossip
    judged: list[bytes] = field(default_factory=list)
    said: list[Say] = field(default_factory=list)
    shunned: list[str] = field(default_factory=list)

    def to(self, peer: str) -> Rpc:
        """All that was said to one peer since it was asked last, merged."""
        found = [say.rpc for say in self.said if say.peer == peer]
        self.said = [say for say in self.said if say.peer != peer]
        return Rpc(*(sum((getattr(rpc, name) for rpc in found), ()) for name in Rpc.__slots__))

    def handle(self, event: Event, now: float = 0.0) -> None:
        for effect in self.machine.handle(event, now):
            if isinstance(effect, Say):
                self.said.append(effect)
            if isinstance(effect, Shun):
                self.shunned.append(effect.peer)

    def beat(self, now: float) -> None:
        self.handle(Fired(BEAT), now)

    def hear(self, peer: str, now: float = 0.0, **what: tuple[object, ...]) -> None:
        self.handle(Heard(peer, Rpc(**what)), now)  # type: ignore[arg-type]

    def told(self, peer: str, *texts: bytes, now: float = 0.0, topic: str = NEWS) -> None:
        self.hear(peer, now, messages=tuple(Message(topic, text) for text in texts))


def ear(verdict: Verdict = "pass", *, seed: int = 1, topics: frozenset[str] | None = None) -> Ear:
    """It wants the news, if nothing else is said, and judges all that it hears alike."""
    judged: list[bytes] = []

    def judge(message: Message) -> Verdict:
        judged.append(message.data)
        return verdict

    made = Ear(Gossip(judge, is_ours, Random(seed).shuffle), judged)
    made.handle(Subscribe(frozenset([NEWS]) if topics is None else topics))
    return made


def joined(one: Ear, *peers: str, dialed: bool = False, now: float = 0.0) -> Ear:
    """With these neighbours, each of another network, who want the news."""
    for number, peer in enumerate(peers):
        one.handle(Joined(peer, network(number), dialed), now)
        one.hear(peer, now, subscriptions=((NEWS, True),))
    return one


class Town:
    """Machines that hear each other at once."""

    def __init__(self, names: str, links: int, *, seed: int = 1) -> None:
        dice = Random(seed)
        self.ears = {name: ear(seed=number) for number, name in enumerate(names)}
        self.now = 0.0
        self.lost: set[str] = set()  # who says nothing
        for name in names:
            others = dice.sample([other for other in names if other != name], links)
            for other in others:
                if other not in self.ears[name].machine.neighbours():
                    self.ears[name].handle(Joined(other, NOWHERE, True))
                    self.ears[other].handle(Joined(name, NOWHERE, False))
        self.settle()

    def settle(self) -> None:
        """Until nobody has anything to say."""
        waiting = deque(self.ears)
        while waiting:
            name = waiting.popleft()
            said, self.ears[name].said = self.ears[name].said, []
            for say in said if name not in self.lost else ():
                self.ears[say.peer].handle(Heard(name, say.rpc), self.now)
                waiting.append(say.peer)

    def beat(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += 1
            for one in self.ears.values():
                one.beat(self.now)
            self.settle()

    def publish(self, name: str, text: bytes) -> None:
        self.ears[name].handle(Publish(Message(NEWS, text)), self.now)
        self.settle()

    def part(self, one: str, other: str) -> None:
        self.ears[one].handle(Left(other), self.now)
        self.ears[other].handle(Left(one), self.now)
