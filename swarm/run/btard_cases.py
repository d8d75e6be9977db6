"""The cases of a guarded step: who may accuse whom, what has to be shown, and what the most found.

    work   only a validator that was drawn for this member accuses it. Everybody works its
           contribution out again. Whose numerics are others' cannot compare digests: to them the
           accused shows all of it, or is guilty.
    part   a reducer accuses those who sent it its own part; or the shares do, by not adding up. The
           reducer shows all that it was sent, and what it made of it, or is guilty: it has both.

Whoever accuses falsely is guilty itself; where the judges' numerics cannot show what the accuser's
can, nobody is, and both lose their seats (btard_record.py). An accusation says what its signer had
heard, so nobody is judged by something else, the accuser neither. Each member judges for itself and
signs a ruling; more than half of the roster convict.

Source: Gorbunov et al., 2022 (ACCUSE; CheckAveraging).
"""

from __future__ import annotations

from dataclasses import dataclass

from .btard_attempt import Attempt
from .btard_events import Found, Terms
from .btard_record import Case, Record, case_of
from .btard_wire import Pledge, Ruling
from .coin import elect


@dataclass(slots=True)
class Open:
    """A case that is being judged. attempt: in which it arose."""

    case: Case
    attempt: Attempt
    overdue: bool = False  # what was to be shown has not come in time
    ruled: bool = False  # by us
    unshown: bool = False  # and for no other reason than that nothing was shown


class Bench:
    """The cases of one step, as one member sees them."""

    def __init__(self, terms: Terms, record: Record, me: int) -> None:
        self._terms = terms
        self._record = record
        self._me = me
        self._open: dict[bytes, Open] = {}
        self._closed: dict[bytes, Open] = {}

    @property
    def is_empty(self) -> bool:
        return not self._open

    def all(self) -> tuple[Open, ...]:
        return tuple(self._open.values())

    def of(self, name: bytes) -> Open | None:
        return self._open.get(name) or self._closed.get(name)

    def is_open(self, name: bytes) -> bool:
        return name in self._open

    def open(self, case: Case, attempt: Attempt) -> bool:
        """Whether it is a new one."""
        if self.of(case.name) is not None:
            return False
        self._open[case.name] = Open(case, attempt)
        return True

    def doubts(self, attempt: Attempt) -> list[Case]:
        """What the shares themselves say, and nobody was asked yet."""
        if attempt.missing("sums"):
            return []
        name = attempt.standing.name
        parts = [attempt.members[part] for part in attempt.doubtful_parts()]
        cases = [case_of(name, "part", about, None) for about in parts]
        return [case for case in cases if self.of(case.name) is None]

    def due(self, attempt: Attempt) -> list[Case]:
        """Accusations of this attempt that can be judged now, by those who may make them."""
        return [
            case
            for case in self._record.accusations()
            if case.standing == attempt.standing.name
            and self.of(case.name) is None
            and self._may_accuse(case, attempt)
            and _is_ripe(case, attempt)
        ]

    def elected(self, attempt: Attempt) -> tuple[tuple[int, int], ...]:
        """(validator, target), once the coin is known."""
        if attempt.coin is None:
            return ()
        roster = self._terms.roster
        pairs = elect(
            attempt.coin, [roster[seat] for seat in attempt.members], self._terms.validators
        )
        return tuple((roster.index(by), roster.index(target)) for by, target in pairs)

    def targets(self, attempt: Attempt, validator: int) -> list[int]:
        """Whom this member has to check."""
        return [target for by, target in self.elected(attempt) if by == validator]

    def to_show(self, case: Case, attempt: Attempt, judge: int) -> tuple[bytes, ...]:
        """The loads without which this member cannot judge."""
        pledge = attempt.body("pledge", case.about)
        if not isinstance(pledge, Pledge):
            return ()
        if case.kind == "work":
            own = attempt.body("pledge", judge)
            alike = isinstance(own, Pledge) and own.numerics == pledge.numerics
            return () if alike else pledge.parts
        part = attempt.members.index(case.about)
        results = attempt.results()
        return (*attempt.column(part), *results[part : part + 1])

    def ruling(self, opened: Open, found: Found | None) -> Ruling:
        """found: None when what was to be shown has not come."""
        case = opened.case
        opened.ruled = True
        if found is None:
            opened.unshown = True
            return Ruling(case.name, (case.about,))
        if found.guilty or case.by is None or not found.sure:
            return Ruling(case.name, found.guilty)
        return Ruling(case.name, (case.by,))

    def close(self) -> list[Open]:
        """Those on which more than half of the roster agree by now."""
        done = [one for one in self._open.values() if self._is_decided(one.case.name)]
        for one in done:
            self._closed[one.case.name] = self._open.pop(one.case.name)
        return done

    def expect_no_more(self, name: bytes) -> None:
        """What was to be shown in this case has had its time."""
        self._open[name].overdue = True

    def drop(self, name: bytes) -> None:
        """No majority has ruled in time: the attempt goes on, or does not, without it."""
        self._closed[name] = self._open.pop(name)

    def _is_decided(self, name: bytes) -> bool:
        return bool(self._record.guilty(name)) or self._record.is_quiet(name)

    def _may_accuse(self, case: Case, attempt: Attempt) -> bool:
        if case.about not in attempt.members:
            return False
        if case.kind == "part":
            return case.by == case.about
        return (case.by, case.about) in self.elected(attempt)


def _is_ripe(case: Case, attempt: Attempt) -> bool:
    """All that is to be judged was said, to the accuser as to us: the shares, or only the pledges,
    to a reducer that could make nothing of its part."""
    if not attempt.column(attempt.members.index(case.about)):
        return False
    if case.kind == "part" and attempt.heard("reduced", case.about) is None:
        return case.seen == attempt.seen("pledge")
    return not attempt.missing("sums") and case.seen == attempt.seen("sums")
