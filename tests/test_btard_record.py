"""Who is out of a guarded group: the same for whoever holds the same record."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.swarm.run.btard_record import Record, Standing, case_of
from potluck.swarm.run.btard_wire import Accusation, Complaint, Ruling

SEATS = 7
ROSTER = tuple("abcdefg")
STANDING = b"s" * 32
CASES = [case_of(STANDING, "part", seat, None).name for seat in range(3)]
WORK = Accusation(STANDING, "work", 1, ())

seats = st.integers(0, SEATS - 1)
complaints = st.builds(Complaint, st.integers(0, 2), seats, st.booleans())
rulings = st.builds(
    Ruling,
    st.sampled_from([*CASES, case_of(STANDING, "work", 1, 0).name]),
    st.lists(seats, max_size=2, unique=True).map(tuple),
)
Filed = tuple[int, Complaint | Accusation | Ruling]


def place(one: Filed) -> tuple[object, ...]:
    """Two for one place are a proof, which is another matter."""
    seat, body = one
    match body:
        case Complaint(number):
            return seat, "complaint", number
        case Ruling(case):
            return seat, "ruling", case
    return seat, "accusation"


filings = st.lists(
    st.tuples(seats, complaints | rulings | st.just(WORK)),
    max_size=40,
    unique_by=place,
)


def record_of(filed: list[Filed]) -> Record:
    record = Record(b"r" * 32, 1, ROSTER)
    for seat, body in filed:
        record.file(seat, body)
    return record


def standings(filed: list[Filed]) -> list[Standing]:
    return [record_of(filed[:count]).standing() for count in range(len(filed) + 1)]


@given(filings, st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_the_order_in_which_it_was_filed_makes_no_difference(
    filed: list[Filed], dice: st.DataObject
) -> None:
    shuffled = list(filed)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    assert record_of(filed).standing() == record_of(shuffled).standing()


@given(filings)
@settings(max_examples=300)
def test_no_standing_comes_back(filed: list[Filed]) -> None:
    """Else an honest member would speak twice in one place, and be banned for it."""
    names = [one.name for one in standings(filed)]
    changed = [name for at, name in enumerate(names) if at == 0 or name != names[at - 1]]
    assert len(changed) == len(set(changed))


@given(filings)
@settings(max_examples=200)
def test_bans_and_silences_only_grow_and_nobody_is_out_twice(
    filed: list[Filed],
) -> None:
    found = standings(filed)
    for before, after in pairwise(found):
        assert set(before.banned) <= set(after.banned)
        assert set(before.silent) <= {*after.silent, *after.banned}
    last = found[-1]
    out = [*last.banned, *last.silent, *(seat for pair in last.disputes for seat in pair)]
    assert len(out) == len(set(out)) and sorted([*out, *last.members]) == list(range(SEATS))


@given(st.lists(st.tuples(st.integers(4, 6), complaints), max_size=12, unique_by=place))
def test_three_of_seven_take_no_more_than_three_others_with_them(
    filed: list[Filed],
) -> None:
    standing = record_of(filed).standing()
    honest_out = [seat for seat in range(4) if seat not in standing.members]
    liars_out = [seat for seat in range(4, 7) if seat not in standing.members]
    assert len(honest_out) <= len(liars_out)


def test_a_minority_convicts_nobody_and_a_majority_does() -> None:
    record = Record(b"r" * 32, 1, ROSTER)
    for judge in range(4):
        assert record.standing().banned == ()
        record.file(judge, Ruling(CASES[0], (5,)))
    assert record.standing().banned == (5,)
    assert 5 in record.standing().out_for_good


def test_silence_costs_the_seat_only_when_it_was_late() -> None:
    for late in (False, True):
        record = Record(b"r" * 32, 1, ROSTER)
        for by in range(4):
            record.file(by, Complaint(0, 6, late))
        standing = record.standing()
        assert standing.silent == (6,) and standing.disputes == ()
        assert standing.out_for_good == ({6} if late else frozenset())


def test_an_accusation_that_most_cannot_settle_is_a_dispute() -> None:
    record = Record(b"r" * 32, 1, ROSTER)
    record.file(0, WORK)
    case = case_of(STANDING, "work", 1, 0).name
    for judge in range(4):
        record.file(judge, Ruling(case, ()))
    assert record.standing().disputes == ((0, 1),)


def test_a_number_is_nothing_before_those_below_it() -> None:
    record = Record(b"r" * 32, 1, ROSTER)
    record.file(0, Complaint(1, 5, False))
    assert record.standing().disputes == ()
    record.file(0, Complaint(0, 6, False))
    assert record.standing().disputes == ((0, 6),)
