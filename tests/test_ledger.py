"""What a client believes of receipts: of honest servers all, of others nothing, whoever dies."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim.folding_swarm import (
    CLASS,
    MODEL,
    NAME,
    ROW,
    Server,
    Swarm,
    config,
    key_of,
    ledger,
    notary_of,
    peer,
    rows_of,
)

from potluck.errors import RemoteError
from potluck.swarm.blocks import BlockRange
from potluck.swarm.ledger import Ledger, Work
from potluck.swarm.proof import Answer, Proof, check_proof, write_proof
from potluck.swarm.receipt import Notary, Opening
from potluck.swarm.routing import Hop
from potluck.swarm.session import Session
from potluck.swarm.session_events import AskSign, Feed, Leaving, Lost, Opened, SendStep, Settle

CUT = 4
HOP = Hop(peer(1), BlockRange(2, 4))
Plan = list[tuple[int, int, bool]]  # (taken back, tokens, are all rows wanted)

plans = st.lists(
    st.tuples(st.sampled_from([0, 0, 0, 1, 2, 5]), st.integers(1, 6), st.booleans()),
    min_size=1,
    max_size=8,
)


def play(plan: Plan, swarm: Swarm, deaths: list[int]) -> list[tuple[int, bytes]]:
    for number, (back, tokens, whole) in enumerate(plan):
        at = max(0, swarm.session.length - back)
        if at < swarm.session.length and swarm.ledger is not None:
            swarm.ledger.taken_back(at)
        feed = Feed(at, tokens, tokens if whole else 1, rows_of(number, tokens))
        swarm.deaths_left = deaths[number % len(deaths)] if deaths else 0
        swarm.perform(swarm.session.handle(feed, 0.0))
        swarm.run()
        assert swarm.session.idle, "a step was never answered"
    swarm.deaths_left = 0
    swarm.perform(swarm.session.handle(Settle(), 0.0))
    swarm.run()
    return swarm.delivered


def proof_of(swarm: Swarm) -> Proof:
    assert swarm.ledger is not None
    accounts, shares = swarm.ledger.told()
    length = swarm.session.length
    answer = Answer(
        NAME, 0.0, bytes.fromhex(MODEL), "folding", 6, tuple(range(length + 1)), 1, length,
        tuple(shares), bytes(32),
    )  # fmt: skip
    return check_proof(write_proof(key_of(0), accounts, [], answer))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), plan=plans, deaths=st.lists(st.integers(0, 3), max_size=4))
def test_receipts_of_honest_servers_hold_whoever_dies_and_change_no_output(
    data: st.DataObject, plan: Plan, deaths: list[int]
) -> None:
    """As in test_session.py: any split, order, deaths, hedges, standbys, leavings, take-backs. Each
    receipt is right when it comes (or this raises); then the whole file is good; and where nobody
    died, nothing is left unsigned. What may be audited is what a fresh server gives too."""
    undisturbed = play(plan, Swarm(Session(config())), [])
    group = data.draw(st.integers(1, 20))
    standby_from = data.draw(st.sampled_from([None, 0, 5]))
    session = Session(config(group, standby_from, data.draw(st.booleans()), CUT))
    swarm = Swarm(session, data, ledger(works=True))
    assert play(plan, swarm, deaths) == undisturbed
    assert session.settled
    proof = proof_of(swarm)
    assert proof.faults == []
    if not any(deaths):
        assert proof.bare == []
    for work in swarm.works:
        check_work(work)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), plan=plans, deaths=st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_honest_servers_that_round_otherwise_contradict_nobody(
    data: st.DataObject, plan: Plan, deaths: list[int]
) -> None:
    """No two give the same rows, so whose answer was the first makes a difference: only that one's
    receipts are held against those of the next hop."""
    session = Session(config(data.draw(st.integers(1, 20)), 0, True, CUT))
    swarm = Swarm(session, data, ledger(), salted=True)
    play(plan, swarm, deaths)
    assert proof_of(swarm).faults == []


def check_work(work: Work) -> None:
    """A fresh server gives the same for it."""
    again = Server(work.blocks).step(SendStep(0, 0, work.sizes, work.rows, work.took))
    assert again == bytes(work.gave)
    chunk = work.account.chunks[work.place]
    assert (sum(work.sizes), work.rows) == (chunk.stop, chunk.rows)


def test_all_hops_are_cut_alike_and_their_links_fit() -> None:
    """A prompt of 6 in one step, then 9 single ones: cuts at 6, 10, 14 and the end. Three hops,
    so two boundaries, of four chunks each."""
    swarm = Swarm(Session(config(cut_tokens=CUT)), None, ledger())
    swarm.run()
    play([(0, 6, False), *[(0, 1, True)] * 9], swarm, [])
    assert swarm.ledger is not None
    accounts, shares = swarm.ledger.told()
    cuts = [[(one.at, one.stop) for one in account.chunks] for account in accounts]
    assert cuts == [[(0, 6), (6, 10), (10, 14), (14, 15)]] * 3
    assert [(one.first, one.until) for one in shares] == [(0, 15)] * 3
    proof = proof_of(swarm)
    assert proof.good and proof.linked == 8 and proof.bare == []


def test_no_replay_reaches_over_a_cut() -> None:
    """Nine tokens went through; the middle hop dies, and its successor may be sent 100 at once: it
    is sent 4, 4 and 1, and signs behind each."""
    swarm = Swarm(Session(config(group_tokens=100, cut_tokens=CUT)), None, ledger())
    swarm.run()
    for number in range(9):
        swarm.perform(swarm.session.handle(Feed(number, 1, 1, rows_of(number, 1)), 0.0))
        swarm.run()
    middle = next(link for link, server in swarm.servers.items() if server.blocks.start == 2)
    before = set(swarm.servers)
    done: list[tuple[str, int]] = []
    perform = swarm.perform

    def record(effects):  # type: ignore[no-untyped-def]
        for one in effects:
            if isinstance(one, SendStep | AskSign) and one.link not in before:
                done.append(("sign", 0) if isinstance(one, AskSign) else ("step", len(one.sizes)))
        perform(effects)

    swarm.perform = record  # type: ignore[method-assign]
    swarm.perform(swarm.session.handle(Lost(middle, "killed"), 0.0))
    swarm.run()
    sign = ("sign", 0)
    assert done == [("step", 4), sign, ("step", 4), sign, ("step", 1), sign]


def test_a_replay_cut_into_small_frames_does_not_wait_for_each() -> None:
    """256 tokens went through, in frames of 32: a new hop is sent all eight at once, whether they
    were cut there or not."""
    for cut_tokens in (32, 0):
        session = Session(config(group_tokens=32, cut_tokens=cut_tokens))
        swarm = Swarm(session, None, ledger())
        swarm.run()
        for number in range(256):
            swarm.perform(session.handle(Feed(number, 1, 1, rows_of(number, 1)), 0.0))
            swarm.run()
        first = next(n for n, one in swarm.servers.items() if one.blocks.start == 0)
        swarm.perform(session.handle(Lost(first, "killed"), 0.0))
        routed = swarm.inbox.pop()[1]
        swarm.perform(session.handle(routed, 0.0))  # type: ignore[arg-type]
        (new,) = {link for link, _ in swarm.inbox}
        effects = session.handle(Opened(new), 0.0)
        assert sum(isinstance(one, SendStep) for one in effects) == 8


def test_who_dies_unsigned_leaves_its_positions_bare_and_no_others() -> None:
    """The middle hop signed for 4 of 6 tokens when it died; its successor computed them all, but
    what it gave is in the answer only from there on."""
    swarm = Swarm(Session(config(cut_tokens=CUT)), None, ledger())
    swarm.run()
    for number in range(10):
        if number == 6:
            middle = next(n for n, one in swarm.servers.items() if one.blocks.start == 2)
            swarm.perform(swarm.session.handle(Lost(middle, "killed"), 0.0))
        swarm.perform(swarm.session.handle(Feed(number, 1, 1, rows_of(number, 1)), 0.0))
        swarm.run()
    swarm.perform(swarm.session.handle(Settle(), 0.0))
    swarm.run()
    proof = proof_of(swarm)
    assert proof.good
    assert proof.bare == ["block 2, positions 4..6", "block 3, positions 4..6"]


def test_who_leaves_signs_for_all_before_it_goes() -> None:
    """Six tokens, of which four are signed for when it says that it leaves. The seventh is answered
    before its standby has caught up; then nothing more is sent to it, and it signs."""
    swarm = Swarm(Session(config(cut_tokens=CUT)), None, ledger())
    swarm.run()
    for number in range(6):
        swarm.perform(swarm.session.handle(Feed(number, 1, 1, rows_of(number, 1)), 0.0))
        swarm.run()
    middle = next(n for n, one in swarm.servers.items() if one.blocks.start == 2)
    swarm.perform(swarm.session.handle(Leaving(middle), 0.0))
    swarm.perform(swarm.session.handle(Feed(6, 1, 1, rows_of(6, 1)), 0.0))
    swarm.run()
    assert middle not in swarm.servers and swarm.session.idle
    assert swarm.ledger is not None
    accounts, shares = swarm.ledger.told()
    (place,) = [n for n, one in enumerate(accounts) if one.opening.nonce == middle.to_bytes(16)]
    assert [(one.first, one.until) for one in shares if one.account == place] == [(0, 7)]
    assert accounts[place].length == 7
    swarm.perform(swarm.session.handle(Settle(), 0.0))
    swarm.run()
    proof = proof_of(swarm)
    assert proof.good and proof.bare == []


# ---- one link, and a server that signs what it likes


class Page:
    """A ledger of one link, to whose server a step of three and two of one token were sent."""

    def __init__(self) -> None:
        self.ledger = ledger()
        self.notary = notary_of(HOP, 1)
        self.ledger.opened(1, HOP, self.notary.opening, CLASS)
        self.steps = [(0, 3), (3, 1), (4, 1)]

    def talk(self, bend: str = "") -> tuple[bytes, ...]:
        """What its server signs. bend: what it lies about."""
        for number, (at, tokens) in enumerate(self.steps):
            took, gave = rows_of(number, tokens), rows_of(100 + number, tokens)
            self.ledger.sent(SendStep(1, at, (tokens,), tokens, (took,)))
            self.ledger.got(1, gave)
            self.notary.took(at, rows_of(50, tokens) if bend == "took" else took)
            if bend != "rows":
                self.notary.gave(rows_of(51, tokens) if bend == "gave" else gave)
        return self.notary.sign()


def test_an_honest_chunk_is_kept() -> None:
    page = Page()
    raws = page.talk()
    page.ledger.counted(1, 0, 3)
    page.ledger.counted(1, 3, 5)
    assert page.ledger.told() == ([], [])
    assert page.ledger.signed(1, raws) == []
    (account,), (share,) = page.ledger.told()
    assert [(one.at, one.stop, one.rows) for one in account.chunks] == [(0, 5, 5)]
    assert (account.peer, share.first, share.until) == (HOP.peer, 0, 5)


@pytest.mark.parametrize("bend", ["took", "gave", "rows"])
def test_a_receipt_for_other_rows_is_refused_and_not_kept(bend: str) -> None:
    page = Page()
    with pytest.raises(
        RemoteError, match=r"not for what came and went: 5 rows of positions 0\.\.5"
    ):
        page.ledger.signed(1, page.talk(bend))
    assert page.ledger.told() == ([], [])


def test_what_a_false_receipt_was_to_be_for_stays_unsigned() -> None:
    """It is looked at when somebody asks for what it tells, and found wrong then."""
    page, wrong = Page(), list[int]()

    def examines(link: int) -> None:
        with pytest.raises(RemoteError, match="not for what came and went"):
            page.ledger.examine(link)
        wrong.append(link)

    page.ledger.examines = examines
    raws = page.talk("gave")
    page.ledger.counted(1, 0, 3)
    page.ledger.come(1, raws)
    page.ledger.counted(1, 3, 5)
    assert wrong == []
    assert [given for _, given in page.ledger.given_by(HOP.peer)] == [range(3), range(3, 5)]
    assert wrong == [1] and page.ledger.told() == ([], [])
    page.ledger.lost(1)
    assert page.ledger.unsigned() == [(HOP.peer, 0), (HOP.peer, 3)]


def test_more_or_fewer_receipts_than_are_due_are_refused() -> None:
    for change in (lambda raws: (), lambda raws: (*raws, *raws)):
        page = Page()
        raws = page.talk()
        with pytest.raises(RemoteError, match="where 1 are due"):
            page.ledger.signed(1, change(raws))


def test_a_chunk_of_another_key_or_out_of_its_chain_is_refused() -> None:
    """By another peer; and of the same server's other account."""
    for other in (notary_of(Hop(peer(2), HOP.blocks), 1), notary_of(HOP, 2)):
        page = Page()
        page.notary = other
        with pytest.raises(RemoteError, match=r"signed by|does not follow"):
            page.ledger.signed(1, page.talk())


OPENING = Opening(NAME, bytes(16), 0.0, bytes.fromhex(MODEL), CLASS, 2, 4, ROW // 4, "f32")


@pytest.mark.parametrize(
    "change",
    [
        {"session": bytes(16)},
        {"model": bytes(32)},
        {"numerics": "another"},
        {"start": 1},
        {"stop": 5},
        {"width": ROW},
        {"dtype": "f16"},
    ],
)
def test_an_opening_of_something_else_is_refused(change: dict[str, object]) -> None:
    notary = Notary(key_of(1), replace(OPENING, **change), ROW)  # type: ignore[arg-type]
    with pytest.raises(RemoteError, match="something else"):
        ledger().opened(1, HOP, notary.opening, CLASS)


def test_an_opening_of_another_peer_or_of_nobody_is_refused() -> None:
    stranger = Notary(key_of(2), OPENING, ROW)
    with pytest.raises(RemoteError, match="signed by"):
        ledger().opened(1, HOP, stranger.opening, CLASS)
    for raw in (b"", b"rubbish", stranger.opening[:-1]):
        with pytest.raises(RemoteError):
            ledger().opened(1, HOP, raw, CLASS)


def test_the_rows_of_a_boundary_are_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hops, 12 tokens one by one: the rows of four boundaries, where six sides signed."""
    hashed = 0
    plain = Ledger._leaves_of.__globals__["leaves_of"]

    def count(rows, row_bytes):  # type: ignore[no-untyped-def]
        nonlocal hashed
        hashed += len(rows) // row_bytes
        return plain(rows, row_bytes)

    monkeypatch.setattr("potluck.swarm.ledger.leaves_of", count)
    swarm = Swarm(Session(config(cut_tokens=CUT)), None, ledger())
    swarm.run()
    play([(0, 1, True)] * 12, swarm, [])
    assert proof_of(swarm).good
    assert hashed == 4 * 12


def test_what_no_second_server_signs_for_is_not_kept_for_as_long_as_the_answer_grows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A standby takes what the link before it gave, as the third: 60 tokens of that at two
    boundaries, and at the end it is right all the same."""
    monkeypatch.setattr("potluck.swarm.ledger.HASHED_MAX", 16)
    swarm = Swarm(Session(config(standby_from=0, cut_tokens=CUT)), None, ledger())
    swarm.run()
    play([(0, 1, True)] * 60, swarm, [])
    assert len(swarm.notaries) == 6, "no standby was there"
    assert swarm.ledger is not None and len(swarm.ledger._leaves) <= 16
    assert proof_of(swarm).good
