"""The session machine against a swarm of pretended servers that die at every place.

A pretended server folds what it is fed into one number a row: its output depends on its block
range, on the sizes in which rows came, and on every row it holds. So an answer is right only when
the server was fed exactly what an undisturbed server would have been fed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.swarm.blocks import BlockRange
from potluck.swarm.machine import Fired, SetTimer
from potluck.swarm.routing import Hop
from potluck.swarm.session import Session
from potluck.swarm.session_events import (
    Answered,
    CloseLink,
    Deliver,
    Effect,
    Event,
    Feed,
    FindRoute,
    FindStandby,
    Leaving,
    Lost,
    Opened,
    OpenLink,
    Routed,
    SendStep,
    SessionConfig,
    StandbyFound,
)

ROW = 8
BLOCKS = BlockRange(0, 6)


def config(
    group_tokens: int = 8, standby_from: int | None = None, hedged: bool = True
) -> SessionConfig:
    return SessionConfig(
        BLOCKS,
        ROW,
        group_tokens,
        lambda hop, tokens: 2.0,
        lambda hop: 5.0,
        (lambda hop, tokens: 0.5) if hedged else None,
        standby_from,
        (lambda hop: 1.0) if hedged else None,
        standby_chunk=3,
    )


def fold(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"|".join(parts), digest_size=ROW).digest()


@dataclass
class Block:
    """One block's cache: a row remembers what it saw, and in which piece it came."""

    rows: list[bytes] = field(default_factory=list)

    def run(self, number: int, at: int, rows: list[bytes]) -> list[bytes]:
        del self.rows[at:]
        assert len(self.rows) == at, "a hole in the cache"
        outputs = []
        for row in rows:
            self.rows.append(fold(row, bytes([len(rows)])))
            outputs.append(fold(bytes([number]), *self.rows))
        return outputs


@dataclass
class Server:
    """What stands at the other end of one link."""

    blocks: BlockRange
    caches: dict[int, Block] = field(default_factory=dict)

    def step(self, send: SendStep) -> bytes:
        at, whole = send.at, []
        for size, payload in zip(send.sizes, send.payloads, strict=True):
            rows = [bytes(payload[i * ROW : (i + 1) * ROW]) for i in range(size)]
            for number in range(self.blocks.start, self.blocks.stop):
                rows = self.caches.setdefault(number, Block()).run(number, at, rows)
            whole += rows
            at += size
        return b"".join(whole[len(whole) - send.rows :])


class Swarm:
    """Performs effects. `choose` splits a gap into hops; `dies` says when a link is lost."""

    def __init__(self, session: Session, data: st.DataObject | None = None) -> None:
        self.session = session
        self.data = data
        self.servers: dict[int, Server] = {}
        self.inbox: list[tuple[int, Event]] = []  # (link, event), in order for each link
        self.delivered: list[tuple[int, bytes]] = []
        self.deaths_left = 0
        self.names = 0
        self.perform(session.start(0.0))

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case FindRoute(gap, blocks):
                    self.inbox.append((-gap, Routed(gap, tuple(self.split(blocks)))))
                case FindStandby(link):
                    self.names += 1
                    found = self.data is None or self.data.draw(st.booleans())
                    name = f"peer{self.names}" if found else None
                    self.inbox.append((-link, StandbyFound(link, name)))
                case OpenLink(link, hop):
                    self.servers[link] = Server(hop.blocks)
                    self.inbox.append((link, Opened(link)))
                case SendStep(link, at, _, rows):
                    answer = self.servers[link].step(effect)
                    self.inbox.append((link, Answered(link, at, rows, answer)))
                case CloseLink(link):
                    del self.servers[link]
                    self.inbox = [entry for entry in self.inbox if entry[0] != link]
                case Deliver(index, payload):
                    self.delivered.append((index, bytes(payload)))

    def split(self, blocks: BlockRange) -> Iterator[Hop]:
        cuts = list(range(blocks.start + 1, blocks.stop))
        chosen = [cut for cut in cuts if self.data is not None and self.data.draw(st.booleans())]
        if self.data is None:
            chosen = [cut for cut in (2, 4) if cut in cuts]
        edges = [blocks.start, *chosen, blocks.stop]
        for start, stop in itertools.pairwise(edges):
            self.names += 1
            yield Hop(f"peer{self.names}", BlockRange(start, stop))

    def run(self) -> None:
        """Hand in what waits, in any order that keeps each link's own, and kill on the way."""
        while self.inbox:
            if self.data is not None and self.death_comes(self.data):
                continue
            senders = sorted({sender for sender, _ in self.inbox})
            sender = senders[0] if self.data is None else self.data.draw(st.sampled_from(senders))
            place = next(i for i, entry in enumerate(self.inbox) if entry[0] == sender)
            _, event = self.inbox.pop(place)
            self.perform(self.session.handle(event, 0.0))

    def death_comes(self, data: st.DataObject) -> bool:
        if not self.deaths_left or not self.servers or data.draw(st.integers(0, 3)):
            return False
        self.deaths_left -= 1
        link = data.draw(st.sampled_from(sorted(self.servers)))
        ends: list[Event] = [
            Lost(link, "killed"),
            Fired(link),
            Leaving(link),
            Answered(link, 99, 1, b"rubbish"),
        ]
        self.perform(self.session.handle(data.draw(st.sampled_from(ends)), 0.0))
        return True


def rows_of(seed: int, tokens: int) -> bytes:
    return b"".join(fold(bytes([seed % 251]), bytes([i])) for i in range(tokens))


Plan = list[tuple[int, int, bool]]  # (taken back, tokens, are all rows wanted)


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
    assert play(plan, Swarm(session, data), deaths) == undisturbed


@settings(max_examples=100, deadline=None)
@given(data=st.data(), chunks=st.lists(st.integers(1, 5), min_size=2, max_size=8))
def test_chunks_fed_at_once_come_out_in_order(data: st.DataObject, chunks: list[int]) -> None:
    """A prompt in chunks, all fed before the first answer, with deaths in the middle."""
    outputs = []
    for swarm in (Swarm(Session(config())), Swarm(Session(config()), data)):
        swarm.deaths_left = 3
        for number, tokens in enumerate(chunks):
            last = number == len(chunks) - 1
            feed = Feed(swarm.session.length, tokens, int(last), rows_of(number, tokens))
            swarm.perform(swarm.session.handle(feed, 0.0))
        swarm.run()
        outputs.append(swarm.delivered)
    assert outputs[0] == outputs[1]
    assert [index for index, _ in outputs[1]] == list(range(len(chunks)))


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


def opened(session: Session) -> tuple[Swarm, int]:
    """A session with one link for all blocks, and the link."""
    swarm = Swarm(session)
    swarm.split = lambda blocks: iter([Hop("a", blocks)])  # type: ignore[method-assign]
    swarm.inbox.clear()
    swarm.perform([FindRoute(1, BLOCKS, ())])
    swarm.run()
    (link,) = swarm.servers
    return swarm, link


def sent_to(effects: list[Effect], link: int) -> list[SendStep]:
    return [effect for effect in effects if isinstance(effect, SendStep) and effect.link == link]


def test_a_late_link_races_its_standby_and_the_first_answer_wins() -> None:
    session = Session(config())
    swarm, link = opened(session)
    for number in range(3):
        swarm.perform(session.handle(Feed(number, 1, 1, rows_of(number, 1)), 0.0))
        swarm.run()
    session.handle(Feed(3, 1, 1, rows_of(3, 1)), 1.0)  # on which the server sleeps
    session.handle(Fired(link), 1.5)
    effects = session.handle(StandbyFound(link, "b"), 1.5)
    standby = next(effect.link for effect in effects if isinstance(effect, OpenLink))
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
    standby = next(effect.link for effect in effects if isinstance(effect, OpenLink))
    session.handle(Opened(standby), 1.6)
    effects = session.handle(Answered(link, 0, 1, bytes(ROW)), 1.7)
    assert Deliver(0, bytes(ROW)) in effects and CloseLink(standby, "b", "") in effects
    assert [hop.peer for hop in session.route] == ["a"]


def test_a_link_late_to_open_is_raced_too() -> None:
    """a does not answer Open (it is stopped, or cut off): after 1 s b is asked as well, gets the
    prompt, and its answer decides; a's patience, 5 s, is waited for by nobody."""
    session = Session(config())
    (find,) = session.start(0.0)
    assert isinstance(find, FindRoute)
    effects = session.handle(Routed(find.gap, (Hop("a", BLOCKS),)), 0.0)
    link = next(effect.link for effect in effects if isinstance(effect, OpenLink))
    assert SetTimer(link, 1.0) in effects
    session.handle(Feed(0, 4, 1, rows_of(0, 4)), 0.1)
    late = session.handle(Fired(link), 1.0)
    assert late == [SetTimer(link, 5.0), FindStandby(link, BLOCKS, ("a",), "late")]
    effects = session.handle(StandbyFound(link, "b"), 1.0)
    standby = next(effect.link for effect in effects if isinstance(effect, OpenLink))
    (prompt,) = sent_to(session.handle(Opened(standby), 1.1), standby)
    assert (prompt.sizes, prompt.rows) == ((4,), 1)
    won = session.handle(Answered(standby, 0, 1, bytes(ROW)), 1.2)
    assert Deliver(0, bytes(ROW)) in won
    assert CloseLink(link, "a", "its standby answered first") in won
    assert [hop.peer for hop in session.route] == ["b"]


def test_a_link_late_to_open_that_opens_and_answers_first_keeps_its_place() -> None:
    session = Session(config())
    (find,) = session.start(0.0)
    assert isinstance(find, FindRoute)
    effects = session.handle(Routed(find.gap, (Hop("a", BLOCKS),)), 0.0)
    link = next(effect.link for effect in effects if isinstance(effect, OpenLink))
    session.handle(Feed(0, 4, 1, rows_of(0, 4)), 0.1)
    session.handle(Fired(link), 1.0)
    effects = session.handle(StandbyFound(link, "b"), 1.0)
    standby = next(effect.link for effect in effects if isinstance(effect, OpenLink))
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
    standby = next(effect.link for effect in effects if isinstance(effect, OpenLink))
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
    standby = next(effect.link for effect in effects if isinstance(effect, OpenLink))
    (sent,) = sent_to(session.handle(Opened(standby), 1.4), standby)
    assert sent.sizes == (3,) and len(sent.payloads) == 1
