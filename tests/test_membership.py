"""SWIM among the peers of a segment, in virtual time over roads that lose and delay."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.swarm.machine import Fired, SetTimer, StopTimer
from potluck.swarm.membership import (
    HEALTH_MAX,
    PROBE_S,
    SUSPICION,
    SUSPICION_MAX,
    Membership,
)
from potluck.swarm.membership_events import (
    Effect,
    Event,
    Known,
    Received,
    Send,
    Tell,
    Unreached,
)
from potluck.swarm.rumour import NEWS_MAX, Ack, Message, Nack, Ping, PingReq, Rumour


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
                    gone = peer in self.refused
                    if gone or (name, peer) in self.cut or (peer, name) in self.cut:
                        self._push(self.now + self.delay_s(name, peer), name, Unreached(peer))
                    elif self.dice.random() >= self.loss:
                        delay_s = self.delay_s(name, peer)
                        self._push(self.now + delay_s, peer, Received(name, message))
                case Tell(peer, state):
                    self.told.append((self.now, name, peer, state))

    def said(self, state: str) -> list[tuple[float, str, str, str]]:
        return [one for one in self.told if one[3] == state]


def names(count: int) -> list[str]:
    return [f"p{number:02}" for number in range(count)]


def least_wait_s(count: int) -> float:
    import math

    return SUSPICION * max(1.0, math.log10(count)) * PROBE_S


def test_nobody_is_suspected_while_all_answer() -> None:
    world = World(1).begin(names(30))
    world.run(600)
    assert world.said("suspect") == [] and world.said("dead") == []
    # a probe and its answer each period, nothing else
    assert world.sent <= 2.1 * 30 * 600 / PROBE_S


def test_on_roads_that_lose_a_twentieth_nobody_is_buried_alive() -> None:
    for seed in range(3):
        world = World(seed, loss=0.05).begin(names(30))
        world.run(900)
        assert world.said("dead") == []
        assert all(len(machine.alive()) == 29 for machine in world.machines.values())


def test_everybody_learns_of_a_death_and_of_no_other() -> None:
    waits = []
    for seed in range(5):
        world = World(seed, loss=0.02).begin(names(30))
        world.run(60)
        world.dead.add("p07")
        world.run(60 + 10 * PROBE_S + SUSPICION_MAX * least_wait_s(30))
        found = world.said("dead")
        assert {peer for _, _, peer, _ in found} == {"p07"}
        assert {who for _, who, _, _ in found} == set(names(30)) - {"p07"}
        waits.append(max(at for at, _, _, _ in found) - 60)
    # confirmations shorten the wait to near the least: far below the longest
    assert max(waits) < 2 * least_wait_s(30) + 6 * PROBE_S


def test_many_deaths_at_once_are_all_found() -> None:
    world = World(3).begin(names(20))
    world.run(30)
    gone = set(names(20)[:6])
    world.dead |= gone
    world.run(900)
    for name in set(names(20)) - gone:
        assert set(world.machines[name].alive()) == set(names(20)) - gone - {name}


def test_a_slow_peer_doubts_itself_before_it_buries_others() -> None:
    """Its road is so slow that no answer reaches it in time."""
    world = World(5, delay_s=lambda a, b: 3.5 if "p00" in (a, b) else 0.05).begin(names(20))
    world.run(1200)
    assert world.machines["p00"].health > 0
    assert world.said("dead") == []


def test_a_liar_kills_nobody_who_is_heard() -> None:
    world = World(6).begin(names(20))
    liar, victim = "p01", "p02"
    for second in range(0, 600, 2):
        world.run(float(second))
        for name in names(20):
            if name != liar:
                lie = Rumour(victim, "dead", second // 2 + 5, liar)
                world.hand(name, Received(liar, Ping(10**6 + second, (lie,))))
    assert world.said("dead") == []
    world.run(1200)
    assert all(
        world.machines[name].state(victim) == "alive" for name in names(20)[2:] if name != victim
    )


def test_made_up_names_do_not_hurry_a_death() -> None:
    world = World(7).begin(names(5))
    world.dead.add("p04")
    for number in range(50):
        lie = Rumour("p04", "suspect", 0, f"nobody{number}")
        world.hand("p00", Received("p01", Ping(number, (lie,))))
    world.run(least_wait_s(5) - 1)
    assert world.machines["p00"].state("p04") == "suspect"


def test_who_comes_back_is_alive_again() -> None:
    world = World(8).begin(names(8))
    world.run(20)
    world.dead.add("p03")
    world.run(600)
    assert world.machines["p00"].state("p03") == "dead"
    world.dead.discard("p03")
    world.machines["p03"] = Membership("p03", world.dice.shuffle, incarnation=0)
    world.hand("p03", Known(tuple(names(8))))
    world._perform("p03", world.machines["p03"].start(world.now))
    world.run(700)
    assert all(world.machines[name].state("p03") == "alive" for name in names(8) if name != "p03")


def test_who_began_anew_is_alive_by_its_record_at_once() -> None:
    world = World(8).begin(names(8))
    world.dead.add("p03")
    world.run(600)
    machine = world.machines["p00"]
    assert machine.missed() == {"p03"}
    machine.handle(Known(tuple(names(8)), (0,) * 8), 601.0)
    assert machine.missed() == {"p03"}, "the record of its life before"
    effects = machine.handle(Known(tuple(names(8)), (0, 0, 0, 5, 0, 0, 0, 0)), 602.0)
    assert Tell("p03", "alive") in effects and machine.missed() == frozenset()


def test_a_death_that_the_road_tells_of_is_missed_at_once_by_whoever_hears_it() -> None:
    """p03's process is gone: connections end, dials are refused; nobody waits for a timeout."""
    world = World(9).begin(names(8))
    world.run(60)
    world.dead.add("p03")
    world.refused.add("p03")
    world.hand("p00", Unreached("p03"))
    world.run(60.5)
    assert world.machines["p00"].missed() == {"p03"}
    found = [world.machines[name].missed() for name in names(8) if name != "p03"]
    assert set(found) <= {frozenset(), frozenset({"p03"})}
    assert found.count(frozenset({"p03"})) >= 4, "those who were asked have found it themselves"


def test_a_connection_that_ends_is_no_death_while_others_hear_the_peer() -> None:
    world = World(10).begin(names(8))
    world.run(60)
    world.cut.add(("p00", "p03"))  # this road alone
    world.hand("p00", Unreached("p03"))
    world.run(600)
    assert world.said("suspect") == [] and world.machines["p00"].missed() == frozenset()


def test_nobody_speaks_for_another_to_raise_the_dead() -> None:
    world = World(11).begin(names(8))
    world.dead.add("p03")
    world.run(600)
    lie = Rumour("p03", "alive", 99, "p01")
    world.hand("p00", Received("p01", Ping(1, (lie,))))
    assert world.machines["p00"].state("p03") == "dead"


def test_a_word_of_others_alone_has_nobody_missed() -> None:
    machine = Membership("me", Random(1).shuffle)
    machine.handle(Known(("me", "a", "b", "c")), 0.0)
    for liar in ("a", "b"):
        machine.handle(Received(liar, Ping(1, (Rumour("c", "dead", 0, liar),))), 0.0)
    assert machine.state("c") == "suspect" and machine.missed() == frozenset()


def test_who_is_asked_for_a_stranger_says_that_it_hears_the_asker() -> None:
    machine = Membership("me", Random(1).shuffle)
    machine.handle(Known(("me", "a")), 0.0)
    assert machine.handle(Received("a", PingReq(7, "stranger")), 0.0) == [Send("a", Nack(7))]


def test_who_is_in_no_record_is_forgotten_and_not_listened_to() -> None:
    machine = Membership("me", Random(1).shuffle)
    machine.handle(Known(("me", "a", "b")), 0.0)
    machine.handle(Received("a", Ping(1, (Rumour("b", "suspect", 0, "a"),))), 0.0)
    effects = machine.handle(Known(("me", "a")), 1.0)
    assert StopTimer(("suspect", "b", 0)) in effects and machine.alive() == ("a",)
    lie = Rumour("a", "suspect", 0, "b")
    assert machine.handle(Received("b", Ping(2, (lie,))), 1.0) == [Send("b", Ack(2))]
    assert machine.handle(Received("b", PingReq(3, "a")), 1.0) == [Send("b", Nack(3))]
    assert machine.handle(Received("b", Ack(4)), 1.0) == []
    assert machine.state("a") == "alive"


def test_the_same_seed_gives_the_same_story() -> None:
    def story(seed: int) -> list[tuple[float, str, str, str]]:
        world = World(seed, loss=0.2).begin(names(10))
        world.dead.add("p09")
        world.run(400)
        return world.told

    assert story(4) == story(4) != story(5)


rumours = st.builds(
    Rumour,
    st.sampled_from([*names(4), "me", "nobody"]),
    st.sampled_from(["alive", "suspect", "dead"]),
    st.integers(-1, 1 << 50),
    st.sampled_from([*names(4), "me", "nobody"]),
)
news = st.lists(rumours, max_size=NEWS_MAX + 3).map(tuple)
numbers = st.integers(0, 6)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Ping, numbers, news),
    st.builds(PingReq, numbers, st.sampled_from([*names(4), "me", "nobody"]), news),
    st.builds(Ack, numbers, news),
    st.builds(Nack, numbers),
)


@given(st.lists(st.tuples(st.floats(0, 30), st.sampled_from(names(4)), messages), max_size=15))
@settings(deadline=None, max_examples=60)
def test_whatever_is_said_a_death_follows_a_suspicion_and_nobody_else_is_named(
    heard: list[tuple[float, str, Message]],
) -> None:
    world = World(1)
    world.machines["me"] = Membership("me", world.dice.shuffle)
    world.hand("me", Known((*names(4), "me")))
    world._perform("me", world.machines["me"].start(0.0))
    world.dead |= set(names(4))  # the roads lead nowhere
    for wait_s, peer, message in heard:
        world.run(world.now + wait_s)
        world.hand("me", Received(peer, message))
        assert 0 <= world.machines["me"].health <= HEALTH_MAX
    world.run(world.now + 1000)
    suspected: set[str] = set()
    for _, _, peer, state in world.told:
        assert peer in names(4)
        if state == "suspect":
            suspected.add(peer)
        elif state == "dead":
            assert peer in suspected
            suspected.discard(peer)
