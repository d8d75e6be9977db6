"""Has a share of the signed work computed again by others, and says who was right.

The rules are swarm/audit.py's; here is what waits. Each answer has a `Docket` (docket.py): what its
servers sign goes in by a call that never waits, findings come out by a callback. All dockets of a
process share a few audits at once; each computation has a deadline. A peer that dies, is busy or
answers rubbish when it is asked to audit ends nothing: another is asked, and where nobody is left
the chunk stays unaudited and is counted so.

    LiveSession ── on_signed(work) ──▶ Docket: drawn? ──▶ queue ──▶ Auditor ── again ──▶ a peer
    Generation ◀── tell(finding) ──────────────────────────┤       errors, judge, dispute
                                                           └──▶ Trust: right, wrong, doubted
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import Final, Protocol

import trio

from ...dht.network import NOWHERE, Prefixes
from ...dht.record import Announcement
from ...errors import Refused, RemoteError, TransportError
from ...swarm.audit import (
    AuditConfig,
    Canaries,
    Drawn,
    Known,
    Lots,
    Outcome,
    Signed,
    Verdict,
    choose_auditor,
    draw,
    draw_whole,
)
from ...swarm.ledger import Work
from ...swarm.testimony import Contradiction
from ..log import get_logger
from .again import Again
from .book import Trust
from .case import Case, Runner
from .docket import Docket, Finding, Look
from .limits import Limits

AT_ONCE: Final = 2  # guess: a client asks for one answer, and its audits shall not slow it down
WAITING_MAX: Final = 64  # chunks drawn: half an hour of a person's reading; more stay unaudited
COMPUTE_S: Final = 10.0  # guess: to reach a peer, and for its queue
TOKEN_S: Final = 0.02  # guess: of a prompt, on a slow device
BRING_S: Final = 60.0  # guess: for an adapter to be brought to who lacks it
REST_S: Final = 300.0  # guess: for so long a peer that gave nothing is not asked again
FAILURES_MAX: Final = 4  # in one audit: peers that gave nothing
CANARY_BYTES_MAX: Final = 1 << 20  # of rows; 64 of them are kept at most

log = get_logger()

Compute = Callable[[str, Work, Sequence[Work]], Awaitable[Again]]


class Peers(Protocol):
    """Who could compute it again: the router."""

    async def announcements(self, model: str) -> tuple[Announcement, ...]: ...

    def may_serve(self, peer: str) -> bool: ...

    def place(self, told: Announcement) -> Prefixes: ...


class Auditor:
    """One for a process. `run` it in a nursery; leaving that, all audits end."""

    def __init__(
        self,
        peers: Peers,
        compute: Compute,
        worker: Runner,
        trust: Trust,
        limits: Limits,
        lots: Lots,
        config: AuditConfig | None = None,
    ) -> None:
        """compute: has a peer compute a chunk again, and show chunks before it (again.py). A client
        that holds the blocks itself would give its own name and engine a place here: its word
        decides at once."""
        self.trust = trust
        self._peers = peers
        self._compute = compute
        self._worker = worker
        self._limits = limits
        self._lots = lots
        self._config = config or AuditConfig()
        self.on_wrong: Callable[[Finding], None] = lambda finding: None  # somebody was convicted
        self.on_fork: Callable[[Contradiction], None] = lambda item: None  # by two receipts
        self._resting: dict[str, float] = {}  # who gave nothing, until when
        self._canaries = Canaries()
        self._answers: dict[bytes, tuple[Work, tuple[Again, ...]]] = {}  # of those, by their names
        self._send, self._receive = trio.open_memory_channel[tuple[Docket, Look]](WAITING_MAX)

    def docket(self, tell: Callable[[Finding], None]) -> Docket:
        """For one answer. tell: takes each finding, after Trust has."""
        return Docket(self, tell)

    def drawn(self, work: Work) -> Drawn | None:
        """Whether its lot falls so."""
        chunk = work.account.chunks[work.place]
        signed = Signed(work.peer, _name(work), work.place, chunk.tokens, chunk.stop)
        return next(
            iter(draw([signed], self._lots, self.trust.rate, self._config, canaries=True)), None
        )

    def drawn_whole(self, work: Work) -> bool:
        """Whether the lot of its session, which has ended, falls so."""
        rate = self.trust.rate(work.peer)
        return draw_whole(work.account.names[0], rate, self._lots, self._config)

    def take(self, docket: Docket, look: Look) -> bool:
        """Put it in the queue; False when that is full."""
        try:
            self._send.send_nowait((docket, look))
        except trio.WouldBlock:
            return False
        return True

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        async for docket, look in self._receive.clone():
            findings = await self._audit(docket, look)
            docket.settle(look, findings)
            for finding in findings:
                if finding.wrong:
                    self.on_wrong(finding)

    async def _audit(self, docket: Docket, look: Look) -> list[Finding]:
        """By a question whose answer is known, if it is to be so and there is one; else computed
        again by others."""
        work, avoid = look.work, docket.peers | {look.work.peer}
        if self.trust.banned(work.peer):
            return []
        if look.canary and (case := await self._pose(work)) is not None:
            return [await self._settle(case, avoid)]
        last = Case(work, self._limits)
        again = await self._ask(last, avoid, look.earlier)
        if again is None:
            return []
        found: list[Finding] = []
        for one, gave in zip(look.earlier, again.earlier, strict=True):
            case = Case(one, self._limits)
            case.asked = list(last.asked)
            its = replace(again, gave=gave, earlier=(), place=_place_of(one, again))
            found.append(await self._weigh(case, its, avoid))
            if found[-1].verdict != "right":
                return found  # what came of it later is not right either
        return [*found, await self._weigh(last, again, avoid)]

    async def _pose(self, work: Work) -> Case | None:
        """What its server makes of work that others have done, beside what they made of it. None
        where there is none, or it gives nothing: then its own work is computed again."""
        opening, peer = work.account.opening, work.peer
        known = self._canaries.pick(
            opening.model.hex(), str(work.blocks), work.numerics, self._lots, _name(work), peer
        )
        if known is None:
            return None
        asked, answers = self._answers[known.name]
        if any(self.trust.banned(one.peer) for one in answers):
            return None  # since then: it may be they who agreed on a lie
        if sum(asked.sizes) > sum(work.sizes):
            return None  # it would cost more than what was drawn
        try:
            with trio.fail_after(_allowed_s(asked)):
                its = await self._compute(peer, asked, ())
        except (TransportError, RemoteError, Refused, trio.TooSlowError) as error:
            log.debug("canary not answered", by=peer, reason=str(error))
            return None
        posed = replace(
            asked, peer=peer, account=its.account, place=its.number, numerics=its.numerics,
            gave=its.gave,
        )  # fmt: skip
        case = Case(posed, self._limits)
        for one in answers:
            if not case.comparable(one.numerics):
                return None
            case.asked.append(one.peer)
            await case.add(one, self._worker)
        case.known = frozenset(case.asked)
        return None if case.open else case

    async def _weigh(self, case: Case, again: Again, avoid: Collection[str]) -> Finding:
        """What comes of the first answer to a case."""
        await case.add(again, self._worker)
        return await self._settle(case, avoid)

    async def _settle(self, case: Case, avoid: Collection[str]) -> Finding:
        """Somebody has answered: ask one after another until the rule has an answer, or nobody is
        left."""
        found = case.outcome(self.trust.mean)
        while found.ask and not case.open:
            again = await self._ask(case, avoid)
            if again is None:
                break
            await case.add(again, self._worker)
            found = case.outcome(self.trust.mean)
        return self._conclude(case, found)

    async def _ask(
        self, case: Case, avoid: Collection[str], earlier: Sequence[Work] = ()
    ) -> Again | None:
        """One more computation that can be compared with those before; None: nobody can."""
        work = case.work
        while case.failures < FAILURES_MAX:
            peer = await self._choose(case, avoid)
            if peer is None:
                return None
            case.asked.append(peer)
            try:
                with trio.fail_after(_allowed_s(work)):
                    again = await self._compute(peer, work, earlier)
            except (TransportError, RemoteError, Refused, trio.TooSlowError) as error:
                log.debug("not audited", by=peer, reason=str(error))
                case.failures += 1
                self._resting[peer] = trio.current_time() + REST_S
                continue
            if case.comparable(again.numerics):  # it may have announced another class
                return again
            case.failures += 1
        return None

    async def _choose(self, case: Case, avoid: Collection[str]) -> str | None:
        """By lot among those that suit best, of the same class first, of other networks than the
        accused first; between networks, then between the peers of one."""
        model = case.work.account.opening.model.hex()
        try:
            told = await self._peers.announcements(model)
        except TransportError:
            return None
        now, place = trio.current_time(), self._peers.place
        self._resting = {peer: until for peer, until in self._resting.items() if now < until}
        avoid = {*avoid, *case.asked, *self._resting}
        fit = [one for one in told if one.peer not in avoid and self._fits(one, case)]
        names = {place(one)[1] for one in told if one.peer == case.work.peer} - {NOWHERE[1]}

        def rank(one: Announcement) -> tuple[bool, bool]:
            return one.numerics != case.work.numerics, place(one)[1] in names

        best = min(map(rank, fit), default=None)
        places = {one.peer: place(one) for one in fit if rank(one) == best}
        return choose_auditor(
            places, self._lots, _name(case.work),
            avoid=avoid, turn=len(case.asked), place_of=places.__getitem__,
        )  # fmt: skip

    def _fits(self, told: Announcement, case: Case) -> bool:
        blocks = case.work.blocks
        holds = told.start <= blocks.start and blocks.stop <= told.stop
        serves = told.state == "online" and self._peers.may_serve(told.peer)
        return holds and serves and case.comparable(told.numerics)

    def _conclude(self, case: Case, found: Outcome) -> Finding:
        work, trust = case.work, self.trust
        tokens = work.account.chunks[work.place].tokens
        doubted = () if found.right or case.open else found.doubted
        for peer in found.right:
            if peer not in case.known:  # it was not asked anew
                trust.audited(peer, right=True, tokens=tokens)
        for peer in found.wrong:
            trust.audited(peer, right=False, tokens=tokens)
            trust.convict(peer)
            log.warning("peer convicted", peer=peer, blocks=str(work.blocks))
        for peer in doubted:
            trust.doubted(peer, tokens=tokens)
        verdict: Verdict = "open"
        if work.peer in found.right:
            verdict = "right"
        elif work.peer in found.wrong:
            verdict = "wrong"
        again = sorted(case.again, key=lambda one: one.peer not in found.right)
        judged, limit = case.judged[again[0].peer]
        if verdict == "right" and not case.known:
            self._learn(work, tuple(one for one in again if one.peer in found.right))
        return Finding(
            work, verdict, judged, limit, tuple(again), found.right, found.wrong, doubted
        )

    def _learn(self, work: Work, again: tuple[Again, ...]) -> None:
        """Others may be asked this, some day."""
        if sum(map(len, work.took)) > CANARY_BYTES_MAX:
            return
        opening, name = work.account.opening, _name(work)
        mine = Again(work.peer, work.account, memoryview(work.gave))
        self._answers[name] = work, (mine, *again)
        known = Known(name, (work.peer, *(one.peer for one in again)))
        for gone in self._canaries.learn(
            opening.model.hex(), str(work.blocks), work.numerics, known
        ):
            del self._answers[gone]


def _allowed_s(work: Work) -> float:
    return COMPUTE_S + TOKEN_S * sum(work.sizes) + (BRING_S if work.adapter else 0.0)


def _name(work: Work) -> bytes:
    """Of its receipt."""
    return work.account.names[work.place + 1]


def _place_of(work: Work, again: Again) -> int:
    """Of the chunk that was signed for this work, in the account of who computed it again."""
    stop = work.account.chunks[work.place].stop
    return next(place for place, one in again.account.standing() if one.stop == stop)
