"""The store of jobs: one holder, each line once, whatever is killed when."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from potluck.errors import UserError
from potluck.node.jobs.database import DiskTrouble
from potluck.node.jobs.progress import Progress
from potluck.node.jobs.states import OPEN, TABLE, Event, State
from potluck.node.jobs.store import (
    FILE,
    FOLDER,
    STARTS_MAX,
    WORKERS_MAX,
    Jobs,
    Lease,
    Superseded,
    open_jobs,
)
from potluck.node.process import ProcessId

ME, OTHER = ProcessId(1, 1.0), ProcessId(2, 2.0)
LINES = [f'{{"prompt": "{number}"}}' for number in range(1, 6)]


@pytest.fixture
def living() -> set[ProcessId]:
    return {ME, OTHER}


@pytest.fixture
def jobs(tmp_path: Path, living: set[ProcessId]) -> Iterator[Jobs]:
    with open_jobs(tmp_path, living.__contains__) as opened:
        yield opened


def add(jobs: Jobs, *, lines: list[str] = LINES) -> int:
    return jobs.add("batch", "some.jsonl", {"seed": 1}, lines, 1.0)


def claim(jobs: Jobs, job: int, who: ProcessId = ME) -> Lease:
    lease = jobs.claim(job, who, 2.0)
    assert lease is not None
    return lease


def test_a_job_is_as_it_was_submitted(jobs: Jobs) -> None:
    job = add(jobs)
    found = jobs.get(job)
    assert (found.kind, found.title, found.spec) == ("batch", "some.jsonl", {"seed": 1})
    assert found.state == State.QUEUED and found.holder is None
    assert found.progress == Progress(total=5)
    assert jobs.open_lines(job, past=0, count=9) == list(enumerate(LINES, 1))
    assert jobs.open_lines(job, past=3, count=1) == [(4, LINES[3])]
    with pytest.raises(UserError, match="no job 9"):
        jobs.get(9)


def test_a_file_that_is_found_wrong_half_way_leaves_nothing(jobs: Jobs) -> None:
    def lines() -> Iterator[str]:
        yield LINES[0]
        raise UserError("line 2: not JSON")

    with pytest.raises(UserError, match="line 2"):
        jobs.add("batch", "bad.jsonl", {}, lines(), 1.0)
    assert jobs.all() == []


def test_two_workers_never_hold_one_job_until_one_is_dead(
    jobs: Jobs, living: set[ProcessId]
) -> None:
    job = add(jobs)
    mine = claim(jobs, job)
    assert jobs.held(jobs.get(job)) and not jobs.waits(jobs.get(job))
    assert jobs.claim(job, OTHER, 3.0) is None and jobs.claim_next(OTHER, 3.0) is None
    living.remove(ME)
    assert not jobs.held(jobs.get(job)) and jobs.waits(jobs.get(job))
    theirs = claim(jobs, job, OTHER)
    assert jobs.answer(theirs, 1, "theirs")
    with pytest.raises(Superseded):
        jobs.answer(mine, 2, "mine")  # it was stopped, not dead, and wakes
    assert jobs.answers(job) == [(1, "theirs")]


def test_a_line_has_its_first_answer_for_ever(jobs: Jobs) -> None:
    job = add(jobs)
    lease = claim(jobs, job)
    assert jobs.answer(lease, 2, "first", tokens=3) and not jobs.answer(lease, 2, "second")
    assert jobs.answer(lease, 1, "no", failed=True)
    assert jobs.answers(job) == [(1, "no"), (2, "first")]
    assert jobs.tally(job) == Progress(2, 5, 1, 3)
    assert [number for number, _ in jobs.open_lines(job, past=0, count=9)] == [3, 4, 5]


@pytest.mark.parametrize("event", [Event.PAUSE, Event.CANCEL])
def test_what_a_person_ends_is_ended_though_its_worker_has_not_heard(
    jobs: Jobs, living: set[ProcessId], event: Event
) -> None:
    job = add(jobs)
    lease = claim(jobs, job)
    jobs.ask(job, event, 3.0)
    for write in (
        lambda: jobs.answer(lease, 1, "late"),
        lambda: jobs.beat(lease, Progress(done=1)),
        lambda: jobs.point(lease, 1, 0.5),
        lambda: jobs.leave(lease, Event.FINISH, 4.0),
    ):
        with pytest.raises(Superseded):
            write()
    jobs.ask(job, Event.RESUME, 5.0)
    assert jobs.get(job).state == State.QUEUED
    assert jobs.claim(job, OTHER, 6.0) is None  # the old one still ends
    living.remove(ME)
    assert jobs.answer(claim(jobs, job, OTHER), 1, "in time")


def test_no_more_work_at_once_than_may_and_who_is_done_takes_who_waits(
    jobs: Jobs, living: set[ProcessId]
) -> None:
    names = [ProcessId(10 + number, 1.0) for number in range(WORKERS_MAX + 1)]
    living.update(names)
    numbers = [add(jobs) for _ in names]
    leases = [jobs.claim(job, who, 2.0) for job, who in zip(numbers, names, strict=True)]
    assert None not in leases[:-1] and leases[-1] is None
    assert not jobs.waits(jobs.get(numbers[-1]))
    first = leases[0]
    assert first is not None
    jobs.leave(first, Event.FINISH, 3.0)
    assert jobs.waits(jobs.get(numbers[-1]))
    taken = jobs.claim_next(names[0], 4.0)
    assert taken is not None and taken.job == numbers[-1]


def test_what_kills_its_workers_one_after_the_other_fails(
    jobs: Jobs, living: set[ProcessId]
) -> None:
    """Each dies without an answer; one answer in between, and they are counted from there."""
    job = add(jobs)
    for number in range(STARTS_MAX):
        living.add(ME)
        claim(jobs, job)
        assert jobs.get(job).starts == number + 1
        living.remove(ME)
    assert jobs.claim(job, OTHER, 9.0) is None
    found = jobs.get(job)
    assert found.state == State.FAILED and f"{STARTS_MAX} times" in found.reason
    jobs.ask(job, Event.RESUME, 10.0)
    lease = claim(jobs, job, OTHER)
    assert jobs.answer(lease, 1, "at last") and jobs.get(job).starts == 0


def test_progress_and_losses_are_kept_and_a_step_made_again_counts_once(jobs: Jobs) -> None:
    job = jobs.add("finetune", "run.toml", {}, (), 1.0)
    lease = claim(jobs, job)
    for step, loss in ((1, 3.0), (2, 2.5), (2, 2.4)):
        jobs.point(lease, step, loss)
    jobs.beat(lease, Progress(done=2, total=9, loss=2.4, note="waits"))
    assert jobs.points(job) == [(1, 3.0), (2, 2.4)]
    assert jobs.get(job).progress == Progress(done=2, total=9, loss=2.4, note="waits")


def test_only_what_has_ended_is_deleted(jobs: Jobs, living: set[ProcessId]) -> None:
    job = add(jobs)
    claim(jobs, job)
    with pytest.raises(UserError, match=f"cancel {job}"):
        jobs.delete(job)
    jobs.ask(job, Event.CANCEL, 3.0)
    with pytest.raises(UserError):
        jobs.delete(job)  # its worker still ends
    living.remove(ME)
    jobs.log(job).write_text("said")
    jobs.delete(job)
    assert jobs.all() == [] and jobs.answers(job) == [] and not jobs.log(job).exists()
    assert add(jobs) > job  # a number means one job, for ever


class Life(RuleBasedStateMachine):
    """Workers that are killed, stopped, and wake; people who pause, cancel and resume.

    `kept` is what the store took: nothing else may be in it, and nothing of it may go.
    """

    @initialize()
    def begin(self) -> None:
        self.closing = ExitStack()
        home = Path(self.closing.enter_context(TemporaryDirectory()))
        self.living: set[ProcessId] = set()
        self.jobs = self.closing.enter_context(open_jobs(home, self.living.__contains__))
        self.job = add(self.jobs)
        self.state = State.QUEUED
        self.leases: list[tuple[ProcessId, Lease]] = []
        self.kept: dict[int, str] = {}
        self.born = 0
        self.said = 0

    @rule()
    def another_worker_comes(self) -> None:
        self.born += 1
        who = ProcessId(self.born, float(self.born))
        self.living.add(who)
        held = any(one in self.living for one, _ in self.leases[-1:])
        lease = self.jobs.claim(self.job, who, 1.0)
        found = self.jobs.get(self.job)
        if lease is not None:
            assert self.state in OPEN and not held
            self.leases.append((who, lease))
        self.state = found.state

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), number=st.integers(1, len(LINES)))
    def one_that_had_a_lease_answers(self, data: st.DataObject, number: int) -> None:
        at = data.draw(st.integers(0, len(self.leases) - 1))
        lease = self.leases[at][1]
        self.said += 1
        may = self.state == State.RUNNING and lease.number == self.jobs.get(self.job).lease
        try:
            took = self.jobs.answer(lease, number, str(self.said))
        except Superseded:
            assert not may
            return
        assert may and took == (number not in self.kept)
        self.kept.setdefault(number, str(self.said))

    @precondition(lambda self: self.leases)
    @rule(event=st.sampled_from([Event.RELEASE, Event.FINISH, Event.PAUSE, Event.FAIL]))
    def the_last_one_leaves(self, event: Event) -> None:
        who, lease = self.leases[-1]
        if self.state == State.RUNNING and self.jobs.get(self.job).lease == lease.number:
            self.jobs.leave(lease, event, 2.0)
            self.state = TABLE[self.state, event]
        else:
            with pytest.raises(Superseded):
                self.jobs.leave(lease, event, 2.0)
        self.living.discard(who)

    @rule(event=st.sampled_from([Event.PAUSE, Event.CANCEL, Event.RESUME]))
    def a_person_asks(self, event: Event) -> None:
        if (self.state, event) in TABLE:
            self.jobs.ask(self.job, event, 3.0)
            self.state = TABLE[self.state, event]
        else:
            with pytest.raises(UserError):
                self.jobs.ask(self.job, event, 3.0)

    @precondition(lambda self: self.living)
    @rule()
    def somebody_is_killed(self) -> None:
        self.living.discard(max(self.living, key=lambda one: one.pid))

    @invariant()
    def the_store_has_what_it_took(self) -> None:
        if hasattr(self, "jobs"):
            assert dict(self.jobs.answers(self.job)) == self.kept
            assert self.jobs.get(self.job).state == self.state

    def teardown(self) -> None:
        if hasattr(self, "closing"):
            self.closing.close()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_what_a_killed_process_was_told_is_kept_is_there(tmp_path: Path) -> None:
    """Two processes in turn answer lines and say so once the store has taken each; both are killed
    in the middle. What they said is there, once, and a third finds the rest and nothing else."""
    with open_jobs(tmp_path) as jobs:
        job = add(jobs, lines=[str(number) for number in range(1000)])
        said: dict[int, str] = {}
        for name, count in (("one", 7), ("two", 12)):
            with answering(tmp_path, job, name) as process:
                assert process.stdout is not None
                for _ in range(count):
                    number = int(process.stdout.readline())
                    said[number] = f"{name} {number}"
                process.send_signal(signal.SIGKILL)
        kept = dict(jobs.answers(job))
        assert said.items() <= kept.items()
        assert sorted(kept) == list(range(1, len(kept) + 1))  # in order, so none was made twice
        left = [number for number, _ in jobs.open_lines(job, past=0, count=1000)]
        assert left == list(range(len(kept) + 1, 1001))
        assert jobs.get(job).state == State.RUNNING and not jobs.held(jobs.get(job))


ANSWERING = """
import sys
from pathlib import Path
from potluck.node.jobs.store import open_jobs
from potluck.node.process import process_id
home, job, name = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with open_jobs(home) as jobs:
    lease = jobs.claim(job, process_id(), 1.0)
    for number, _ in jobs.open_lines(job, past=0, count=1000):
        assert jobs.answer(lease, number, f"{name} {number}")
        print(number, flush=True)
"""


@contextmanager
def answering(home: Path, job: int, name: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-P", "-c", ANSWERING, str(home), str(job), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_full_disk_takes_nothing_and_what_it_had_is_there(
    tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = add(jobs)
    lease = claim(jobs, job)
    assert jobs.answer(lease, 1, "small")
    db = jobs._database._connection
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskTrouble, match="No space left"):
        jobs.answer(lease, 2, "large" * 100_000)
    with pytest.raises(DiskTrouble, match="No space left"):
        add(jobs, lines=["large" * 100_000])
    assert jobs.answers(job) == [(1, "small")] and len(jobs.all()) == 1
    db.execute("PRAGMA max_page_count = 100000")
    assert jobs.answer(lease, 2, "large" * 100_000)


def test_a_store_that_is_none_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / FOLDER / FILE
    path.parent.mkdir()
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match="damaged"), open_jobs(tmp_path):
        pass
    assert path.read_bytes().startswith(b"no database")
    with pytest.raises(UserError, match="cannot be made"), open_jobs(path):
        pass


def test_the_store_is_its_owners_alone(tmp_path: Path, jobs: Jobs) -> None:
    assert (tmp_path / FOLDER / FILE).stat().st_mode & 0o077 == 0
    with sqlite3.connect(tmp_path / FOLDER / FILE) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
