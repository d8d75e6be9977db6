"""Steps whose end is taken back, as wrong guesses are: sessions, journals and receipts of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim.folding_swarm import (
    BLOCKS,
    ROW,
    Block,
    Server,
    Swarm,
    config,
    fold,
    ledger,
    rows_of,
)  # fmt: skip

from potluck.node.trust.again import is_whole
from potluck.swarm.journal import Journal, Step
from potluck.swarm.session import Session
from potluck.swarm.session_events import AskSign, Feed, SendStep, Settle, TakeBack

from .test_ledger import proof_of

CUT = 8
Plan = list[tuple[int, int]]  # (guesses, how many of them prove right)

plans = st.lists(
    st.integers(0, 5).flatmap(lambda most: st.tuples(st.just(most), st.integers(0, most))),
    min_size=1,
    max_size=12,
)


class Alike(Block):
    """A row has the same bits in any step."""

    def run(self, number: int, at: int, rows: list[bytes], salt: bytes = b"") -> list[bytes]:
        found = []
        for place, row in enumerate(rows):
            found += super().run(number, at + place, [row], salt)
        return found


class AlikeServer(Server):
    def step(self, send: SendStep) -> bytes:
        for number in range(self.blocks.start, self.blocks.stop):
            self.caches.setdefault(number, Alike())
        return super().step(send)


@pytest.fixture(autouse=True)
def alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.folding_swarm.Server", AlikeServer)


def play(plan: Plan, swarm: Swarm, deaths: list[int]) -> list[bytes]:
    """A prompt of three, then steps of a token and guesses; the accepted rows that came, in order.
    What a row of the text is depends on its position alone, and a wrong guess is another one."""
    session, rows, at = swarm.session, list[bytes](), 3
    feeds = [Feed(0, 3, 1, b"".join(map(word, range(3))))]
    for guesses, right in plan:
        words = [word(at + number) for number in range(1 + right)]
        words += [fold(b"wrong", bytes([at, number])) for number in range(guesses - right)]
        feeds.append(Feed(at, 1 + guesses, 1 + guesses, b"".join(words), guesses > 0))
        at += 1 + right
    for number, feed in enumerate(feeds):
        if feed.at < session.length and swarm.ledger is not None:
            swarm.ledger.taken_back(feed.at)
        swarm.deaths_left = deaths[number % len(deaths)] if deaths else 0
        swarm.perform(session.handle(feed, 0.0))
        swarm.run()
        assert session.idle, "a step was never answered"
        accepted = 1 if number == 0 else 1 + plan[number - 1][1]
        came = swarm.delivered[-1][1]
        rows += [came[i * ROW : (i + 1) * ROW] for i in range(accepted)]
    swarm.deaths_left = 0
    swarm.perform(session.handle(TakeBack(at), 0.0))
    if swarm.ledger is not None:
        swarm.ledger.taken_back(at)
    assert session.length == at
    swarm.perform(session.handle(Settle(), 0.0))
    swarm.run()
    return rows


def word(position: int) -> bytes:
    return rows_of(position, 1)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), plan=plans, deaths=st.lists(st.integers(0, 3), max_size=4))
def test_guesses_and_deaths_change_no_accepted_row(
    data: st.DataObject, plan: Plan, deaths: list[int]
) -> None:
    """Any guesses, right and wrong, any split, order, deaths, hedges, standbys and leavings: the
    accepted rows are those of one token at a time, undisturbed."""
    tokens = sum(1 + right for _, right in plan)
    undisturbed = play([(0, 0)] * tokens, Swarm(Session(config())), [])
    group, standby_from = data.draw(st.integers(1, 20)), data.draw(st.sampled_from([None, 0, 5]))
    session = Session(config(group, standby_from, data.draw(st.booleans())))
    assert play(plan, Swarm(session, data), deaths) == undisturbed


@settings(max_examples=40, deadline=None)
@given(data=st.data(), plan=plans, deaths=st.lists(st.integers(0, 3), max_size=4))
def test_receipts_of_guesses_hold_whoever_dies(
    data: st.DataObject, plan: Plan, deaths: list[int]
) -> None:
    """Each receipt is right when it comes (or this raises), and the whole file is good. What may be
    audited is what a fresh server gives for the accepted rows, too."""
    session = Session(config(data.draw(st.integers(1, 20)), None, data.draw(st.booleans()), CUT))
    swarm = Swarm(session, data, ledger(works=True))
    play(plan, swarm, deaths)
    assert session.settled
    proof = proof_of(swarm)
    assert proof.faults == []
    if not any(deaths):
        assert proof.bare == []
    for work in filter(is_whole, swarm.works):
        again = AlikeServer(work.blocks).step(SendStep(0, 0, work.sizes, work.rows, work.took))
        assert again == bytes(work.gave)


def test_receipts_tell_of_what_was_accepted_and_all_of_it_may_be_audited() -> None:
    """Six times four guesses of which one is right: cut behind ten and eight accepted tokens, at
    three hops alike, so that each chunk is held against the next hop's. The rows of wrong guesses
    are in none of them, and all chunks that gave every row can be computed again."""
    swarm = Swarm(Session(config(cut_tokens=CUT)), None, ledger(works=True))
    swarm.run()
    play([(4, 1)] * 6, swarm, [])
    assert swarm.ledger is not None
    accounts, shares = swarm.ledger.told()
    cuts = [[(one.at, one.stop) for one in account.chunks] for account in accounts]
    assert cuts == [[(0, 3), (3, 11), (11, 15)]] * 3
    assert [(one.first, one.until) for one in shares] == [(0, 15)] * 3
    proof = proof_of(swarm)
    assert proof.good and proof.linked == 6 and proof.bare == []
    assert [is_whole(work) for work in swarm.works] == [True] * len(swarm.works) == [True] * 9


def test_a_step_that_splits_is_replayed_as_long_as_it_is_accepted_and_with_its_neighbours() -> None:
    """Without that each step of guesses would be a frame of its own in a replay."""
    journal = Journal(BLOCKS, ROW, 100)
    at = 0
    for _ in range(3):
        if at:
            journal.take_back(at)
        journal.add(Step(at, 5, 5, splits=True), rows_of(at, 5))
        frame = journal.next_frame(BLOCKS, journal.steps - 1, journal.steps)
        journal.take(BLOCKS, frame, bytes(5 * ROW))
        at += 2
    frame = journal.next_frame(BLOCKS, 0, 3)
    sizes, payloads = journal.pieces(BLOCKS, frame)
    assert (sizes, frame.at, frame.rows) == ((2, 2, 5), 0, 0)
    assert b"".join(payloads) == b"".join((rows_of(0, 5)[: 2 * ROW], rows_of(2, 5)[: 2 * ROW],
                                           rows_of(4, 5)))  # fmt: skip


def test_a_step_that_does_not_split_keeps_its_size() -> None:
    journal = Journal(BLOCKS, ROW, 100)
    journal.add(Step(0, 5, 5), rows_of(0, 5))
    journal.take(BLOCKS, journal.next_frame(BLOCKS, 0, 1), bytes(5 * ROW))
    journal.take_back(2)
    journal.add(Step(2, 1, 1), rows_of(2, 1))
    assert journal.pieces(BLOCKS, journal.next_frame(BLOCKS, 0, 2))[0] == (5,)


def test_before_it_signs_a_server_is_told_to_forget_what_was_not_accepted() -> None:
    swarm = Swarm(Session(config(cut_tokens=CUT)), None, ledger())
    swarm.run()
    asked: list[AskSign] = []
    perform = swarm.perform

    def record(effects):  # type: ignore[no-untyped-def]
        asked.extend(one for one in effects if isinstance(one, AskSign))
        perform(effects)

    swarm.perform = record  # type: ignore[method-assign]
    play([(6, 6), (4, 1), (0, 0)], swarm, [])
    assert [one.back for one in asked] == [None] * 3 + [12] * 3 + [None] * 3
