"""The session machine against a swarm of pretended servers that die at every place."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim.folding_swarm import BLOCKS, Swarm, config, rows_of

from potluck.swarm import session_links
from potluck.swarm.blocks import BlockRange
from potluck.swarm.journal import Frame
from potluck.swarm.machine import Fired, SetTimer
from potluck.swarm.routing import Hop
from potluck.swarm.session import Session
from potluck.swarm.session_events import (
    CloseLink,
    Effect,
    Feed,
    FindRoute,
    FindStandby,
    Lost,
    Opened,
    OpenLink,
    Routed,
    SendStep,
)

Plan = list[tuple[int, int, bool]]  # (taken back, tokens, are all rows wanted)
AHEAD = st.sampled_from([(0, 0), (4, 4), session_links.TOKENS_IN_FLIGHT])  # few of these are many


def play(plan: Plan, swarm: Swarm, deaths: list[int]) -> list[tuple[int, bytes]]:
    for number, (back, tokens, whole) in enumerate(plan):
        at = max(0, swarm.session.length - back)
        feed = Feed(at, tokens, tokens if whole else 1, rows_of(number, tokens))
        swarm.deaths_left = deaths[number % len(deaths)] if deaths else 0
        swarm.perform(swarm.session.handle(feed, 0.0))
        swarm.run()
        assert swarm.session.idle, "a step was never answered"
    return swarm.delivered


plans = st.lists(
    st.tuples(st.sampled_from([0, 0, 0, 1, 2, 5]), st.integers(1, 6), st.booleans()),
    min_size=1,
    max_size=7,
)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), plan=plans, deaths=st.lists(st.integers(0, 3), max_size=4))
def test_no_death_changes_loses_or_repeats_an_output(
    data: st.DataObject, plan: Plan, deaths: list[int]
) -> None:
    """Any split, any order of events, any deaths (by loss, deadline or rubbish), hedges, standbys
    and leavings, with steps taken back: the outputs are those of an undisturbed session, each
    once."""
    undisturbed = play(plan, Swarm(Session(config())), [])
    group = data.draw(st.integers(1, 20))
    standby_from = data.draw(st.sampled_from([None, 0, 5]))
    session = Session(config(group, standby_from, data.draw(st.booleans())))
    with patch.object(session_links, "TOKENS_IN_FLIGHT", data.draw(AHEAD)):
        assert play(plan, Swarm(session, data), deaths) == undisturbed


@settings(max_examples=100, deadline=None)
@given(data=st.data(), chunks=st.lists(st.integers(1, 5), min_size=2, max_size=8))
def test_chunks_fed_at_once_come_out_in_order(data: st.DataObject, chunks: list[int]) -> None:
    """A prompt in chunks, all fed before the first answer, with deaths in the middle."""
    outputs = []
    for swarm in (Swarm(Session(config())), Swarm(Session(config()), data)):
        swarm.deaths_left = 3
        with patch.object(session_links, "TOKENS_IN_FLIGHT", data.draw(AHEAD)):
            for number, tokens in enumerate(chunks):
                last = number == len(chunks) - 1
                feed = Feed(swarm.session.length, tokens, int(last), rows_of(number, tokens))
                swarm.perform(swarm.session.handle(feed, 0.0))
            swarm.run()
        outputs.append(swarm.delivered)
    assert outputs[0] == outputs[1]
    assert [index for index, _ in outputs[1]] == list(range(len(chunks)))


@pytest.mark.parametrize(("row_bytes", "frames"), [(768, 16), (16384, 3)])
def test_so_many_frames_of_a_prompt_are_under_way(row_bytes: int, frames: int) -> None:
    """Small rows more, so that a long road is filled; wide ones three, as they fill it."""
    assert session_links.frames_in_flight(row_bytes, 128) == frames
    link = session_links.Link(1, Hop("p", BLOCKS), live=True)
    ours = replace(config(), row_bytes=row_bytes)
    while link.has_room(ours):
        link.in_flight.append(Frame(len(link.in_flight), 1, 0, tokens=128, rows=0))
    assert len(link.in_flight) == frames


def test_a_dead_middle_hop_is_sent_only_what_it_lacks() -> None:
    """Two steps went through; the hop of blocks 2:4 dies. Its successor is sent both steps in one
    frame without an answer wanted, and nobody else is sent anything."""
    session = Session(config(group_tokens=100))
    swarm = Swarm(session)
    swarm.run()
    for number in range(2):
        swarm.perform(session.handle(Feed(number, 1, 1, rows_of(number, 1)), 0.0))
        swarm.run()
    middle = next(link for link, server in swarm.servers.items() if server.blocks.start == 2)
    sent: list[SendStep] = []
    perform = swarm.perform

    def record(effects: list[Effect]) -> None:
        sent.extend(effect for effect in effects if isinstance(effect, SendStep))
        perform(effects)

    swarm.perform = record  # type: ignore[method-assign]
    swarm.perform(session.handle(Lost(middle, "killed"), 0.0))
    swarm.run()
    assert [(send.at, send.sizes, send.rows) for send in sent] == [(0, (1, 1), 0)]


def test_neighbouring_gaps_are_routed_as_one() -> None:
    session = Session(config())
    swarm = Swarm(session)
    swarm.run()
    first, second, _ = sorted(swarm.servers, key=lambda link: swarm.servers[link].blocks.start)
    session.handle(Lost(first, "killed"), 0.0)
    effects = session.handle(Lost(second, "killed"), 0.0)
    routes = [effect for effect in effects if isinstance(effect, FindRoute)]
    assert [(route.blocks, route.avoid) for route in routes] == [
        (BlockRange(0, 4), ("peer1", "peer2"))
    ]


def test_a_silent_hop_has_a_deadline_from_its_first_unanswered_step() -> None:
    session = Session(config())
    for effect in session.start(0.0):
        assert isinstance(effect, FindRoute)
        hops = (Hop("a", BLOCKS),)
        opened = session.handle(Routed(effect.gap, hops), 0.0)
    link = next(effect.link for effect in opened if isinstance(effect, OpenLink))
    session.handle(Opened(link), 1.0)
    effects = session.handle(Feed(0, 1, 1, rows_of(0, 1)), 10.0)
    assert SetTimer(link, 10.5) in effects
    late = session.handle(Fired(link), 10.5)
    assert late == [SetTimer(link, 12.0), FindStandby(link, BLOCKS, ("a",), "late")]
    lost = session.handle(Fired(link), 12.0)
    assert CloseLink(link, "a", "no answer before its deadline") in lost


def test_a_hole_in_positions_is_our_own_fault() -> None:
    session = Session(config())
    session.start(0.0)
    with pytest.raises(ValueError, match="hole"):
        session.handle(Feed(3, 1, 1, rows_of(0, 1)), 0.0)
