"""What others say in a segment: how soon it is looked into, and what liars make of it."""

from __future__ import annotations

from collections import Counter
from random import Random

from sim.segment_world import World, least_wait_s, names

from potluck.swarm.hearsay import LOOKS_OF_ALL, LOOKS_OF_ONE
from potluck.swarm.membership import PROBE_S, Membership
from potluck.swarm.membership_events import Known, Received
from potluck.swarm.rumour import INCARNATION_MAX, Ping, Rumour


def test_whoever_hears_of_a_death_looks_at_once_and_does_not_wait_for_its_turn() -> None:
    """A round of 30 peers takes 150 s. A rumour is at all of them within log(30) periods and some;
    a look takes one."""
    waits = []
    for seed in range(10):
        world = World(seed).begin(names(30))
        world.run(60)
        world.dead.add("p07")
        while not any("p07" in found for found in world.missed()):
            world.run(world.now + 0.5)
        first_s = world.now
        while world.missed() != {frozenset({"p07"})}:
            world.run(world.now + 0.5)
        waits.append((world.now - first_s) / PROBE_S)
    assert max(waits) <= 10 and sorted(waits)[5] <= 7


def lie_without_end(world: World, liars: list[str], victims: list[str], seconds: int) -> None:
    """Each liar, each second, to everybody: one of the victims is gone, in its life of now."""
    for second in range(seconds):
        world.run(world.now + 1)
        for liar in liars:
            victim = victims[second % len(victims)]
            life = world.machines[victim]._incarnation
            for name in names(len(world.machines)):
                if name not in (liar, victim):
                    lie = Rumour(victim, "dead", life, liar)
                    world.hand(name, Received(liar, Ping(10**6 + second, (lie,))))


def test_a_liar_makes_nobody_probe_without_end() -> None:
    """600 lies a peer; its own turns alone are 60 probes in that time."""
    world = World(6).begin(names(12))
    world.run(60)
    before = Counter(world.pings)
    lie_without_end(world, ["p01"], ["p02", "p03", "p04"], 300)
    periods = 300 / PROBE_S
    for name in names(12):
        assert world.pings[name] - before[name] <= 2 * periods + LOOKS_OF_ONE + 2
    assert world.missed() == {frozenset()}


def test_many_liars_make_nobody_probe_without_end_either() -> None:
    world = World(6).begin(names(12))
    world.run(60)
    before = Counter(world.pings)
    lie_without_end(world, names(8), names(12)[8:], 300)
    periods = 300 / PROBE_S
    for name in names(12):
        assert world.pings[name] - before[name] <= 2 * periods + LOOKS_OF_ALL + 2
    assert world.missed() == {frozenset()}


def test_a_lie_to_which_nobody_can_object_kills_nobody() -> None:
    """No incarnation is higher than this one."""
    world = World(6).begin(names(8))
    lie = Rumour("p02", "dead", INCARNATION_MAX, "p01")
    for name in names(8):
        if name not in ("p01", "p02"):
            world.hand(name, Received("p01", Ping(10**6, (lie,))))
    world.run(1200)
    assert world.said("dead") == [] and world.missed() == {frozenset()}


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
