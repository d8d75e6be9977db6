"""SWIM among the peers of a segment, in virtual time over roads that lose and delay."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from sim.segment_world import World, least_wait_s, names

from potluck.swarm.hearsay import SUSPICION_MAX
from potluck.swarm.machine import Fired, StopTimer
from potluck.swarm.membership import HEALTH_MAX, PROBE_S, Membership
from potluck.swarm.membership_events import Known, Received, Send, Tell, Unreached
from potluck.swarm.rumour import NEWS_MAX, Ack, Message, Nack, Ping, PingReq, Rumour


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


def test_of_two_one_is_missed_when_the_road_says_so_and_a_probe_fails() -> None:
    """Nobody is left to be asked; its process is gone, and dials are refused."""
    world = World(1).begin(names(2))
    world.run(60)
    world.dead.add("p01")
    world.refused.add("p01")
    world.hand("p00", Unreached("p01"))
    assert world.missed() == {frozenset()}, "a connection may end without a death"
    world.run(60.2)
    assert world.missed() == {frozenset({"p01"})}


def test_of_two_one_whose_connection_was_reaped_is_not_missed() -> None:
    world = World(1).begin(names(2))
    world.run(60)
    world.hand("p00", Unreached("p01"))
    world.run(600)
    assert world.missed() == {frozenset()} and world.said("suspect") == []


def test_of_two_one_that_is_only_silent_is_suspected_and_not_missed() -> None:
    """A lost probe looks the same, and nobody else can be asked; its record expires in time."""
    world = World(1).begin(names(2))
    world.run(60)
    world.dead.add("p01")
    world.run(1200)
    assert world.machines["p00"].state("p01") == "suspect"
    assert world.missed() == {frozenset()} and not world.machines["p00"].hears()


def test_of_two_one_that_is_silent_on_a_connection_until_it_ends_is_missed() -> None:
    world = World(1).begin(names(2))
    world.run(60)
    world.dead.add("p01")
    world.hand("p00", Unreached("p01"))
    world.run(60 + PROBE_S)
    assert world.missed() == {frozenset({"p01"})}


def test_who_is_cut_off_misses_nobody_at_any_time() -> None:
    for seed in range(5):
        world = World(seed).begin(names(8))
        world.run(60)
        world.dark.add("p00")
        for second in range(600):
            world.run(60.0 + second)
            assert world.machines["p00"].missed() == frozenset()
        others = {world.machines[name].missed() for name in names(8)[1:]}
        assert others == {frozenset({"p00"})}, "the others miss it, and can tell"
        assert {peer for _, _, peer, _ in world.said("dead")} == {"p00"}


def test_who_was_cut_off_is_found_again_by_all() -> None:
    world = World(2).begin(names(8))
    world.run(60)
    world.dark.add("p00")
    world.run(200)
    world.dark.clear()
    world.run(500)
    assert world.missed() == {frozenset()}
    assert all(one.hears() for one in world.machines.values())


def test_who_is_asked_for_a_stranger_says_that_it_hears_the_asker() -> None:
    machine = Membership("me", Random(1).shuffle)
    machine.handle(Known(("me", "a")), 0.0)
    assert machine.handle(Received("a", PingReq(7, "stranger")), 0.0) == [Send("a", Nack(7))]


def test_only_who_was_asked_counts_in_a_probe_and_once() -> None:
    """The numbers of probes can be guessed: another's Nack would have a peer missed at once that
    answers us, another's Ack would keep a dead one alive."""
    machine = Membership("me", Random(1).shuffle)
    machine.handle(Known(("liar", "p1", "p2", "p3", "p4")), 0.0)
    ping = next(one for one in machine.handle(Fired("probe"), 5.0) if isinstance(one, Send))
    assert isinstance(ping.message, Ping)
    number, probed = ping.message.number, ping.peer
    others = sorted({"liar", "p1", "p2", "p3", "p4"} - {probed})
    for message in (Nack(number), Nack(number), Nack(number), Ack(number)):
        assert machine.handle(Received(others[0], message), 5.1) == []
    asked = [one.peer for one in machine.handle(Fired(("silent", number)), 8.0)]  # type: ignore[union-attr]
    assert len(asked) == 3
    (unasked,) = set(others) - set(asked)
    for peer, message in ((unasked, Ack(number)), *[(asked[0], Nack(number))] * 3):
        assert machine.handle(Received(peer, message), 8.1) == []
    assert machine.missed() == frozenset() and machine.state(probed) == "alive"
    for peer in asked[1:]:
        machine.handle(Received(peer, Nack(number)), 8.2)
    assert machine.missed() == {probed}


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
