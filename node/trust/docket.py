"""The audits of one answer: what is drawn of what its servers sign, and what was found of it.

    signed(work) ──▶ kept, by account ──▶ drawn? ──▶ a Look: this chunk, and all before it that
    ended() ───────▶ whole sessions drawn? ────────▶ were not looked at yet, in one pass
                                                       └──▶ Auditor ──▶ settle(findings)

What a pass computes again is compared chunk by chunk: it costs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import trio

from ...swarm.audit import Drawn, Judged, Verdict
from ...swarm.ledger import Work
from ...swarm.session_events import Payload
from .again import Again, is_whole


@dataclass(frozen=True, slots=True)
class Finding:
    """What one audit came to.

    verdict: of the work. again: what others made of it, first of all one that is believed, if any
    is; judged, limit: the work beside that one's. right, wrong: who is believed, and who is
    convicted; doubted: who stood with the fewer when nobody could be.
    """

    work: Work
    verdict: Verdict
    judged: Judged
    limit: float
    again: tuple[Again, ...]
    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    doubted: tuple[str, ...] = ()

    @property
    def convicting(self) -> tuple[Work, ...]:
        """What each that is convicted has signed for, enough for anybody to compute it again
        (testimony.Accusation): the work itself, or an auditor's answer to the same question."""
        work = self.work
        answers = [
            replace(
                work, peer=one.peer, account=one.account, place=one.number,
                numerics=one.numerics, gave=one.gave,
            )
            for one in self.again
        ]  # fmt: skip
        return tuple(one for one in (work, *answers) if one.peer in self.wrong)


@dataclass(slots=True)
class Tally:
    """Of one answer, in chunks. unaudited: drawn, but nobody was there to compute it again, or its
    server was convicted meanwhile."""

    signed: int = 0
    drawn: int = 0
    right: int = 0
    wrong: int = 0
    open: int = 0
    unaudited: int = 0
    convicted: list[str] = field(default_factory=list)

    @property
    def audited(self) -> int:
        return self.right + self.wrong + self.open


@dataclass(frozen=True, slots=True)
class Look:
    """One pass. earlier: chunks of the same account before this one, in order, that are compared
    as well. canary: it is put off to a question whose answer is known."""

    work: Work
    earlier: tuple[Work, ...] = ()
    canary: bool = False


class Audits(Protocol):
    """Who draws them, and has them made (auditor.py)."""

    def drawn(self, work: Work) -> Drawn | None: ...

    def drawn_whole(self, work: Work) -> bool: ...

    def take(self, docket: Docket, look: Look) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Kept:
    """What one chunk has that a later one of its session has not: without it a session would keep
    all of its steps again with each chunk. steps, tokens: up to its end; last: of its steps."""

    place: int
    steps: int
    tokens: int
    last: Payload
    rows: int
    gave: Payload

    @classmethod
    def of(cls, work: Work) -> _Kept:
        steps, tokens = len(work.took), sum(work.sizes)
        return cls(work.place, steps, tokens, work.took[-1], work.rows, work.gave)

    def before(self, later: Work) -> Work | None:
        """The chunk, from a later one of its session; None when it took in something else."""
        sizes, took = later.sizes[: self.steps], later.took[: self.steps]
        if sum(sizes) != self.tokens or took[-1] is not self.last:
            return None
        return replace(
            later, place=self.place, sizes=sizes, took=took, rows=self.rows, gave=self.gave
        )


@dataclass(slots=True)
class _Session:
    """What one server signed for in it, and was not drawn yet; by place in its account."""

    last: Work
    left: dict[int, _Kept] = field(default_factory=dict)

    def until(self, work: Work) -> tuple[Work, ...]:
        """Those of them that this one was computed behind, in order; they and it are drawn now."""
        at, before = work.account.chunks[work.place].at, []
        for place, chunk in reversed(work.account.standing()):
            kept = self.left.get(place) if chunk.stop <= at else None
            if kept is not None and (one := kept.before(work)) is not None:
                before.append(one)
                at = chunk.at
        for one in (*before, work):
            self.left.pop(one.place, None)
        return tuple(reversed(before))

    def rest(self) -> Work | None:
        """The last that was not drawn yet, of those that stand."""
        standing = {place for place, _ in self.last.account.standing()}
        left = [place for place in self.left if place in standing]
        return self.left[max(left)].before(self.last) if left else None


class Docket:
    """Made by `Auditor.docket`. tell: takes each finding, after Trust has."""

    def __init__(self, audits: Audits, tell: Callable[[Finding], None]) -> None:
        self._audits = audits
        self._tell = tell
        self._idle = trio.Event()
        self._pending = 0
        self._sessions: dict[bytes, _Session] = {}  # by the opening's name
        self.peers: set[str] = set()  # that served the answer: none of them audits another
        self.hinted: set[str] = set()  # whose next chunk is looked at, whatever its lot
        self.tally = Tally()
        self.findings: list[Finding] = []

    def signed(self, work: Work) -> None:
        """A server has signed for this: it may be audited now. Never waits."""
        self.tally.signed += 1
        self.peers.add(work.peer)
        if not is_whole(work):
            return  # what gave nothing out has nothing to be compared
        name = work.account.names[0]
        session = self._sessions.setdefault(name, _Session(work))
        session.last, session.left[work.place] = work, _Kept.of(work)
        if work.peer in self.hinted:
            self.hinted.discard(work.peer)
            self._take(Look(work, session.until(work)))
            return
        drawn = self._audits.drawn(work)
        if drawn is None:
            return
        if drawn.canary:  # another question: its own rows may be compared yet
            self._take(Look(work, canary=True))
        else:
            self._take(Look(work, session.until(work)))

    def ended(self) -> None:
        """The answer is there, or given up: nothing more will be signed for. Never waits."""
        for session in self._sessions.values():
            work = session.rest()
            if work is not None and self._audits.drawn_whole(session.last):
                self._take(Look(work, session.until(work)))
        self._sessions.clear()

    def _take(self, look: Look) -> None:
        chunks = 1 + len(look.earlier)
        self.tally.drawn += chunks
        if self._audits.take(self, look):
            self._pending += 1
        else:
            self.tally.unaudited += chunks

    def settle(self, look: Look, findings: Sequence[Finding]) -> None:
        """One that was taken has come to its end: what was found of its chunks, in order, until
        one was not right. Of the others nobody could say anything."""
        self._pending -= 1
        self.tally.unaudited += 1 + len(look.earlier) - len(findings)
        for finding in findings:
            self.findings.append(finding)
            self.tally.right += finding.verdict == "right"
            self.tally.wrong += finding.verdict == "wrong"
            self.tally.open += finding.verdict == "open"
            self.tally.convicted += [
                one for one in finding.wrong if one not in self.tally.convicted
            ]
            self._tell(finding)
        self._idle.set()
        self._idle = trio.Event()

    async def idle(self) -> None:
        """Until every audit that was begun has ended."""
        while self._pending:
            await self._idle.wait()
