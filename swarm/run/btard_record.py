"""Who belongs to a guarded group by now: what was filed against whom, in whatever order it came.

Every member files what it has against another, signed, and passes on what others file. The record
only grows, and the standing is a function of what is in it, so members that hold the same record
agree, without a vote on the order. It may be known late, so each attempt of a step is made in one
standing, and begun anew in the next.

    a peer that said two things in one place          banned: the proof convicts it
    guilty, as more than half of the roster rule      banned
    silent, as more than half complain                out of this step; for good when it was late
    silent, as fewer complain; accused, where more    a dispute that nobody can settle: complainer
    than half cannot tell                             and accused both lose their seats

A late silence, after the coin could be known, costs the seat: else a liar that is drawn to be
checked would leave, come back and lie on. Of disputes, none is settled at the cost of a peer that
is out already (a greedy matching in the order of number, complainer, accused): each liar takes one
honest peer with it at most, and while fewer than half lie the honest stay the more. A standing
never comes back: bans and silences only grow, and between two of them the first dispute in which
the matchings of a smaller and a larger record differ is settled in the larger one for good.

Source: Gorbunov et al., 2022 (ACCUSE, ELIMINATE).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ...crypto.digest import digest
from .btard_wire import Accusation, Complaint, Ruling

Dispute = tuple[int, int]  # who complains, of whom


@dataclass(frozen=True, slots=True)
class Standing:
    """Seats, in order. disputes: those that are settled. name: digest of all of it."""

    name: bytes
    members: tuple[int, ...]
    banned: tuple[int, ...]
    silent: tuple[int, ...]
    left: tuple[int, ...]  # were silent late
    disputes: tuple[Dispute, ...]

    @property
    def out_for_good(self) -> frozenset[int]:
        """Who has no seat in the next step."""
        return frozenset(
            (*self.banned, *self.left, *(seat for pair in self.disputes for seat in pair))
        )


def step_place(run: bytes, epoch: int, roster: Sequence[str]) -> bytes:
    """Of which step of which group all is said. roster: in order."""
    return digest("guarded step", run, epoch.to_bytes(8), *(peer.encode() for peer in roster))


def standing_of(
    place: bytes,
    seats: int,
    banned: Collection[int],
    silent: Collection[int],
    left: Collection[int],
    disputes: Sequence[Dispute],
) -> Standing:
    """Of these seats; its name tells nobody else's, and no other standing of this step."""
    out = {*banned, *silent, *(seat for pair in disputes for seat in pair)}
    listed = [sorted(banned), sorted(silent), sorted(left), [x for pair in disputes for x in pair]]
    name = digest("guarded standing", place, *(bytes((len(one), *one)) for one in listed))
    members = tuple(seat for seat in range(seats) if seat not in out)
    first, second, third, _ = map(tuple, listed)
    return Standing(name, members, first, second, third, tuple(disputes))


@dataclass(frozen=True, slots=True)
class Case:
    """What is to be judged. by: who accuses; None where the sums themselves do. seen: what the
    accuser heard."""

    name: bytes
    standing: bytes
    kind: str
    about: int
    by: int | None
    seen: tuple[bytes, ...] = ()


def case_of(
    standing: bytes, kind: str, about: int, by: int | None, seen: tuple[bytes, ...] = ()
) -> Case:
    who = b"" if by is None else by.to_bytes()
    name = digest("guarded case", standing, kind.encode(), about.to_bytes(), who)
    return Case(name, standing, kind, about, by, seen)


class Record:
    """Of one step. The caller has checked who signed, and that it has a seat."""

    def __init__(self, run: bytes, epoch: int, roster: Sequence[str]) -> None:
        self._place = step_place(run, epoch, roster)
        self._seats = len(roster)
        self._proven: set[int] = set()
        self._complaints: dict[int, dict[int, Complaint]] = {}
        self._rulings: dict[bytes, dict[int, tuple[int, ...]]] = {}
        self._accusations: dict[bytes, Case] = {}

    @property
    def majority(self) -> int:
        """So many are more than half of the roster."""
        return self._seats // 2 + 1

    def convict(self, seat: int) -> None:
        """It said two things in one place."""
        self._proven.add(seat)

    def file(self, seat: int, body: Complaint | Accusation | Ruling) -> None:
        """The first of each place counts; two are a proof, which the caller sees."""
        match body:
            case Complaint(number, about) if about != seat and about < self._seats:
                self._complaints.setdefault(seat, {}).setdefault(number, body)
            case Accusation(standing, kind, about, seen) if about < self._seats:
                case = case_of(standing, kind, about, seat, seen)
                self._accusations.setdefault(case.name, case)
            case Ruling(case_name, guilty) if all(one < self._seats for one in guilty):
                self._rulings.setdefault(case_name, {}).setdefault(seat, guilty)

    def accusations(self) -> tuple[Case, ...]:
        return tuple(self._accusations.values())

    def cases(self) -> tuple[bytes, ...]:
        """That somebody has ruled on."""
        return tuple(self._rulings)

    def rulings(self, case: bytes) -> dict[int, tuple[int, ...]]:
        return self._rulings.get(case, {})

    def guilty(self, case: bytes) -> frozenset[int]:
        """Whom more than half of the roster find guilty."""
        votes = Counter(one for said in self.rulings(case).values() for one in set(said))
        return frozenset(seat for seat, count in votes.items() if count >= self.majority)

    def is_quiet(self, case: bytes) -> bool:
        """Whether more than half of the roster find nobody guilty, or cannot tell."""
        return sum(not said for said in self.rulings(case).values()) >= self.majority

    def complaints_by(self, seat: int) -> dict[int, Complaint]:
        return self._complaints.get(seat, {})

    def is_complained_of(self, seat: int) -> bool:
        return any(
            one.about == seat for filed in self._complaints.values() for one in filed.values()
        )

    def standing(self) -> Standing:
        banned = self._proven.union(*(self.guilty(case) for case in self._rulings))
        said = [(by, one) for by in self._complaints for one in self._standing_by(by)]
        silent = {seat for seat in range(self._seats) if self._count(said, seat) >= self.majority}
        silent -= banned
        late = [(by, one) for by, one in said if one.late]
        left = {seat for seat in silent if self._count(late, seat) >= self.majority}
        out = banned | silent
        disputes = [
            (case.by, case.about)
            for _, case in sorted(self._accusations.items())
            if case.by is not None and self.is_quiet(case.name) and not out & {case.by, case.about}
        ]
        out = out.union(*disputes)
        for by, one in sorted(said, key=lambda pair: (pair[1].number, pair[0], pair[1].about)):
            if not {by, one.about} & out:
                disputes.append((by, one.about))
                out |= {by, one.about}
        return standing_of(self._place, self._seats, banned, silent, left, disputes)

    def _standing_by(self, by: int) -> list[Complaint]:
        """Those before which none is missing: nobody puts one before another afterwards."""
        filed, found = self._complaints[by], list[Complaint]()
        while len(found) in filed:
            found.append(filed[len(found)])
        return found

    @staticmethod
    def _count(said: list[tuple[int, Complaint]], seat: int) -> int:
        return len({by for by, one in said if one.about == seat})
