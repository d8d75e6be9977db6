"""Steps that go from hop to hop, against pretended servers: what comes out, and what is signed, is
what comes of the star; whatever dies, is late, leaves or is parted, and in whatever order it all
arrives."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim.chained_swarm import ChainedSwarm
from sim.folding_swarm import Swarm, config, ledger, rows_of

from potluck.errors import RemoteError
from potluck.swarm.session import Session
from potluck.swarm.session_events import Feed, Settle
from potluck.swarm.wire import Following, Output, Taken

from . import test_draft_session as drafts
from . import test_session as plain
from .test_ledger import proof_of

CUT = drafts.CUT


def chained(data: st.DataObject | None = None, *, cut: int = 0, hedged: bool = True) -> Session:
    group = 8 if data is None else data.draw(st.integers(1, 20))
    standby_from = None if data is None else data.draw(st.sampled_from([None, 0, 5]))
    return Session(replace(config(group, standby_from, hedged, cut), alone=True))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), plan=plain.plans, deaths=st.lists(st.integers(0, 3), max_size=4))
def test_no_death_changes_loses_or_repeats_an_output(
    data: st.DataObject, plan: plain.Plan, deaths: list[int]
) -> None:
    undisturbed = plain.play(plan, Swarm(Session(config())), [])
    session = chained(data, hedged=data.draw(st.booleans()))
    swarm = ChainedSwarm(session, data, early=data.draw(st.booleans()))
    assert plain.play(plan, swarm, deaths) == undisturbed
    assert swarm.blamed == []


@settings(max_examples=100, deadline=None)
@given(data=st.data(), chunks=st.lists(st.integers(1, 5), min_size=2, max_size=9))
def test_chunks_fed_at_once_come_out_in_order(data: st.DataObject, chunks: list[int]) -> None:
    """Of a prompt in many chunks several are on the way to each hop."""
    outputs = []
    early = data.draw(st.booleans())
    for swarm in (Swarm(Session(config())), ChainedSwarm(chained(data), data, early=early)):
        if isinstance(swarm, ChainedSwarm) and data.draw(st.booleans()):
            swarm.run()  # all are one behind the other when the first comes
        swarm.deaths_left = 2
        for number, tokens in enumerate(chunks):
            last = number == len(chunks) - 1
            feed = Feed(swarm.session.length, tokens, int(last), rows_of(number, tokens))
            swarm.perform(swarm.session.handle(feed, 0.0))
        swarm.run()
        outputs.append(swarm.delivered)
    assert outputs[0] == outputs[1]


@settings(max_examples=120, deadline=None)
@given(data=st.data(), plan=drafts.plans, deaths=st.lists(st.integers(0, 3), max_size=4))
def test_receipts_of_guesses_hold_whoever_dies(
    data: st.DataObject, plan: drafts.Plan, deaths: list[int]
) -> None:
    """Each receipt is right when it comes (or this raises), the whole file is good, and the rows
    are those of one token at a time by star."""
    drafts_alike = pytest.MonkeyPatch()
    drafts_alike.setattr("sim.folding_swarm.Server", drafts.AlikeServer)
    try:
        tokens = sum(1 + right for _, right in plan)
        undisturbed = drafts.play([(0, 0)] * tokens, Swarm(Session(config())), [])
        session = chained(data, cut=CUT, hedged=data.draw(st.booleans()))
        swarm = ChainedSwarm(session, data, ledger(works=True), early=data.draw(st.booleans()))
        assert drafts.play(plan, swarm, deaths) == undisturbed
    finally:
        drafts_alike.undo()
    assert session.settled and swarm.blamed == []
    proof = proof_of(swarm)
    assert proof.faults == []
    if not any(deaths):
        assert proof.bare == []


def begun(*, receipts: bool = False, early: bool = False) -> ChainedSwarm:
    """Three hops, one behind the other."""
    cut, book = CUT * bool(receipts), ledger() if receipts else None
    made = ChainedSwarm(chained(cut=cut), None, book, early=early)
    made.run()
    return made


def feed(swarm: ChainedSwarm, at: int, tokens: int = 1) -> None:
    swarm.perform(swarm.session.handle(Feed(at, tokens, 1, rows_of(at, tokens)), 0.0))


def test_a_step_is_sent_once_and_comes_back_from_each_hop() -> None:
    swarm = begun()
    for at in range(5):
        feed(swarm, at)
        assert [len(road.box) for road in swarm.servers_of.values()] == [1, 0, 0]
        swarm.run()
    assert len(swarm.delivered) == 5 and swarm.chaining.steps == 5
    assert swarm.awaited == 10  # by each of the two that follow


def test_without_a_chain_every_step_goes_by_star() -> None:
    swarm = ChainedSwarm(chained(), None, joins=False)
    swarm.run()
    for at in range(5):
        feed(swarm, at)
        swarm.run()
    assert len(swarm.delivered) == 5 and swarm.chaining.steps == swarm.awaited == 0


def test_with_receipts_all_but_the_steps_behind_a_signature_are_pushed() -> None:
    swarm = begun(receipts=True)
    for at in range(4 * CUT):
        feed(swarm, at)
        swarm.run()
    swarm.perform(swarm.session.handle(Settle(), 0.0))
    swarm.run()
    proof = proof_of(swarm)
    assert proof.faults == [] and proof.bare == [] and proof.linked == 8
    assert swarm.chaining.steps == 4 * CUT  # at rest all is signed for before the next step


def test_who_pushes_other_rows_than_it_gives_is_lost_and_nobody_else() -> None:
    """The next hop computes with them in good faith, and shows by whom it was pushed them."""
    swarm = begun(receipts=True)
    honest = begun(receipts=True)
    liar = swarm.session.order[0]
    swarm.servers_of[liar].twists = True
    lost: list[int] = []
    dispatch = swarm.chaining._dispatch

    def note(event):  # type: ignore[no-untyped-def]
        lost.append(event.link)
        dispatch(event)

    swarm.chaining._dispatch = note
    for made in (swarm, honest):
        feed(made, 0)
        made.run()
    assert lost == [liar] and swarm.blamed == []
    assert swarm.delivered == honest.delivered


def test_a_push_that_nobody_ordered_parts_two_hops_and_blames_neither() -> None:
    swarm = begun()
    first, second, _ = swarm.session.order
    feed(swarm, 0)
    swarm.run()
    road = swarm.servers_of[second]
    strange = Taken(1, 1, 1, 0.0, 0.0, 0, number=77, seal=b"")
    road.out.append((strange, bytes(8)))
    swarm.run()
    assert not road.follows and swarm.blamed == []
    feed(swarm, 1)
    assert swarm.chaining.steps == 1, "it is pushed on once more"
    swarm.run()
    assert len(swarm.delivered) == 2 and first in swarm.links
    road.out.append((strange, bytes(8)))
    with pytest.raises(RemoteError, match="follows nobody"):
        swarm.run()


def test_an_answer_to_nothing_is_its_servers_fault() -> None:
    swarm = begun()
    link = swarm.links[swarm.session.order[1]]
    with pytest.raises(RemoteError, match="an answer to nothing"):
        swarm.chaining.receive(link, Output(0, 1, 1, 0.0, 0.0, 0), memoryview(bytes(8)))


def test_a_late_hop_is_sent_again_what_its_leader_may_not_have_pushed() -> None:
    """The push is lost on the way, and nobody says so."""
    from potluck.swarm.machine import Fired

    swarm = begun()
    feed(swarm, 0)
    first, second, _ = swarm.session.order
    for move in ("box", "out"):
        swarm.move(move, first)
    swarm.servers_of[second].pushes.clear()
    swarm.run()
    assert swarm.delivered == []
    swarm.data = None
    swarm.perform(swarm.session.handle(Fired(second), 0.0))
    swarm.run()
    assert len(swarm.delivered) == 1 and swarm.blamed == []


def test_two_are_introduced_once() -> None:
    swarm = begun()
    assert not swarm.joins
    swarm.chaining.settle(Settle())
    assert not swarm.joins
    link = swarm.links[swarm.session.order[1]]
    swarm.chaining.receive(link, Following(), memoryview(b""))  # nothing that it was asked


def test_a_chain_that_is_told_of_at_once_takes_the_first_step_and_all_of_a_prompt() -> None:
    """None of it goes by star, though nobody has said that it follows."""
    swarm = ChainedSwarm(chained(), None, early=True)
    while len([one for one in swarm.session.order if one]) < 3:
        swarm.move("inbox", swarm.moves()[0][1])
    for number in range(12):  # more than a server of the first version is pushed ahead
        feed(swarm, 2 * number, 2)
    swarm.run()
    assert len(swarm.delivered) == 12 and swarm.chaining.steps == 12
    assert swarm.awaited == 24


def test_two_that_are_not_connected_are_asked_for_a_consent_and_lose_nothing() -> None:
    swarm, honest = ChainedSwarm(chained(), None, early=True), begun()
    swarm.met = lambda: False  # type: ignore[method-assign]
    for made in (swarm, honest):
        for number in range(6):
            feed(made, 2 * number, 2)
        made.run()
        feed(made, 12)
        made.run()
    assert swarm.delivered == honest.delivered and swarm.blamed == []
    assert all(road.follows for road in list(swarm.servers_of.values())[1:]), "in the end they are"
    before = swarm.chaining.steps
    feed(swarm, 13)
    assert swarm.chaining.steps == before + 1
