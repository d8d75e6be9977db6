"""A second peer beside a link: asked for when the link is late, leaves, or has much to lose."""

from __future__ import annotations

from sim.folding_swarm import BLOCKS, ROW, config, opened, rows_of, sent_to

from potluck.swarm.blocks import BlockRange
from potluck.swarm.machine import Fired, SetTimer
from potluck.swarm.routing import Hop
from potluck.swarm.session import Session
from potluck.swarm.session_events import (
    Answered,
    CloseLink,
    Deliver,
    Effect,
    Feed,
    FindRoute,
    FindStandby,
    Leaving,
    Lost,
    Opened,
    OpenLink,
    Routed,
    StandbyFound,
)


def opening_of(effects: list[Effect]) -> int:
    """The link that these effects open."""
    return next(effect.link for effect in effects if isinstance(effect, OpenLink))


def routed(session: Session) -> tuple[int, list[Effect]]:
    """The link of a session that was given one hop for all its blocks, and what it does first."""
    (find,) = session.start(0.0)
    assert isinstance(find, FindRoute)
    effects = session.handle(Routed(find.gap, (Hop("a", BLOCKS),)), 0.0)
    return opening_of(effects), effects


def test_a_late_link_races_its_standby_and_the_first_answer_wins() -> None:
    session = Session(config())
    swarm, link = opened(session)
    for number in range(3):
        swarm.perform(session.handle(Feed(number, 1, 1, rows_of(number, 1)), 0.0))
        swarm.run()
    session.handle(Feed(3, 1, 1, rows_of(3, 1)), 1.0)  # on which the server sleeps
    session.handle(Fired(link), 1.5)
    effects = session.handle(StandbyFound(link, "b"), 1.5)
    standby = opening_of(effects)
    replay, live = sent_to(session.handle(Opened(standby), 1.6), standby)
    assert (replay.sizes, replay.rows, live.sizes, live.rows) == ((1, 1, 1), 0, (1,), 1)
    session.handle(Answered(standby, 0, 0, b""), 1.7)
    won = session.handle(Answered(standby, 3, 1, bytes(ROW)), 1.8)
    assert Deliver(3, bytes(ROW)) in won
    assert CloseLink(link, "a", "its standby answered first") in won
    assert [hop.peer for hop in session.route] == ["b"]
    assert session.handle(Answered(link, 3, 1, bytes(ROW)), 1.9) == []


def test_a_late_link_that_answers_first_keeps_its_place() -> None:
    session = Session(config())
    _, link = opened(session)
    session.handle(Feed(0, 1, 1, rows_of(0, 1)), 1.0)
    session.handle(Fired(link), 1.5)
    effects = session.handle(StandbyFound(link, "b"), 1.5)
    standby = opening_of(effects)
    session.handle(Opened(standby), 1.6)
    effects = session.handle(Answered(link, 0, 1, bytes(ROW)), 1.7)
    assert Deliver(0, bytes(ROW)) in effects and CloseLink(standby, "b", "") in effects
    assert [hop.peer for hop in session.route] == ["a"]


def test_a_link_late_to_open_is_raced_too() -> None:
    """a does not answer Open (it is stopped, or cut off): after 1 s b is asked as well, gets the
    prompt, and its answer decides; a's patience, 5 s, is waited for by nobody."""
    session = Session(config())
    link, effects = routed(session)
    assert SetTimer(link, 1.0) in effects
    session.handle(Feed(0, 4, 1, rows_of(0, 4)), 0.1)
    late = session.handle(Fired(link), 1.0)
    assert late == [SetTimer(link, 5.0), FindStandby(link, BLOCKS, ("a",), "late")]
    effects = session.handle(StandbyFound(link, "b"), 1.0)
    standby = opening_of(effects)
    (prompt,) = sent_to(session.handle(Opened(standby), 1.1), standby)
    assert (prompt.sizes, prompt.rows) == ((4,), 1)
    won = session.handle(Answered(standby, 0, 1, bytes(ROW)), 1.2)
    assert Deliver(0, bytes(ROW)) in won
    assert CloseLink(link, "a", "its standby answered first") in won
    assert [hop.peer for hop in session.route] == ["b"]


def test_a_link_late_to_open_that_opens_and_answers_first_keeps_its_place() -> None:
    session = Session(config())
    link, _ = routed(session)
    session.handle(Feed(0, 4, 1, rows_of(0, 4)), 0.1)
    session.handle(Fired(link), 1.0)
    effects = session.handle(StandbyFound(link, "b"), 1.0)
    standby = opening_of(effects)
    assert len(sent_to(session.handle(Opened(link), 1.1), link)) == 1
    effects = session.handle(Answered(link, 0, 1, bytes(ROW)), 1.2)
    assert Deliver(0, bytes(ROW)) in effects and CloseLink(standby, "b", "") in effects
    assert [hop.peer for hop in session.route] == ["a"]


def test_a_leaving_server_serves_until_its_standby_holds_all() -> None:
    session = Session(config())
    swarm, link = opened(session)
    for number in range(4):
        swarm.perform(session.handle(Feed(number, 1, 1, rows_of(number, 1)), 0.0))
        swarm.run()
    assert session.handle(Leaving(link), 1.0) == [FindStandby(link, BLOCKS, ("a",), "leaving")]
    effects = session.handle(StandbyFound(link, "b"), 1.0)
    standby = opening_of(effects)
    session.handle(Feed(4, 1, 1, rows_of(4, 1)), 1.1)
    sent = sent_to(session.handle(Opened(standby), 1.2), standby)
    assert [send.rows for send in sent] == [0, 1]
    delivered = session.handle(Answered(link, 4, 1, bytes(ROW)), 1.3)  # the old one is not stopped
    assert Deliver(4, bytes(ROW)) in delivered
    session.handle(Answered(standby, 0, 0, b""), 1.4)
    ended = session.handle(Answered(standby, 4, 1, bytes(ROW)), 1.5)
    assert CloseLink(link, "a", "") in ended
    assert not [effect for effect in ended if isinstance(effect, Deliver)]
    assert [hop.peer for hop in session.route] == ["b"]


def test_a_long_session_loses_at_most_a_chunk_of_replay() -> None:
    """The standby is sent what was answered, three tokens at a time; the link's death then costs
    the replay of what is left, and no search for a route."""
    session = Session(config(standby_from=2))
    swarm, link = opened(session)
    for number in range(8):
        swarm.perform(session.handle(Feed(number, 1, 1, rows_of(number, 1)), 0.0))
        swarm.run()
    (standby,) = set(swarm.servers) - {link}
    held = len(swarm.servers[standby].caches[0].rows)
    assert 8 - held < 3
    effects = session.handle(Lost(link, "killed"), 1.0)
    assert not [effect for effect in effects if isinstance(effect, FindRoute)]
    assert sum(sum(send.sizes) for send in sent_to(effects, standby)) == 8 - held


def test_a_standby_behind_a_new_boundary_is_sent_no_more_than_there_is() -> None:
    """Three steps of 3 are answered; then the only hop dies, and two take its place. The replay
    reaches the new boundary a step at a time, though all its outputs are known: a standby there can
    have only what has come."""
    session = Session(config(group_tokens=3, standby_from=0))
    swarm, link = opened(session)
    for number in range(3):
        swarm.perform(session.handle(Feed(3 * number, 3, 1, rows_of(number, 3)), 0.0))
        swarm.run()
    (standby,) = swarm.servers.keys() - {link}
    session.handle(Lost(standby, "killed"), 1.0)
    effects = session.handle(Lost(link, "killed"), 1.0)
    gap = next(effect.gap for effect in effects if isinstance(effect, FindRoute))
    hops = (Hop("b", BlockRange(0, 2)), Hop("c", BlockRange(2, 6)))
    effects = session.handle(Routed(gap, hops), 1.0)
    first, second = (effect.link for effect in effects if isinstance(effect, OpenLink))
    session.handle(Opened(second), 1.1)
    session.handle(Opened(first), 1.1)
    effects = session.handle(Answered(first, 0, 3, rows_of(0, 3)), 1.2)
    assert any(isinstance(one, FindStandby) and one.link == second for one in effects)
    effects = session.handle(StandbyFound(second, "d"), 1.3)
    standby = opening_of(effects)
    (sent,) = sent_to(session.handle(Opened(standby), 1.4), standby)
    assert sent.sizes == (3,) and len(sent.payloads) == 1


def test_a_standby_that_took_over_before_it_opened_is_raced_in_its_turn() -> None:
    """a is late, b is asked, and opens as slowly; then a dies. Whoever is alone in its place is not
    waited for longer than a first link: c is asked 1 s later, not after b's whole patience."""
    session = Session(config())
    link, _ = routed(session)
    session.handle(Feed(0, 1, 1, rows_of(0, 1)), 0.1)
    session.handle(Fired(link), 1.0)
    standby = opening_of(session.handle(StandbyFound(link, "b"), 1.0))
    assert SetTimer(standby, 3.0) in session.handle(Lost(link, "killed"), 2.0)
    late = session.handle(Fired(standby), 3.0)
    assert FindStandby(standby, BLOCKS, ("a", "b"), "late") in late


def test_a_standby_that_took_over_a_step_is_raced_in_its_turn() -> None:
    """The same of an answer: 0.5 s after a's death, not 2 s after b was sent the step."""
    session = Session(config())
    _, link = opened(session)
    session.handle(Feed(0, 1, 1, rows_of(0, 1)), 1.0)
    session.handle(Fired(link), 1.5)
    standby = opening_of(session.handle(StandbyFound(link, "b"), 1.5))
    assert SetTimer(standby, 3.6) in session.handle(Opened(standby), 1.6)
    assert SetTimer(standby, 2.2) in session.handle(Lost(link, "killed"), 1.7)
    late = session.handle(Fired(standby), 2.2)
    assert FindStandby(standby, BLOCKS, ("a", "b"), "late") in late
