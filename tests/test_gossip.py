"""Gossip: all hear it once, and whoever makes a nuisance of himself is heard no more."""

from __future__ import annotations

import string
from random import Random

import pytest
from gossips import NEWS, Town, ear, joined, network

from potluck.swarm.blocks import BlockRange
from potluck.swarm.gossip import ASKED_MAX, ASKED_S, IDS_MAX, TOLD_MAX
from potluck.swarm.gossip_events import Heard, Joined, Left, Publish, Subscribe
from potluck.swarm.mesh import BACKOFF_MOST_S, BACKOFF_S, BACKOFFS_MAX, D_HIGH, D_LOW
from potluck.swarm.neighbour import MESSAGES_SAVED, OUT_SHARE, TOPICS_MAX
from potluck.swarm.recent import HISTORY, KEPT_BYTES_MAX, KEPT_MAX, SEEN_MAX, SERVED_MAX
from potluck.swarm.score import GRAYLIST, SHUN_S
from potluck.swarm.topics import (
    CAPABILITY,
    EVIDENCE,
    MESSAGE_BYTES_MAX,
    Message,
    Rpc,
    id_of,
    topic_of,
    topics_of,
)

MODEL = "ab" * 32
NAMES = string.ascii_letters[:40]


def texts(count: int, size: int = 8) -> list[bytes]:
    return [number.to_bytes(size) for number in range(count)]


# ---- who hears what


def test_all_hear_what_one_says_and_judge_it_once() -> None:
    town = Town(NAMES, 4)
    town.beat(3)
    town.publish("a", b"news")
    for name, one in town.ears.items():
        assert one.judged == ([] if name == "a" else [b"news"])


def test_who_comes_into_a_mesh_hears_of_what_was_said_just_before() -> None:
    one = joined(ear(), *"ab")
    one.told("b", b"news")
    one.said.clear()
    one.beat(1)
    told = one.to("a")
    assert told.graft == (NEWS,) and told.ihave == ((NEWS, (id_of(b"news"),)),)


@pytest.mark.parametrize("seed", range(5))
def test_who_hears_it_from_no_mesh_asks_for_it(seed: int) -> None:
    """A third says nothing at all; the others hear of what they missed at the heartbeats."""
    town = Town(NAMES, 6, seed=seed)
    town.beat(3)
    town.lost = set(NAMES[20:33])
    town.publish("a", b"news")
    town.beat(HISTORY - 1)
    assert all(one.judged == [b"news"] for name, one in town.ears.items() if name != "a")


def test_meshes_keep_to_their_size() -> None:
    town = Town(NAMES, 10)
    town.beat(5)
    sizes = [len(one.machine.mesh(NEWS)) for one in town.ears.values()]
    assert min(sizes) >= D_LOW and max(sizes) <= D_HIGH


def test_what_is_not_passed_is_passed_to_nobody() -> None:
    for verdict in ("drop", "stale", "wrong"):
        one = joined(ear(verdict), *"abc")  # type: ignore[arg-type]
        one.beat(1)
        one.said.clear()
        one.told("a", b"lie", now=1.0)
        one.beat(2)
        assert one.judged == [b"lie"] and not any(say.rpc.messages for say in one.said)
        one.hear("b", 2.0, iwant=(id_of(b"lie"),))
        assert not one.to("b").messages  # nor kept


def test_a_message_of_a_topic_that_we_do_not_want_is_not_judged() -> None:
    one = joined(ear(), "a")
    one.told("a", b"news", topic=topic_of(MODEL, 0))
    assert one.judged == [] and one.machine.score("a", 0.0) < 0


def test_one_knows_the_topics_of_its_blocks() -> None:
    assert topics_of(MODEL, BlockRange(7, 9)) == {topic_of(MODEL, 0), topic_of(MODEL, 8)}
    assert topics_of(MODEL, BlockRange(8, 16)) == {topic_of(MODEL, 15)}


def test_a_change_of_topics_is_told_and_leaves_their_meshes() -> None:
    one = joined(ear(), *"ab")
    one.beat(1)
    one.said.clear()
    one.handle(Subscribe(frozenset([topic_of(MODEL, 0)])))
    told = one.to("a")
    assert set(told.subscriptions) == {(topic_of(MODEL, 0), True), (NEWS, False)}
    assert told.prune == ((NEWS, BACKOFF_S),)
    assert one.machine.mesh(NEWS) == ()


def test_large_messages_are_not_sent_to_whoever_has_them() -> None:
    one = joined(ear(), *"abc")
    one.beat(1)
    large = bytes(2000)
    one.hear("b", 1.0, idontwant=(id_of(large),))
    one.said.clear()
    one.told("a", large, now=1.0)
    assert one.to("b").messages == () and one.to("c").messages == (Message(NEWS, large),)


# ---- what costs a neighbour its score


def test_a_flood_ends_its_sender_and_costs_a_bounded_number_of_judgements() -> None:
    one = joined(ear("drop"), *"ab")
    for text in texts(1000):
        one.told("a", text)
    assert len(one.judged) == MESSAGES_SAVED
    assert one.shunned and set(one.shunned) == {"a"}
    assert one.machine.score("a", 0.0) < GRAYLIST < 0 <= one.machine.score("b", 0.0)
    assert one.machine.shunned("a", SHUN_S - 1) and not one.machine.shunned("a", SHUN_S + 60)


def test_a_replay_by_the_same_neighbour_ends_it() -> None:
    one = joined(ear(), *"ab")
    one.told("b", b"news")
    one.told("a", b"news")  # honest: a mesh has it from several sides
    assert one.machine.score("a", 0.0) >= 0
    for _ in range(40):
        one.told("a", b"news")
    assert one.machine.shunned("a", 0.0) and one.judged == [b"news"]


def test_wrong_messages_end_whoever_brings_them_first_or_later() -> None:
    one = joined(ear("wrong"), *"ab")
    one.told("a", *texts(3))
    one.told("b", *texts(3))
    assert one.machine.shunned("a", 0.0) and one.machine.shunned("b", 0.0)
    assert len(one.judged) == 3


def test_stale_messages_are_a_nuisance_that_is_forgiven_sooner() -> None:
    stale, wrong = joined(ear("stale"), "a"), joined(ear("wrong"), "a")
    for one in (stale, wrong):
        one.told("a", *texts(8))
        assert one.machine.shunned("a", 0.0)
    assert not stale.machine.shunned("a", SHUN_S) and wrong.machine.shunned("a", SHUN_S)


def test_an_oversized_message_is_not_judged() -> None:
    one = joined(ear(), "a")
    one.told("a", bytes(MESSAGE_BYTES_MAX + 1))
    assert one.judged == [] and one.machine.score("a", 0.0) <= -20


def test_what_cannot_be_read_costs_its_sender() -> None:
    one = joined(ear(), "a")
    for _ in range(3):
        one.handle(Heard("a", None))
    assert one.shunned == ["a"]


def test_who_comes_anew_has_the_score_it_left_with() -> None:
    one = joined(ear("wrong"), "a")
    one.told("a", *texts(3))
    one.handle(Left("a"), 1.0)
    one.handle(Joined("a", network(1), False), SHUN_S + 5)
    assert one.machine.shunned("a", SHUN_S + 5)


def test_first_deliveries_earn_a_score_and_no_more_than_so_much() -> None:
    one = joined(ear(), *"ab")
    for second in range(1000):
        one.told("a", second.to_bytes(8), now=float(second))
    assert 20 < one.machine.score("a", 999.0) <= 53 < 60


def test_who_tells_of_what_it_does_not_give_loses_its_score() -> None:
    one = joined(ear(), *"ab")
    for second in range(60):
        now = second * (ASKED_S + 1)
        fresh = tuple(id_of(bytes([second, number])) for number in range(8))
        one.hear("a", now, ihave=((NEWS, fresh),))
        one.beat(now + ASKED_S)
    assert one.machine.score("a", 60 * (ASKED_S + 1)) < 0
    assert one.machine.score("b", 60 * (ASKED_S + 1)) >= 0


def test_one_that_keeps_to_its_budget_is_never_over_that_of_another() -> None:
    """However much there is to pass on: a storm of news through b costs b nothing at c."""
    storm, quiet = joined(ear(), *"abc"), joined(ear("pass", seed=2), "b")
    storm.beat(0.0)
    for tick in range(2000):
        now = tick / 20
        storm.handle(Publish(Message(NEWS, tick.to_bytes(8))), now)
        for say in storm.said:
            if say.peer == "c" and say.rpc.messages:
                quiet.handle(Heard("b", say.rpc), now)
        storm.said.clear()
    assert quiet.machine.score("b", 100.0) > 0
    assert len(quiet.judged) >= OUT_SHARE * MESSAGES_SAVED


# ---- what is held


def test_of_two_heartbeats_in_one_of_its_own_nobody_is_told_too_much() -> None:
    """However many topics there are: else whoever passes much on would be a nuisance to all."""
    topics = frozenset(topic_of(MODEL, 8 * number) for number in range(8))
    one = joined(ear(topics=topics), *(f"p{number}" for number in range(20)))
    for peer in one.machine.neighbours():
        one.hear(peer, subscriptions=tuple((topic, True) for topic in topics))
    one.beat(1.0)
    for number, topic in enumerate(sorted(topics)):
        for text in range(20):
            one.handle(Publish(Message(topic, bytes([number, text]))), 1.0)
    one.said.clear()
    one.beat(2.0)
    one.beat(2.9)
    told = {peer: one.to(peer).ihave for peer in one.machine.neighbours()}
    most = max(sum(len(ids) for _, ids in ihave) for ihave in told.values())
    assert TOLD_MAX <= most <= IDS_MAX


def test_a_flood_of_capabilities_takes_nothing_from_evidence() -> None:
    """Neither of what a neighbour may say, nor of what it may be told, nor of the room here."""
    cap = topic_of(MODEL, 0, CAPABILITY)
    floods = [f"flood {number}" for number in range(20)]
    one = joined(ear(topics=frozenset([NEWS, cap])), "b")
    one.hear("b", subscriptions=((cap, True),))
    for number, peer in enumerate(floods, start=1):
        one.handle(Joined(peer, network(number), False))
    one.beat(0.0)
    one.said.clear()
    one.told(floods[0], b"first")
    for number, peer in enumerate(floods):
        one.told(peer, *(b"%d %d" % (number, text) for text in range(60)), topic=cap)
    assert len(one.judged) == 1 + 20 * MESSAGES_SAVED
    assert one.machine.score(floods[0], 0.0) <= 1.0  # no names that cost nothing earn a score
    one.told(floods[1], b"last")
    one.beat(1.0)
    told = one.to("b")
    assert [one.data for one in told.messages if one.topic == NEWS] == [b"first", b"last"]
    assert len(told.messages) == 2 + OUT_SHARE * MESSAGES_SAVED
    assert told.ihave[0] == (NEWS, (id_of(b"first"), id_of(b"last")))
    one.hear("b", iwant=(id_of(b"first"),))  # it is kept, though 512 were passed on since
    assert one.to("b").messages == (Message(NEWS, b"first"),)


def test_topics_of_a_neighbour_are_bounded_and_foreign_ones_are_not_held() -> None:
    one = joined(ear(), "a")
    one.hear("a", subscriptions=tuple((f"/other/{n}", True) for n in range(500)))
    assert one.machine.score("a", 0.0) >= 0
    one.hear("a", subscriptions=tuple((topic_of(MODEL, 8 * n), True) for n in range(500)))
    held = [n for n in range(500) if one.machine.subscribed(topic_of(MODEL, 8 * n))]
    assert len(held) == TOPICS_MAX - 1  # and the news
    assert one.machine.shunned("a", 0.0)
    assert not one.machine.subscribed("/other/0")


def test_what_is_asked_for_is_given_so_often_and_no_more() -> None:
    """In py-libp2p one request of 0.9 MB that names one message often is answered with 40 MB."""
    one = joined(ear(), *"ab")
    one.told("b", b"news")
    one.said.clear()
    for _ in range(10):
        one.hear("a", iwant=(id_of(b"news"),) * 100)
    assert len(one.to("a").messages) == SERVED_MAX


def test_of_ids_only_so_many_are_asked_for_between_heartbeats() -> None:
    one = joined(ear(), "a")
    one.said.clear()
    for start in range(0, 10 * IDS_MAX, IDS_MAX):
        ids = tuple(id_of(number.to_bytes(8)) for number in range(start, start + IDS_MAX))
        one.hear("a", ihave=((NEWS, ids),))
    assert len(one.to("a").iwant) == IDS_MAX


def test_prunes_of_topics_that_nobody_has_are_not_remembered() -> None:
    """In py-libp2p 1 MB of them leaves 16 MB that no heartbeat frees."""
    one = joined(ear(), "a")
    one.hear("a", prune=tuple((f"{NEWS}/{n}", 1 << 30) for n in range(5000)))
    assert len(one.machine._meshes._backoff) == 0
    one.hear("a", prune=((NEWS, 1 << 30),))
    assert max(one.machine._meshes._backoff.values()) == BACKOFF_MOST_S


def test_who_asks_before_its_time_is_refused_and_loses_its_score() -> None:
    one = joined(ear(), *"abcdefghijklmnop")
    one.hear("a", prune=((NEWS, 60),))
    one.said.clear()
    for _ in range(4):
        one.hear("a", graft=(NEWS,))
    assert one.to("a").prune == ((NEWS, BACKOFF_S),) * 4
    assert one.machine.shunned("a", 0.0) and "a" not in one.machine.mesh(NEWS)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_that_is_heard_makes_us_hold_more_than_the_bounds(seed: int) -> None:
    """Neighbours come, say what they like until they are shunned, and come under a new name."""
    dice = Random(seed)
    one = joined(ear(), *"0123")
    names = list("0123")
    for step in range(1500):
        now = step / 50
        texts = [dice.randbytes(dice.choice([8, 9000])) for _ in range(4)]
        ids = tuple(map(id_of, texts))
        rpc = dice.choice(
            [
                Rpc(messages=tuple(Message(NEWS, text) for text in texts)),
                Rpc(ihave=((NEWS, ids),), idontwant=ids),
                Rpc(iwant=ids, subscriptions=((f"{NEWS}/{step}", True),)),
                Rpc(graft=(NEWS, "x" * 100), prune=((NEWS, 7), (str(step), 9))),
            ]
        )
        place = dice.randrange(4)
        one.handle(Heard(names[place], rpc), now)
        if one.machine.shunned(names[place], now):
            one.handle(Left(names[place]), now)
            names[place] = f"{step}"
            joined(one, names[place], now=now)
        if step % 50 == 0:
            one.beat(now)
        one.said.clear()
    counts = one.machine.counts()
    assert 0 < counts["gossip_seen"] <= SEEN_MAX
    assert 0 < counts["gossip_bytes"] <= KEPT_BYTES_MAX
    assert len(one.machine._recent[EVIDENCE]._kept) <= KEPT_MAX
    assert len(one.machine._asked) <= ASKED_MAX
    assert len(one.machine._meshes._backoff) <= BACKOFFS_MAX
    assert all(len(one.machine._neighbours[name].topics) <= TOPICS_MAX for name in names)
