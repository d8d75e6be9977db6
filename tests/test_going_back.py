"""How far an answer goes back when one of its servers is convicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from receipts import Stage, session

from potluck.node.trust.again import Again
from potluck.node.trust.book import Trust
from potluck.node.trust.docket import Docket, Finding
from potluck.node.trust.watch import REMADE_MAX, Watch
from potluck.swarm.audit import Judged, Verdict
from potluck.swarm.blocks import BlockRange
from potluck.swarm.ledger import Work
from potluck.swarm.proof import Share
from potluck.swarm.receipt import Account
from potluck.swarm.routing import Hop

TOKENS = 32
STAGES = session(["first", "second"], [TOKENS] * 6)
AUDITORS = session(["one auditor", "another"], [TOKENS])
ONE, ANOTHER = (stage.key.peer_id for stage in AUDITORS)
FIRST, SECOND = (stage.key.peer_id for stage in STAGES)


@dataclass
class PretendedAuditor:
    """Whoever is convicted here, has been so by the test."""

    trust: Trust = field(default_factory=Trust)
    forks: list[object] = field(default_factory=list)

    def on_fork(self, item: object) -> None:
        self.forks.append(item)

    def docket(self, tell: object) -> Docket:
        return Docket(self, tell)  # type: ignore[arg-type]


@dataclass
class PretendedSession:
    shares: list[Share]
    stages: list[Stage] = field(default_factory=lambda: STAGES)
    lost: list[tuple[str, str]] = field(default_factory=list)
    gone: list[tuple[str, int]] = field(default_factory=list)
    route: tuple[Hop, ...] = ()
    chained: int | None = None
    on_fork: Callable[[object], None] = lambda item: None

    @property
    def ledger(self) -> PretendedSession:
        return self

    def told(self) -> tuple[list[Account], list[Share]]:
        return [stage.account for stage in self.stages], self.shares

    def given_by(self, peer: str) -> list[tuple[Account, range]]:
        accounts, _ = self.told()
        return [
            (accounts[one.account], range(one.first, one.until))
            for one in self.shares
            if accounts[one.account].peer == peer
        ]

    def unsigned(self) -> list[tuple[str, int]]:
        return self.gone

    def convicted(self, peer: str, reason: str) -> None:
        self.lost.append((peer, reason))

    async def settle(self) -> bool:
        return True


def watch(session: PretendedSession) -> tuple[Watch, Trust]:
    auditor = PretendedAuditor()
    made = Watch(auditor)  # type: ignore[arg-type]
    made.attend(session)
    return made, auditor.trust


def finding(
    stage: Stage, place: int, verdict: Verdict = "right", doubted: tuple[str, ...] = ()
) -> Finding:
    work = Work(
        stage.key.peer_id, stage.account, place, BlockRange(0, 2), "", "f32", (), (), 1, b""
    )
    again = tuple(Again(one.key.peer_id, one.account, memoryview(b"")) for one in AUDITORS)
    return Finding(work, verdict, Judged(verdict, 0.0, 0.0), 0.0, again, doubted=doubted)


@given(
    st.sets(st.integers(0, 5)),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=3),
)
def test_it_is_the_first_position_of_that_peers_that_no_audit_cleared(
    cleared: set[int], spans: list[tuple[int, int]]
) -> None:
    """Six chunks, of which some were found right, and shares of the answer in whole chunks."""
    spans = [(min(span), max(span)) for span in spans]
    session = PretendedSession([Share(0, a * TOKENS, b * TOKENS) for a, b in spans])
    made, trust = watch(session)
    for place in cleared:
        made._found(finding(STAGES[0], place))
    trust.convict(FIRST)
    left = {chunk for a, b in spans for chunk in range(a, b)} - cleared
    assert made.back == (min(left) * TOKENS if left else None)
    assert session.lost == [(FIRST, "convicted of wrong work")]


def test_what_another_has_computed_stays() -> None:
    session = PretendedSession([Share(0, 0, 6 * TOKENS), Share(1, 64, 6 * TOKENS)])
    made, trust = watch(session)
    made._found(finding(STAGES[0], 2))
    trust.convict(SECOND)
    assert made.back == 64 and made.left == (SECOND,)


def test_words_that_are_not_signed_for_yet_are_taken_back_too() -> None:
    """All six chunks were found right; 20 tokens more were computed since."""
    session = PretendedSession([Share(0, 0, 6 * TOKENS + 20)])
    made, trust = watch(session)
    for place in range(6):
        made._found(finding(STAGES[0], place))
    trust.convict(FIRST)
    assert made.back == 6 * TOKENS


def test_a_doubted_peer_is_left_and_keeps_its_good_name() -> None:
    session = PretendedSession([Share(0, 0, 6 * TOKENS)])
    made, trust = watch(session)
    made._found(finding(STAGES[0], 3, "open", (FIRST, ONE)))
    assert made.back == 0 and [peer for peer, _ in session.lost] == [FIRST]
    assert not trust.banned(FIRST)


@pytest.mark.parametrize("doubted", [(ONE,), (FIRST, ONE, ANOTHER)])
def test_doubted_auditors_and_one_word_against_another_leave_the_answer_alone(
    doubted: tuple[str, ...],
) -> None:
    made, _ = watch(session := PretendedSession([Share(0, 0, 6 * TOKENS)]))
    made._found(finding(STAGES[0], 3, "open", doubted))
    assert made.back is None and session.lost == []


def test_what_was_cleared_and_is_computed_again_is_cleared_no_more() -> None:
    session = PretendedSession([Share(0, 0, 6 * TOKENS)])
    made, trust = watch(session)
    for place in range(6):
        made._found(finding(STAGES[0], place))
    made.went_back(3 * TOKENS)
    trust.convict(FIRST)
    assert made.back == 3 * TOKENS
    made.went_back(3 * TOKENS)
    assert made.back is None


def test_an_audit_of_what_was_taken_back_clears_nothing() -> None:
    made, trust = watch(PretendedSession([Share(0, 0, 6 * TOKENS)]))
    made.went_back(2 * TOKENS)
    for place in range(6):
        made._found(finding(STAGES[0], place))
    trust.convict(FIRST)
    assert made.back == 2 * TOKENS


def test_of_a_chunk_whose_end_was_taken_back_only_what_stands_is_cleared() -> None:
    """Forty positions were signed for, of which ten were guesses that proved wrong."""
    chunks = [SimpleNamespace(at=0, stop=40, rows=40), SimpleNamespace(at=30, stop=60, rows=30)]
    account: Any = SimpleNamespace(
        peer=FIRST, names=[b"opening", b"one", b"two"], chunks=chunks,
        standing=lambda: list(enumerate(chunks)),
    )  # fmt: skip
    stage: Any = SimpleNamespace(account=account)
    made, trust = watch(PretendedSession([Share(0, 0, 60)], [stage]))
    made._cleared[b"opening"] = [(0, 40)]
    trust.convict(FIRST)
    assert made.back == 30


def test_two_convictions_take_the_answer_back_to_the_earlier() -> None:
    session = PretendedSession([Share(0, 96, 192), Share(1, 32, 192)])
    made, trust = watch(session)
    trust.convict(FIRST)
    trust.convict(SECOND)
    assert made.back == 32
    made.went_back(32)
    assert made.back is None


def test_what_a_stranger_has_gone_without_signing_for_is_made_again() -> None:
    made, trust = watch(session := PretendedSession([]))
    session.gone = [(FIRST, 70), (SECOND, 40)]
    assert made.back == 40
    for _ in range(10):
        trust.audited(SECOND, right=True, tokens=TOKENS)
    assert made.back == 70, "of a peer that is known some chunks are never audited at all"


def test_words_without_a_signature_are_made_again_a_few_times_and_then_stand() -> None:
    """Or an answer among strangers that come and go would never end; a conviction still counts."""
    made, trust = watch(session := PretendedSession([Share(0, 64, 96)]))
    for number in range(REMADE_MAX):
        session.gone = [(SECOND, 70 + number)]
        assert made.back == 70 + number
        made.went_back(70 + number)
    assert made.back is None
    trust.convict(FIRST)
    assert made.back == 64


def test_no_hop_of_the_answer_audits_another_though_it_has_not_signed_yet() -> None:
    session = PretendedSession([], route=(Hop("hop", BlockRange(0, 2)),))
    made, _ = watch(session)
    made._docket._audits.drawn = lambda work: None  # type: ignore[method-assign]
    made.signed(finding(STAGES[0], 0).work)
    assert made._docket.peers == {"hop", FIRST}


def test_once_it_has_ended_nobody_tells_it() -> None:
    made, trust = watch(session := PretendedSession([Share(0, 0, 32)]))
    made.end()
    trust.convict(FIRST)
    made._found(finding(STAGES[0], 0, "open", (FIRST,)))
    assert session.lost == [] and trust.on_convicted == []


def test_two_receipts_that_contradict_each_other_are_told_to_whoever_audits() -> None:
    session = PretendedSession([])
    auditor = PretendedAuditor()
    Watch(auditor).attend(session)  # type: ignore[arg-type]
    session.on_fork("fork")
    assert auditor.forks == ["fork"]
