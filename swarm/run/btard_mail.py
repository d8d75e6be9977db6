"""What members of a guarded step have said so far, each thing once, and who contradicts itself.

Statements of the attempt that is under way, of later ones (whoever is ahead), of earlier ones (for
whoever asks); items go into the record. Of each member so many, and no more.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ...errors import RemoteError
from ..testimony import check_contradiction, contradiction_of
from .btard_attempt import Attempt
from .btard_events import Terms
from .btard_record import Record, case_of
from .btard_wire import (
    DOMAIN,
    PHASES,
    Accusation,
    Ask,
    Body,
    Complaint,
    Heard,
    Pledge,
    Proof,
    Reduced,
    Ruling,
    Said,
    hear,
    place_in,
)

SAID_MAX = 1024  # of one member in one step: 5 an attempt, and rulings; honest ones stay far below


@dataclass(frozen=True, slots=True)
class New:
    """Something that was not known before. seat: who said it. first: nothing else was said in its
    place; proof: that its signer contradicts itself, which nobody knew."""

    seat: int
    heard: Heard
    first: bool = True
    proof: Proof | None = None


class Mail:
    """Of one member, for one step."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._seats = {peer: seat for seat, peer in enumerate(terms.roster)}
        self.record = Record(terms.run, terms.epoch, terms.roster)
        self._claims: set[bytes] = set()
        self._known: dict[tuple[int, bytes], Heard] = {}
        self._count: Counter[int] = Counter()
        self._named: dict[bytes, set[int]] = {}  # loads: who pledged them
        self._results: set[bytes] = set()
        self.proofs: dict[int, Proof] = {}

    def seat_of(self, peer: str) -> int:
        """RemoteError for a stranger."""
        if peer not in self._seats:
            raise RemoteError(f"{peer} has no seat in this group")
        return self._seats[peer]

    def take(self, said: Said) -> New | None:
        """None for what is known. Raises RemoteError."""
        if said.claim in self._claims:
            return None
        heard = hear(said)
        if (heard.claim.run, heard.claim.epoch) != (self._terms.run, self._terms.epoch):
            raise RemoteError("of another run or step")
        seat = self.seat_of(heard.peer)
        place = seat, heard.claim.place
        self._count[seat] += 1
        if self._count[seat] > SAID_MAX:
            return None  # whoever passed it on did not say it
        self._claims.add(said.claim)
        if (known := self._known.get(place)) is not None:
            return New(seat, heard, False, self._proof(seat, known, heard))
        self._known[place] = heard
        match heard.body:
            case Complaint() | Accusation() | Ruling():
                self.record.file(seat, heard.body)
            case Pledge(parts=parts):
                for one in parts:
                    self._named.setdefault(one, set()).add(seat)
            case Reduced(result=result):
                self._results.add(result)
        return New(seat, heard)

    def _proof(self, seat: int, known: Heard, heard: Heard) -> Proof | None:
        if known.claim == heard.claim or seat in self.proofs:
            return None
        one, other = sorted((known.said.claim, heard.said.claim))
        proof = Proof(self._terms.epoch, one, other)
        self.proofs[seat] = proof
        self.record.convict(seat)
        return proof

    def prove(self, proof: Proof) -> bool:
        """Whether somebody is convicted who was not before: of whatever it said in any step.
        Raises RemoteError."""
        seat = self.seat_of(check_contradiction(contradiction_of(DOMAIN, proof.one, proof.other)))
        if seat in self.proofs:
            return False
        self.proofs[seat] = proof
        self.record.convict(seat)
        return True

    def said_in(self, attempt: Attempt) -> list[tuple[int, Heard]]:
        """By members, in its standing: also what was said before we came to it."""
        places = [place_in(attempt.standing.name, phase) for phase in PHASES]
        return [
            (seat, heard)
            for place in places
            for seat in attempt.members
            if (heard := self._known.get((seat, place))) is not None
        ]

    def asked(self, ask: Ask) -> Heard | None:
        return self._known.get((ask.about, ask.place))

    def filed(self, case: bytes) -> tuple[Heard, ...]:
        """The accusation, and the rulings."""
        return tuple(
            heard for (seat, _), heard in self._known.items() if _case_in(heard.body, seat) == case
        )

    def names(self, seat: int, load: bytes, attempt: Attempt) -> bool:
        """Whether a member may send this: its own part, what it was told to reduce, a result."""
        if load in self._results or seat in self._named.get(load, ()):
            return True
        return seat in attempt.members and load in attempt.column(attempt.members.index(seat))


def _case_in(body: Body, seat: int) -> bytes | None:
    """Which case this makes, or rules on."""
    match body:
        case Accusation(standing, kind, about):
            return case_of(standing, kind, about, seat).name
        case Ruling(case):
            return case
    return None
