"""What may become of a job; and when a line is asked again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from pytest import approx, raises

from potluck.errors import (
    MissingBlocks,
    PotluckError,
    Refused,
    RemoteError,
    TransportError,
    UserError,
)
from potluck.node.jobs.patience import LONGEST_S, TRIES_MAX, Patience
from potluck.node.jobs.progress import Progress, Rate, finite, left_s
from potluck.node.jobs.states import OPEN, TABLE, Event, State, after, may

PERSONS = (Event.PAUSE, Event.CANCEL, Event.RESUME)


@given(st.lists(st.sampled_from(Event)))
def test_whatever_happens_a_done_job_stays_done_and_no_other_is_beyond_help(
    events: list[Event],
) -> None:
    state = State.QUEUED
    for event in events:
        if not may(state, event):
            with raises(UserError, match=str(state)):
                after(state, event)
            continue
        before, state = state, after(state, event)
        assert before != State.DONE
        assert (state == State.DONE) == (event == Event.FINISH)
    if state != State.DONE:
        for event in (Event.RESUME, Event.CLAIM, Event.FINISH):
            state = after(state, event)
        assert state == State.DONE


def test_only_what_is_open_is_worked_at_and_only_what_runs_ends() -> None:
    for state in State:
        assert may(state, Event.CLAIM) == (state in OPEN)
        for event in (Event.RELEASE, Event.FINISH, Event.FAIL):
            assert may(state, event) == (state == State.RUNNING)


def test_what_a_person_asks_twice_is_asked_once() -> None:
    """Resuming is harmless anywhere but at the end; to pause or cancel what is not open, or is
    cancelled, is refused and changes nothing."""
    for (state, event), result in TABLE.items():
        if event == Event.RESUME:
            assert after(result, event) == result
        if event in (Event.PAUSE, Event.CANCEL):
            assert not may(result, event) or event == Event.CANCEL
            assert after(result, Event.RESUME) == State.QUEUED
        assert event not in PERSONS or state != State.DONE


def test_a_fault_of_the_question_is_its_answer_at_once() -> None:
    assert Patience().judge(UserError("no such tool"), others_answered=False) is None


@given(st.integers(1, 200), st.floats(0, 1e6))
def test_what_the_swarm_lacks_is_waited_for_without_end(times: int, retry_s: float) -> None:
    patience = Patience()
    lacking = [MissingBlocks("demo", ((2, 4),)), Refused("full", retry_after_s=retry_s)]
    for number in range(times):
        again = patience.judge(lacking[number % 2], others_answered=True)
        assert again is not None and again.waits_for
        assert 0 < again.after_s <= LONGEST_S


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([TransportError("cut"), RemoteError("odd")])))
)
def test_a_broken_road_counts_only_while_others_are_answered(
    failures: list[tuple[bool, PotluckError]],
) -> None:
    patience, counted = Patience(), 0
    for others, error in failures:
        counted += others
        again = patience.judge(error, others_answered=others)
        assert (again is None) == (counted >= TRIES_MAX)


def test_the_waits_grow_to_a_bound() -> None:
    patience = Patience()
    waits = [patience.judge(TransportError("cut"), others_answered=False) for _ in range(9)]
    seconds = [one.after_s for one in waits if one is not None]
    assert seconds == sorted(seconds) and seconds[0] < 1 and seconds[-1] == LONGEST_S


def test_a_rate_is_that_of_its_window() -> None:
    """Ten a second for a minute, then nothing: the window of 30 s empties."""
    rate = Rate(-1.0, 30.0)
    assert rate.per_s(-1.0) == rate.per_s(0.0) == 0.0
    rate.count(10, 0.0)
    assert rate.per_s(0.0) == 10.0  # the first took a second too
    for second in range(1, 61):
        rate.count(10, float(second))
    assert rate.per_s(60.0) == approx(10, rel=0.05)
    assert rate.per_s(75.0) == approx(5, rel=0.1)
    assert rate.per_s(91.0) == 0.0
    assert left_s(100, rate.per_s(91.0)) is None and left_s(0, 0.0) == 0.0
    assert left_s(100, 10.0) == 10.0


def test_progress_is_read_as_it_was_written_and_by_newer_versions_too() -> None:
    told = Progress(3, 10, 1, 40, 2.5, 1 << 40, 4, 7.5, None, "waits")
    assert Progress.read(told.text()) == told
    assert Progress.read("") == Progress()
    assert Progress.read('{"done": 1, "of_tomorrow": 2}') == Progress(done=1)


def test_only_numbers_are_numbers() -> None:
    wrong = (None, "1", True, float("nan"), float("inf"), [])
    assert [finite(one) for one in wrong] == [None] * 6
    assert finite(2) == 2.0
