"""One answer's audits, and how far it has to go back when one of its servers is convicted.

    signed work ─▶ docket ─▶ findings ─┬─ right: the chunk is cleared
                                       └─ wrong, or doubted: the peer is left, and `back` is the
                                          first position that it computed and that is not cleared

A peer that is convicted elsewhere in this process, by another answer's audit or by evidence, is
left too. One that is only doubted (a dispute was left open in which more stood against it) keeps
its good name, but not this answer: to compute its words again costs little beside wrong ones. Where
it is one word against another nothing is gained by taking the other's.

What a stranger gave and has gone without signing for is made again too, or whoever lies would only
have to be gone in time: all that a stranger does is audited (book.py). So often at most that an
answer comes to its end where peers come and go all the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio

from ...swarm.ledger import Work
from ...swarm.proof import Note, Share
from ...swarm.receipt import Account
from ...swarm.routing import Hop
from ...swarm.testimony import Contradiction
from .auditor import Auditor
from .docket import Finding, Tally

REMADE_MAX: Final = 4  # guess: each takes back up to 32 tokens
ERROR_MAX: Final = 1e30  # as a note tells it
SETTLE_S: Final = 30.0  # guess: one audit and a dispute; the last words wait for it

Chunks = list[tuple[int, int]]  # from, to


class Receipts(Protocol):
    """What was signed so far (swarm/ledger.py)."""

    on_fork: Callable[[Contradiction], None]

    def told(self) -> tuple[list[Account], list[Share]]: ...

    def given_by(self, peer: str) -> list[tuple[Account, range]]: ...

    def unsigned(self) -> list[tuple[str, int]]: ...


class Session(Protocol):
    """What is left of a session, to who watches over it."""

    @property
    def ledger(self) -> Receipts | None: ...

    @property
    def route(self) -> tuple[Hop, ...]: ...

    def convicted(self, peer: str, reason: str) -> None: ...

    async def settle(self) -> bool: ...


class Watch:
    """Made with the answer; `attend` its session once that is there, and `end` it with it.

    amend: whether words may be replaced: if not, only a conviction takes any back.
    """

    def __init__(self, auditor: Auditor, *, amend: bool = True) -> None:
        self._amend = amend
        self._trust = auditor.trust
        self._on_fork = auditor.on_fork
        self._docket = auditor.docket(self._found)
        self._session: Session | None = None
        self._cleared: dict[bytes, Chunks] = {}  # by the opening's name
        self._stale: set[bytes] = set()  # receipts, by name, for what was taken back
        self._left: list[str] = []
        self._back: int | None = None
        self._remade = 0  # how often words were taken back that were not signed for

    @property
    def back(self) -> int | None:
        """What came of positions from here on is not to be relied on."""
        if self._session is None or self._session.ledger is None:
            return self._back
        if not self._amend or self._remade == REMADE_MAX:
            return self._back
        gone = self._session.ledger.unsigned()
        found = [at for peer, at in gone if self._trust.rate(peer) >= 1]
        return min(found + ([] if self._back is None else [self._back]), default=None)

    @property
    def tally(self) -> Tally:
        return self._docket.tally

    @property
    def findings(self) -> list[Finding]:
        return self._docket.findings

    @property
    def left(self) -> tuple[str, ...]:
        """The peers that were left, convicted or doubted."""
        return tuple(self._left)

    def signed(self, work: Work) -> None:
        """For the session to call. None of its hops audits another."""
        if self._session is not None:
            self._docket.peers |= {hop.peer for hop in self._session.route}
        self._docket.signed(work)

    def hint(self) -> None:
        """Of what could be foreseen far less comes all at once: the text may have turned, or a
        server of the answer to another model. The next chunk of each is looked at."""
        if self._session is not None:
            self._docket.hinted |= {hop.peer for hop in self._session.route}

    def attend(self, session: Session) -> None:
        self._session = session
        if session.ledger is not None:
            session.ledger.on_fork = self._on_fork
        self._trust.on_convicted.append(self._convicted)

    def end(self) -> None:
        """Findings may come later still; there is nothing left that they could change."""
        self._trust.on_convicted.remove(self._convicted)
        self._docket.ended()
        self._session = None

    async def settle(self) -> None:
        """Until all is signed for and what was drawn is audited, or the time is up."""
        assert self._session is not None
        with trio.move_on_after(SETTLE_S):
            await self._session.settle()
            self._docket.ended()
            await self._docket.idle()

    def went_back(self, at: int) -> None:
        """Positions from `at` on are computed again: what is found of them as they were is of no
        more use."""
        assert self._session is not None and self._session.ledger is not None
        for account in self._session.ledger.told()[0]:
            old = zip(account.names[1:], account.chunks, strict=True)
            self._stale |= {name for name, chunk in old if chunk.stop > at}
        for name, chunks in self._cleared.items():
            self._cleared[name] = [one for one in chunks if one[1] <= at]
        if self._back is not None and self._back >= at:
            self._back = None
        else:
            self._remade += 1

    def _found(self, finding: Finding) -> None:
        work = finding.work
        if finding.verdict == "right" and work.account.names[work.place + 1] not in self._stale:
            chunk = work.account.chunks[work.place]
            self._cleared.setdefault(work.account.names[0], []).append((chunk.at, chunk.stop))
        others = any(one.peer not in finding.doubted for one in finding.again)
        if work.peer in finding.doubted and others:
            self._leave(work.peer, "its work is doubted")

    def _convicted(self, peer: str) -> None:
        self._leave(peer, "convicted of wrong work")

    def _leave(self, peer: str, reason: str) -> None:
        if self._session is None:
            return
        first = self._first_of(peer)
        self._session.convicted(peer, reason)
        if first is not None:
            self._left.append(peer)
            self._back = first if self._back is None else min(self._back, first)

    def _first_of(self, peer: str) -> int | None:
        """The first position for which this peer gave rows that no audit cleared."""
        assert self._session is not None and self._session.ledger is not None
        found: list[int] = []
        for account, given in self._session.ledger.given_by(peer):
            standing = [one for _, one in account.standing()]
            silent = [(one.at, one.stop) for one in standing if not one.rows]
            at = given.start
            for start, signed in sorted(silent + self._cleared.get(account.names[0], [])):
                inside = [one.at for one in standing if start < one.at < signed]
                stop = min(inside, default=signed)  # the rest of it was taken back
                at = stop if start <= at < stop else at
            if at < given.stop:
                found.append(at)
        return min(found, default=None)


def notes_of(
    findings: Sequence[Finding], accounts: list[Account], shares: Sequence[Share]
) -> list[Note]:
    """What an answer's proof says of its audits. The auditors' accounts are put behind `accounts`.

    Left out are chunks that are not in the answer: what was found wrong has been taken back.
    """
    places = {id(account): number for number, account in enumerate(accounts)}
    notes = []
    for finding in findings:
        work = finding.work
        chunk = work.account.chunks[work.place]
        counted = any(
            share.account == places.get(id(work.account)) and chunk.stop <= share.until
            for share in shares
        )
        standing = any(place == work.place for place, _ in work.account.standing())
        if not counted or not standing:
            continue
        by = finding.again[0].account
        if id(by) not in places:
            places[id(by)] = len(accounts)
            accounts.append(by)
        middle, worst = (
            min(one, ERROR_MAX) for one in (finding.judged.median, finding.judged.worst)
        )
        notes.append(
            Note(
                places[id(work.account)], work.place, places[id(by)], middle, worst, finding.limit,
                finding.verdict,
            )
        )  # fmt: skip
    return notes
