"""Clients ask strangers for work, audit it, and bring what they find before others.

Each client sends chunks through one peer of each part of the model, drawn with what the book says
that it costs: half as often at twice the cost, never when it is barred. What is signed is drawn by
lot, looked at by another peer or by a question whose answer is known, judged, disputed, and has the
consequences that it has in a daemon (node/trust/auditor.py); who is convicted is accused before all
who serve the same part (hearing.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from ...crypto.digest import digest
from ...errors import RemoteError
from ..audit import Dispute, Drawn, Known, Outcome, Signed, choose_auditor, draw, draw_whole, judge
from ..blocks import BlockRange
from ..ledger import Ledger
from ..receipt import CHUNK_TOKENS, Notary, Opening
from ..routing import Hop
from ..session_events import SendStep
from .dice import Dice
from .hearing import Hearing
from .town import CONFIG, LIMITS, MODEL, NOW, OURS, RIGHT, Mind, Peer, Town

ROW_BYTES: Final = 4
WIDTH: Final = 1


@dataclass(slots=True)
class Chunks:
    """Of one kind of liar, or of all: how many went through it, and how many stayed wrong."""

    sent: int = 0
    wrong: int = 0
    times_s: list[tuple[float, bool]] = field(default_factory=list)

    def add(self, at_s: float, *, wrong: bool) -> None:
        self.sent += 1
        self.wrong += wrong
        self.times_s.append((at_s, wrong))

    def share(self, since_s: float, until_s: float) -> float:
        """Of those in this time, how many were wrong."""
        told = [wrong for at_s, wrong in self.times_s if since_s <= at_s < until_s]
        return sum(told) / len(told) if told else 0.0


class Clients:
    """The first honest peers ask, one chunk after another, each at moments of its own."""

    def __init__(self, town: Town, hearing: Hearing, count: int, chunk_s: float, dice: Dice):
        self.minds = list(town.minds.values())[:count]
        self.chunks = Chunks()
        self.by_lie: dict[str, Chunks] = {}
        self.audits = self.canaries = self.disputes = 0
        self._town = town
        self._hearing = hearing
        self._chunk_s = chunk_s
        self._dice = dice
        self._number = 0
        for mind in self.minds:
            self._next(mind)

    def _next(self, mind: Mind) -> None:
        when = self._town.clock.now + self._dice.expovariate(1 / self._chunk_s)
        self._town.clock.at(when, self._ask, mind)

    def _ask(self, mind: Mind) -> None:
        for part in range(self._town.parts):
            server = self._choose(mind, part)
            if server is not None:
                self._serve(mind, server)
        self._next(mind)

    def _choose(self, mind: Mind, part: int) -> Peer | None:
        now = self._town.clock.now
        fit, weights = [], []
        for one in self._town.serving[part]:
            if one is mind.peer or mind.shuns(one.id, now):
                continue
            cost = mind.book.cost_factor(one.id, now)
            if math.isfinite(cost) and not mind.history(one.id).banned(now):
                fit.append(one)
                weights.append(1 / cost)
        left = self._dice.random() * sum(weights)
        for one, weight in zip(fit, weights, strict=True):
            left -= weight
            if left <= 0:
                return one
        return fit[-1] if fit else None

    def _serve(self, mind: Mind, server: Peer) -> None:
        """One chunk; it stays wrong where it is false, and no audit of it says so."""
        self._number += 1
        now = self._town.clock.now
        if server.lie == "false_receipt" and not self._is_signed_for(mind, server):
            mind.history(server.id).failed(now, now)
            self._count(server, wrong=False)
            return
        label = server.compute(self._dice)
        name = digest("sim receipt", self._number.to_bytes(8))
        signed = Signed(server.id, name, 0, CHUNK_TOKENS, CHUNK_TOKENS)
        found = ""
        for drawn in self._drawn(mind, signed):
            found = self._audit(mind, server, drawn, label)
        self._count(server, wrong=label != RIGHT and found != "wrong")

    def _count(self, server: Peer, *, wrong: bool) -> None:
        at_s = self._town.clock.now - NOW
        self.chunks.add(at_s, wrong=wrong)
        self.by_lie.setdefault(server.lie, Chunks()).add(at_s, wrong=wrong)

    def _is_signed_for(self, mind: Mind, server: Peer) -> bool:
        """Whether the ledger takes the receipt of rows that are not those which were given."""
        took, gave = bytes(ROW_BYTES), b"gave"
        blocks = BlockRange(server.part, server.part + 1)
        session = digest("sim session", self._number.to_bytes(8))[:16]
        model = bytes.fromhex(MODEL)
        opening = Opening(
            session, session, NOW, model, server.numerics, blocks.start, blocks.stop, WIDTH, "f32"
        )
        notary = Notary(server.key, opening, ROW_BYTES)
        notary.took(0, took)
        notary.gave(b"sold" if server.lie == "false_receipt" else gave)
        ledger = Ledger(session, MODEL, blocks, WIDTH, "f32", ROW_BYTES)
        ledger.opened(0, Hop(server.id, blocks), notary.opening, server.numerics)
        ledger.sent(SendStep(0, 0, (1,), 1, (took,)))
        ledger.got(0, gave)
        try:
            ledger.signed(0, notary.sign())
        except RemoteError:
            return False
        return True

    # ---- audits, as node/trust/auditor.py has them

    def _drawn(self, mind: Mind, signed: Signed) -> list[Drawn]:
        now = self._town.clock.now

        def rate(peer: str) -> float:
            return mind.rate(peer, now)

        found = draw([signed], mind.lots, rate, CONFIG, canaries=True)
        if not found and draw_whole(signed.name, rate(signed.peer), mind.lots, CONFIG):
            found = [Drawn(signed, False)]
        return found

    def _audit(self, mind: Mind, server: Peer, drawn: Drawn, label: str) -> str:
        """What was found of the chunk."""
        now, name, part = self._town.clock.now, drawn.signed.name, f"{server.part}"
        self.audits += 1
        answers = {server.id: label}
        known: tuple[str, ...] = ()
        asked = (
            mind.canaries.pick(MODEL, part, server.numerics, mind.lots, name, server.id)
            if drawn.canary
            else None
        )
        if asked is not None and not any(mind.book.banned(peer, now) for peer in asked.peers):
            self.canaries += 1
            known = asked.peers
            answers = {server.id: server.compute(self._dice)} | dict.fromkeys(known, RIGHT)
        else:
            auditor = self._auditor(mind, name, answers, 0)
            if auditor is None:
                return ""
            answers[auditor.id] = self._answer(auditor, label)
        found = self._settle(mind, name, answers)
        return self._conclude(mind, name, server, answers, found, known)

    def _auditor(self, mind: Mind, name: bytes, answers: dict[str, str], turn: int) -> Peer | None:
        accused = self._town.by_id[next(iter(answers))]
        now = self._town.clock.now
        fit = {
            one.id: one.where
            for one in self._town.serving[accused.part]
            if one is not mind.peer and not mind.shuns(one.id, now)
            and math.isfinite(mind.book.cost_factor(one.id, now))
        }  # fmt: skip
        peer = choose_auditor(
            fit, mind.lots, name, avoid=answers, turn=turn, place_of=fit.__getitem__
        )
        return None if peer is None else self._town.by_id[peer]

    def _answer(self, auditor: Peer, label: str) -> str:
        """Colluders agree with each other, whoever is audited: they know their own."""
        return auditor.compute(self._dice)

    def _settle(self, mind: Mind, name: bytes, answers: dict[str, str]) -> Outcome:
        peers = list(answers)
        dispute = Dispute(peers[0], peers[1])
        for number, peer in enumerate(peers[1:], start=1):
            if number > 1:
                dispute.add(peer)
            self._compare(dispute, answers, peer, peers[:number])

        def trust(peer: str) -> float:
            return mind.book.mean(peer, self._town.clock.now)

        self.disputes += len(set(answers.values())) > 1
        turn = 0
        while (found := dispute.outcome(trust)).ask:
            turn += 1
            third = self._auditor(mind, name, answers, turn)
            if third is None:
                break
            dispute.add(third.id)
            answers[third.id] = self._answer(third, answers[peers[0]])
            self._compare(dispute, answers, third.id, [one for one in answers if one != third.id])
        return found

    def _compare(
        self, dispute: Dispute, answers: dict[str, str], peer: str, others: list[str]
    ) -> None:
        by_id = self._town.by_id
        for other in others:
            classes = by_id[peer].numerics, by_id[other].numerics
            tolerance = LIMITS.of(MODEL, *classes, 1)
            errors = self._town.errors(answers[peer], answers[other], classes)
            if judge(errors, tolerance).verdict == "right":
                dispute.agree(peer, other)

    def _conclude(
        self, mind: Mind, name: bytes, server: Peer, answers: dict[str, str], found: Outcome,
        known: tuple[str, ...],
    ) -> str:  # fmt: skip
        now, book = self._town.clock.now, mind.book
        for peer in found.right:
            if peer not in known:
                book.audited(peer, right=True, weight=1, now=now)
        for peer in found.wrong:
            book.audited(peer, right=False, weight=1, now=now)
            book.convict(peer, now)
            self._town.ban(mind, peer, "audits")
            wrong = self._town.by_id[peer]
            self._hearing.accuse(mind, wrong, wrong=answers[peer] != RIGHT)
        for peer in () if found.right else found.doubted:
            book.doubted(peer, weight=1, now=now)
        if server.id in found.right and not known and server.numerics == OURS:
            mind.canaries.learn(MODEL, f"{server.part}", OURS, Known(name, found.right))
        return "wrong" if server.id in found.wrong else "right" if server.id in found.right else ""
