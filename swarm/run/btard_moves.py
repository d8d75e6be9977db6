"""What a member says and does in one attempt at a guarded step, phase by phase (btard.py).

Each move is made once, as soon as nothing is missing for it, in whatever order things come. What
takes long is a job; its outcome is kept by its key until the attempt is over.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from ...crypto.keys import IdentityKey
from ..machine import SetTimer
from .btard_attempt import Attempt
from .btard_cases import Bench
from .btard_events import (
    Clip,
    Cut,
    Effect,
    Found,
    Job,
    Judge,
    Measure,
    Outcome,
    Send,
    SendLoad,
    Terms,
    Work,
)
from .btard_mail import Mail
from .btard_record import case_of
from .btard_wire import (
    PHASES,
    Accusation,
    Ask,
    Heard,
    Message,
    Phase,
    Pledge,
    Reduced,
    Reveal,
    Settled,
    Statement,
    Sums,
    place_in,
    say,
)
from .coin import VALUE_BYTES, Secret, commitment

File = Callable[[Accusation, float], list[Effect]]


class Moves:
    """Of one member, in one attempt. loads: digests of what is kept; entropy: random bytes."""

    def __init__(
        self,
        terms: Terms,
        key: IdentityKey,
        attempt: Attempt,
        mail: Mail,
        bench: Bench,
        loads: set[bytes],
        entropy: Callable[[int], bytes],
    ) -> None:
        self.attempt = attempt
        self._terms = terms
        self._key = key
        self._me = mail.seat_of(key.peer_id)
        self._mail = mail
        self._bench = bench
        self._loads = loads
        self._secret = Secret(entropy(VALUE_BYTES), entropy(VALUE_BYTES))
        self._jobs: dict[Hashable, Outcome | Work] = {}  # what is being done, and what came of it
        self._sent: set[tuple[int, bytes]] = set()  # loads
        self._asked: set[tuple[int, bytes, int]] = set()  # whom, for what, of whom
        self._due: dict[int, float] = {}  # by phase

    def begin(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for seat, heard in self._mail.said_in(self.attempt):
            self.attempt.hear(seat, heard)
            effects += self.doubt(seat)
        effects += self.set_due(0, now + self._terms.gather_s)
        return effects + self.do(("cut",), Cut(len(self.attempt.members)))

    def step(self, now: float, file: File) -> list[Effect]:
        """The next move; nothing when there is none yet. file: signs an accusation and tells it."""
        attempt = self.attempt
        if attempt.heard("pledge", self._me) is None:
            return self._pledge()
        if attempt.pledged_s is None and attempt.is_pledged:
            attempt.pledged_s = now
            return self.set_due(attempt.phase, self._deadline(attempt.phase))
        if attempt.missing(PHASES[attempt.phase]):
            return []
        match PHASES[attempt.phase]:
            case "pledge":
                return self._reduce(now, file)
            case "reduced":
                return self._reveal()
            case "reveal":
                return self._sums()
            case "sums":
                return self._check(now, file)
            case _:
                return []

    def _pledge(self) -> list[Effect]:
        attempt, parts = self.attempt, self.outcome(("cut",))
        if not isinstance(parts, tuple):
            return []
        name, terms = attempt.standing.name, self._terms
        toss = commitment(name, self._key.peer_id, self._secret)
        digests: tuple[bytes, ...] = parts  # type: ignore[assignment]
        self._loads.update(digests)
        pledge = Pledge(name, terms.anchor, terms.coin, digests, toss, terms.numerics)
        effects = self._post(pledge)
        for seat, part in zip(attempt.members, digests, strict=True):
            effects += self.show([seat], [part])
        return effects

    def _reduce(self, now: float, file: File) -> list[Effect]:
        attempt, key = self.attempt, ("clip",)
        if not self.has(key):
            return self.do(key, Clip(attempt.column(attempt.mine)))
        result = self.outcome(key)
        if isinstance(result, bytes):
            self._loads.add(result)
            said = self._post(Reduced(attempt.standing.name, result, attempt.seen("pledge")))
            return said + self.show(attempt.members, [result])
        if self.is_doing(key) or attempt.accused:
            return []
        attempt.accused = True  # what is no finite part is somebody's
        seen = attempt.seen("pledge")
        return file(Accusation(attempt.standing.name, "part", self._me, seen), now)

    def _reveal(self) -> list[Effect]:
        attempt = self.attempt
        return self._post(Reveal(attempt.standing.name, self._secret, attempt.seen("reduced")))

    def _sums(self) -> list[Effect]:
        attempt, key = self.attempt, ("measure",)
        pledge = attempt.body("pledge", self._me)
        assert attempt.coin is not None and isinstance(pledge, Pledge)
        if not self.has(key):
            pairs = zip(pledge.parts, attempt.results(), strict=True)
            shares = tuple((part, *pair) for part, pair in enumerate(pairs))
            return self.do(key, Measure(shares, attempt.coin))
        found = self.outcome(key)
        if not isinstance(found, tuple):
            return []
        sums, norms, attempt.scales = zip(*found, strict=True)
        return self._post(Sums(attempt.standing.name, sums, norms, attempt.seen("reveal")))

    def _check(self, now: float, file: File) -> list[Effect]:
        """All shares are told: whatever follows from them, and when nothing does, the end."""
        attempt, name = self.attempt, self.attempt.standing.name
        assert attempt.coin is not None
        if not self.has(("inspect",)):
            mine, result = attempt.mine, attempt.results()[attempt.mine]
            shares = tuple((mine, one, result) for one in attempt.column(mine))
            return self.do(("inspect",), Measure(shares, attempt.coin))
        if more := self._validate():
            return more
        targets = self._bench.targets(attempt, self._me)
        found = [self.outcome(key) for key in (("inspect",), *(("check", one) for one in targets))]
        if None in found or not self._bench.is_empty or attempt.accused:
            return []
        seen = attempt.seen("sums")
        accusations: list[Accusation] = []
        if attempt.lies_in_mine(found[0]):  # type: ignore[arg-type]
            accusations.append(Accusation(name, "part", self._me, seen))
        for verdict, target in zip(found[1:], targets, strict=True):
            if isinstance(verdict, Found) and verdict.guilty:
                accusations.append(Accusation(name, "work", target, seen))
        attempt.accused = bool(accusations)
        if accusations:
            return [effect for one in accusations for effect in file(one, now)]
        return self._post(Settled(name, attempt.outcome(), attempt.seen("sums")))

    def _validate(self) -> list[Effect]:
        """What those who were drawn owe: to work it out again; to show it, if they must."""
        attempt, effects = self.attempt, list[Effect]()
        for by, target in self._bench.elected(attempt):
            case = case_of(attempt.standing.name, "work", target, by)
            loads = self._bench.to_show(case, attempt, by)
            if target == self._me:
                effects += self.show([by], loads)
            if by == self._me and not self.has(("check", target)) and attempt.has(loads):
                effects += self.do(("check", target), Judge(case, attempt.transcript()))
        return effects

    # ---- who is held up, and by whom

    def doubt(self, seat: int) -> list[Effect]:
        """Ask this one for what it has heard, and we have not, or otherwise."""
        effects: list[Effect] = []
        for phase in PHASES[1:]:
            heard = self.attempt.heard(phase, seat)
            place = place_in(self.attempt.standing.name, PHASES[PHASES.index(phase) - 1])
            for about in self.attempt.echoes_otherwise(heard) if heard else ():
                effects += self._ask(seat, place, about)
        return effects

    def doubt_accuser(self, seat: int, accusation: Accusation) -> list[Effect]:
        """The same, of what an accusation is about."""
        attempt, effects = self.attempt, list[Effect]()
        if accusation.standing != attempt.standing.name:
            return []
        early = accusation.kind == "part" and attempt.heard("reduced", accusation.about) is None
        later: Phase = "reduced" if early else "settled"
        place = place_in(attempt.standing.name, PHASES[PHASES.index(later) - 1])
        for about in attempt.differs(later, accusation.seen):
            effects += self._ask(seat, place, about)
        return effects

    def _ask(self, seat: int, place: bytes, about: int) -> list[Effect]:
        if (seat, place, about) in self._asked:
            return []
        self._asked.add((seat, place, about))
        return [Send(self._terms.roster[seat], Ask(self._terms.epoch, place, about))]

    def belongs_to(self, heard: Heard, seat: int) -> bytes | None:
        """The load that this member needs beside the statement, if we may have it."""
        members = self.attempt.members
        match heard.body:
            case Reduced(result=result):
                return result
            case Pledge(parts=parts) if len(parts) == len(members) and seat in members:
                return parts[members.index(seat)]
        return None

    def held_up(self, now: float) -> list[int]:
        """By whom, once it is time to say so."""
        attempt, phase = self.attempt, PHASES[self.attempt.phase]
        if now < self._due.get(attempt.phase, now):
            return []  # it was moved
        found = attempt.missing(phase)
        if not found and phase == "sums":  # those whom we are to check, and who show nothing
            for by, target in self._bench.elected(attempt):
                case = case_of(attempt.standing.name, "work", target, by)
                if by == self._me and not attempt.has(self._bench.to_show(case, attempt, by)):
                    found.append(target)
        return found

    def ask_around(self, seats: Iterable[int]) -> list[Effect]:
        """Of everybody, what these were to say in this phase."""
        place = place_in(self.attempt.standing.name, PHASES[self.attempt.phase])
        asks = [Ask(self._terms.epoch, place, about) for about in seats]
        return [effect for ask in asks for effect in self.to_members(ask)]

    def hurry(self, about: int, now: float) -> list[Effect]:
        """Somebody complains of one that holds us up too: who will not wait longer than they."""
        phase, soon = self.attempt.phase, now + self._terms.phase_s / 2
        if about not in self.attempt.missing(PHASES[phase]) or self._due.get(phase, soon) <= soon:
            return []
        return self.ask_around([about]) + self.set_due(phase, soon)

    def wait_on(self, now: float) -> list[Effect]:
        """A case is over, and the attempt goes on: with as long as it had before."""
        return self.set_due(self.attempt.phase, now + self._terms.phase_s + self._terms.check_s)

    def _deadline(self, phase: int) -> float:
        assert self.attempt.pledged_s is not None
        slow = self._terms.check_s if PHASES[phase] == "settled" else 0.0
        return self.attempt.pledged_s + (phase + 1) * self._terms.phase_s + slow

    def set_due(self, phase: int, at_s: float) -> list[Effect]:
        self._due[phase] = at_s
        name, half_s = self.attempt.standing.name, self._terms.phase_s / 2
        return [
            SetTimer(("half", name, phase), at_s - half_s),
            SetTimer(("due", name, phase), at_s),
        ]

    # ---- how it is said and done

    def _post(self, body: Statement) -> list[Effect]:
        """The next statement of this attempt."""
        attempt = self.attempt
        said = say(self._key, self._terms.run, self._terms.epoch, body)
        new = self._mail.take(said)
        assert new is not None and new.proof is None, "nothing is said twice"
        attempt.hear(self._me, new.heard)
        attempt.phase = PHASES.index(body.TAG)
        effects = self.to_members(said)
        if attempt.pledged_s is not None:
            effects += self.set_due(attempt.phase, self._deadline(attempt.phase))
        return effects

    def show(self, seats: Iterable[int], loads: Iterable[bytes]) -> list[Effect]:
        """Each load once to each."""
        wanted = [(seat, load) for load in loads for seat in seats if seat != self._me]
        new = [one for one in wanted if one not in self._sent]
        self._sent.update(new)
        return [SendLoad(self._terms.roster[seat], load) for seat, load in new]

    def to_members(self, message: Message) -> list[Effect]:
        others = (seat for seat in self.attempt.members if seat != self._me)
        return [Send(self._terms.roster[seat], message) for seat in others]

    def do(self, key: tuple[Hashable, ...], job: Job) -> list[Effect]:
        work = Work((self.attempt.standing.name, *key), job)
        self._jobs[work.key] = work
        return [work]

    def done(self, key: Hashable, outcome: Outcome) -> None:
        """What was begun in an attempt that is over is nothing to this one."""
        if key in self._jobs:
            self._jobs[key] = outcome

    def has(self, key: tuple[Hashable, ...]) -> bool:
        return (self.attempt.standing.name, *key) in self._jobs

    def is_doing(self, key: tuple[Hashable, ...]) -> bool:
        return isinstance(self._jobs.get((self.attempt.standing.name, *key)), Work)

    def outcome(self, key: tuple[Hashable, ...]) -> Outcome:
        """None while it is being done."""
        found = self._jobs.get((self.attempt.standing.name, *key))
        return None if isinstance(found, Work) else found
