"""One step of a group in which almost half may lie: the average of what they worked out, or a ban.

    each:      batches from the last coin ─▶ own contribution ─▶ pledge: digests of its n parts
    part j ──▶ member j: CenteredClip ──▶ its digest, then itself, to all
    all:       reveal ─▶ coin ─▶ a direction for each part, validators and whom they check
    each:      of each part its clipped share along the direction, and its distance
    checks:    shares of a part cancel ─ reducers know each share ─ validators work all of it out
               again ──▶ accusation ─▶ everybody judges ─▶ who is wrong is banned
    settled:   all members sign one outcome, and it stands

Whatever goes wrong is filed in the record (btard_record.py), which says who is out; then the step
is begun anew among the others, with another coin. So an attempt that comes to nothing once its coin
is known costs a liar its seat, or was cut short by a death. An outcome stands when every member of
its standing has signed it and they are more than half of the roster, so two groups do not go on
apart while fewer than half lie and the roads keep their deadlines.

Each member speaks to all others itself. A statement says what its signer heard in the phase before;
who has heard something else asks for it, and has two claims for one place: proof. Who lacks a
statement asks all others before it complains. Deadlines follow one another by `phase_s`, so whoever
is held up complains of the cause before others complain of it.

The paper bans after the next step and lets the poisoned average stand, since clipping bounds it;
here it does not stand. The paper assumes a broadcast; here is the echo.
Source: Gorbunov et al., 2022 (BTARD-SGD, with CheckComputations, CheckAveraging, ELIMINATE).
"""

from __future__ import annotations

from collections.abc import Callable

from ...crypto.keys import IdentityKey
from ..machine import Fired, SetTimer
from .btard_attempt import Attempt
from .btard_cases import Bench
from .btard_events import (
    Came,
    Convict,
    Done,
    Effect,
    Event,
    Found,
    Judge,
    Loaded,
    Over,
    Send,
    SendLoad,
    Terms,
    Worked,
)
from .btard_mail import Mail, New
from .btard_moves import Moves
from .btard_record import Case, case_of
from .btard_wire import (
    PHASES,
    Accusation,
    Ask,
    Complaint,
    Item,
    Message,
    Proof,
    Ruling,
    Said,
    Settled,
    say,
)

LATE = PHASES.index("reveal")


class Guard:
    """The machine of one member. entropy: so many random bytes, that nobody else knows."""

    def __init__(self, terms: Terms, key: IdentityKey, entropy: Callable[[int], bytes]) -> None:
        self._terms = terms
        self._key = key
        self._entropy = entropy
        self._me = terms.roster.index(key.peer_id)
        self._mail = Mail(terms)
        self._record = self._mail.record
        self._bench = Bench(terms, self._record, self._me)
        self._loads: set[bytes] = set()
        self._moves = self._new_moves()
        self._past: Attempt | None = None  # in which we signed the outcome
        self._convicted: set[int] = set()
        self._told: set[int] = set()  # the outcome
        self._resent: set[tuple[int, bytes]] = set()  # loads, to whoever asked: once
        self.attempts = 0
        self._next = self._attempt.standing.name  # the standing that we are in, or come to
        self.over = False

    @property
    def _attempt(self) -> Attempt:
        return self._moves.attempt

    # ---- for the driver

    def start(self, now: float) -> list[Effect]:
        return self._begin(now)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Raises RemoteError at what no honest member sends."""
        match event:
            case Came(peer, Said() as said):
                return self._said(self._mail.seat_of(peer), said, now)
            case Came(_, Proof() as proof):
                return self._proven(proof, now) if self._mail.prove(proof) else []
            case Came(peer, Ask() as ask):
                return self._asked(self._mail.seat_of(peer), ask)
            case Loaded(digest):
                self._loads.add(digest)
                return self._advance(now)
            case Worked(key, outcome):
                self._moves.done(key, outcome)
                return self._advance(now)
            case Fired((str(kind), bytes(name))):
                return self._fired(kind, name, now)
            case Fired((str(kind), bytes(name), int(phase))):
                mine = name == self._attempt.standing.name and phase == self._attempt.phase
                return self._waited(kind, now) if mine and not self.over else []
        return []

    def wants(self, peer: str, load: bytes) -> bool:
        """Whether there is such a load, which this peer may send, and it is not here yet."""
        seat = self._mail.seat_of(peer)
        shown = any(
            one.case.about == seat and load in self._bench.to_show(one.case, one.attempt, self._me)
            for one in self._bench.all()
        )
        return load not in self._loads and (shown or self._mail.names(seat, load, self._attempt))

    # ---- attempts

    def _new_moves(self) -> Moves:
        attempt = Attempt(self._terms, self._record.standing(), self._me, self._loads)
        return Moves(
            self._terms, self._key, attempt, self._mail, self._bench, self._loads, self._entropy
        )

    def _begin(self, now: float) -> list[Effect]:
        members = self._attempt.members
        if self._me not in members:
            return self._end("we are out of this step")
        if len(members) < max(2, self._record.majority):
            return self._end("too few are left")
        self.attempts += 1
        return self._moves.begin(now)

    def _end(self, reason: str) -> list[Effect]:
        self.over = True
        return [Over(reason, self._record.standing())]

    def _advance(self, now: float) -> list[Effect]:
        """Whatever can be done now: each step of it once, in whatever order things come."""
        effects: list[Effect] = []
        while not self.over and (more := self._step(now)):
            effects += more
        return effects

    def _step(self, now: float) -> list[Effect]:
        attempt = self._attempt
        if judged := self._judge(now):
            return judged
        for one in (attempt, self._past):
            if one is not None and one.is_signed and not one.missing("settled"):
                return self._stands(one)
        if attempt.is_pledged and (cases := self._bench.due(attempt)):
            return self._open(cases[0], attempt, now)
        if self._is_halted:
            return []
        if cases := self._bench.doubts(attempt):
            return self._open(cases[0], attempt, now)
        return self._moves.step(now, self._file)

    @property
    def _is_halted(self) -> bool:
        return self._next != self._attempt.standing.name

    def _renew(self, now: float) -> list[Effect]:
        """The next attempt."""
        if self._attempt.is_signed:
            self._past = self._attempt
        self._moves = self._new_moves()
        return [*self._begin(now), *self._advance(now)]

    def _stands(self, attempt: Attempt) -> list[Effect]:
        self.over = True
        self._past = attempt
        assert attempt.coin is not None
        heard = [attempt.heard("settled", seat) for seat in attempt.members]
        signed = tuple(one for one in heard if one is not None)
        return [Done(attempt.standing, attempt.results(), attempt.coin, signed, self.attempts)]

    # ---- what is heard

    def _said(self, sender: int, said: Said, now: float) -> list[Effect]:
        new = self._mail.take(said)
        if new is None:
            return []
        effects = self._proven(new.proof, now) if new.proof else []
        if self.over:
            if isinstance(new.heard.body, Complaint | Accusation | Ruling):
                effects += self._pass_on(said, (sender, new.seat), now)
            return effects + self._tell_outcome(sender)
        match new.heard.body:
            case Complaint() as complaint:
                effects += self._pass_on(said, (sender, new.seat), now)
                effects += self._moves.hurry(complaint.about, now)
            case Accusation() as accusation:
                effects += self._pass_on(said, (sender, new.seat), now)
                effects += self._moves.doubt_accuser(new.seat, accusation)
            case Ruling():
                effects += self._pass_on(said, (sender, new.seat), now)
            case statement if new.first or isinstance(statement, Settled):
                for one in (self._attempt, self._past):
                    if one is not None and one.standing.name == statement.standing:
                        effects += self._hear_in(one, new)
        return effects + self._advance(now)

    def _hear_in(self, attempt: Attempt, new: New) -> list[Effect]:
        if new.seat not in attempt.members:
            return []
        attempt.hear(new.seat, new.heard)
        return self._moves.doubt(new.seat) if attempt is self._attempt else []

    def _asked(self, sender: int, ask: Ask) -> list[Effect]:
        heard, peer = self._mail.asked(ask), self._terms.roster[sender]
        if heard is None:
            return []
        effects: list[Effect] = [Send(peer, heard.said)]
        load = self._moves.belongs_to(heard, sender)
        if load not in self._loads or (sender, load) in self._resent:
            return effects
        self._resent.add((sender, load))
        return [*effects, SendLoad(peer, load)]

    def _tell_outcome(self, seat: int) -> list[Effect]:
        """Once to each that goes on with what is over: it lacks what all have signed."""
        if self._past is None or seat in self._told:
            return []
        self._told.add(seat)
        signed = [self._past.heard("settled", one) for one in self._past.members]
        return [Send(self._terms.roster[seat], heard.said) for heard in signed if heard]

    def _fired(self, kind: str, name: bytes, now: float) -> list[Effect]:
        standing = self._attempt.standing.name
        if self.over:
            return []
        match kind:
            case "settle" if name == self._next != standing and self._bench.is_empty:
                return self._renew(now)
            case "show" if self._bench.is_open(name):
                self._bench.expect_no_more(name)
                return self._advance(now)
            case "close" if self._bench.is_open(name):
                self._bench.drop(name)
                return self._go_on(now) + self._advance(now)
        return []

    def _waited(self, kind: str, now: float) -> list[Effect]:
        """For this phase; it is half over, or over."""
        attempt = self._attempt
        if kind == "half":
            return self._moves.ask_around(attempt.missing(PHASES[attempt.phase]))
        if not self._bench.is_empty:
            return self._moves.wait_on(now)
        effects, was_halted = list[Effect](), self._is_halted
        for seat in self._moves.held_up(now):
            filed = self._record.complaints_by(self._me)
            if was_halted and not self._record.is_complained_of(seat):
                continue  # it is held up itself, by whoever is out already
            if seat != self._me and all(one.about != seat for one in filed.values()):
                late = attempt.phase >= LATE
                effects += self._file(Complaint(len(filed), seat, late), now)
        return effects

    # ---- cases

    def _open(self, case: Case, attempt: Attempt, now: float) -> list[Effect]:
        if not self._bench.open(case, attempt):
            return []
        shown_s = now + self._terms.show_s
        closed_s = shown_s + 2 * self._terms.phase_s + self._terms.check_s
        effects: list[Effect] = [
            SetTimer(("show", case.name), shown_s),
            SetTimer(("close", case.name), closed_s),
        ]
        if case.about == self._me:
            for seat in attempt.members:
                effects += self._moves.show([seat], self._bench.to_show(case, attempt, seat))
        return effects

    def _judge(self, now: float) -> list[Effect]:
        """Rule on what can be ruled on; close what is decided."""
        for one in self._bench.all():
            key = "judge", one.case.name
            shown = one.attempt.has(self._bench.to_show(one.case, one.attempt, self._me))
            if one.ruled:
                continue
            if shown and not self._moves.has(key):
                return self._moves.do(key, Judge(one.case, one.attempt.transcript()))
            found = self._moves.outcome(key)
            if isinstance(found, Found):
                effects = self._file(self._bench.ruling(one, found), now)
                for part in found.parts:
                    case = case_of(one.case.standing, "part", one.attempt.members[part], None)
                    effects += self._open(case, one.attempt, now)
                return effects
            if one.overdue and not shown:
                return self._file(self._bench.ruling(one, None), now)
        closed = self._bench.close()
        return self._go_on(now) if closed and self._bench.is_empty else []

    def _go_on(self, now: float) -> list[Effect]:
        """No case is open any more: with the attempt, or with the next."""
        if self._is_halted:
            return [SetTimer(("settle", self._next), now + self._terms.phase_s)]
        return self._moves.wait_on(now)

    # ---- the record

    def _file(self, body: Item, now: float) -> list[Effect]:
        """Sign it, tell everybody, and take it as anybody's."""
        said = say(self._key, self._terms.run, self._terms.epoch, body)
        self._mail.take(said)
        return self._pass_on(said, (), now)

    def _proven(self, proof: Proof, now: float) -> list[Effect]:
        return self._pass_on(proof, (), now) + self._advance(now)

    def _pass_on(self, message: Message, known: tuple[int, ...], now: float) -> list[Effect]:
        """To all that do not have it; and see who is out by now."""
        silent = {self._me, *known}
        effects: list[Effect] = [
            Send(peer, message)
            for seat, peer in enumerate(self._terms.roster)
            if seat not in silent
        ]
        standing = self._record.standing()
        for seat in standing.banned:
            if seat not in self._convicted:
                self._convicted.add(seat)
                effects.append(self._conviction(seat))
        if standing.name != self._next:
            self._next = standing.name
            if self._is_halted and not self.over:
                effects.append(SetTimer(("settle", self._next), now + self._terms.phase_s))
        return effects

    def _conviction(self, seat: int) -> Convict:
        peer = self._terms.roster[seat]
        if seat in self._mail.proofs:
            return Convict(peer, self._mail.proofs[seat])
        name = next(name for name in self._record.cases() if seat in self._record.guilty(name))
        filed = self._mail.filed(name)
        opened = self._bench.of(name)
        if opened is None or opened.unshown:  # others ruled before; or nothing is there to show
            return Convict(peer, None, filed=filed)
        return Convict(peer, None, opened.case, opened.attempt.transcript(), filed)
