"""What becomes of a job when its work ends, fails, is cut, or is another's by now."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from potluck.errors import LocalError, UserError
from potluck.node.jobs.progress import Progress
from potluck.node.jobs.states import Event, State
from potluck.node.jobs.store import Job, Jobs, Lease, open_jobs
from potluck.node.jobs.work import Desk, Report
from potluck.node.jobs.worker import Works, run_worker, work_at
from potluck.node.process import ProcessId, process_id

Do = Callable[[Job, Desk, Report], Awaitable[None]]


class Doing:
    """A kind of work that is one function."""

    def __init__(self, do: Do) -> None:
        self.run = do


def kinds(do: Do) -> Works:
    return {"some": lambda: Doing(do)}


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    with open_jobs(tmp_path) as opened:
        yield opened


def begin(jobs: Jobs, me: ProcessId | None = None) -> tuple[int, Lease]:
    job = jobs.add("some", "some.jsonl", {}, ["1", "2"], 1.0)
    lease = jobs.claim(job, me or process_id(), 2.0)
    assert lease is not None
    return job, lease


async def test_what_is_done_is_told_so_with_all_that_was_told_before(
    jobs: Jobs, autojump_clock: MockClock
) -> None:
    async def do(job: Job, desk: Desk, report: Report) -> None:
        await desk.answer(2, "x", failed=False, tokens=1)
        report.tell(done=2, note="waits")

    job, lease = begin(jobs)
    assert await work_at(jobs, lease, kinds(do))
    found = jobs.get(job)
    assert (found.state, found.reason, found.holder) == (State.DONE, "", None)
    assert found.ended_s is not None and jobs.answers(job) == [(2, "x")]
    assert found.progress == Progress(done=2, total=2, left_s=0.0)


async def test_while_it_works_it_says_how_far_it_is(jobs: Jobs, autojump_clock: MockClock) -> None:
    seen = list[int]()

    async def do(job: Job, desk: Desk, report: Report) -> None:
        for number in range(1, 4):
            report.tell(done=number)
            await trio.sleep(3)
            seen.append(jobs.get(job.id).progress.done)

    _, lease = begin(jobs)
    assert await work_at(jobs, lease, kinds(do))
    assert seen == [1, 2, 3]


async def test_what_only_a_person_can_mend_waits_for_one(
    jobs: Jobs, autojump_clock: MockClock
) -> None:
    async def do(job: Job, desk: Desk, report: Report) -> None:
        raise UserError("out.jsonl exists by now")

    job, lease = begin(jobs)
    assert await work_at(jobs, lease, kinds(do))
    found = jobs.get(job)
    assert (found.state, found.reason) == (State.PAUSED, "out.jsonl exists by now")


async def test_a_disk_that_is_full_is_a_persons_to_mend(
    jobs: Jobs, autojump_clock: MockClock
) -> None:
    async def do(job: Job, desk: Desk, report: Report) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log)

    async def log() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    job, lease = begin(jobs)
    assert await work_at(jobs, lease, kinds(do))
    found = jobs.get(job)
    assert found.state == State.PAUSED and "No space left" in found.reason


@pytest.mark.parametrize("fault", [LocalError("a bug"), ValueError("a bug")])
async def test_our_own_fault_is_told_and_ends_the_process(
    jobs: Jobs, autojump_clock: MockClock, fault: Exception
) -> None:
    async def do(job: Job, desk: Desk, report: Report) -> None:
        raise fault

    job, lease = begin(jobs)
    with pytest.raises(type(fault), match="a bug"):
        await work_at(jobs, lease, kinds(do))
    found = jobs.get(job)
    assert found.state == State.FAILED and "a bug" in found.reason
    assert not jobs.held(found)


@pytest.mark.parametrize("event", [Event.PAUSE, Event.CANCEL])
async def test_who_is_told_to_end_by_the_store_does_so_soon_and_changes_nothing(
    jobs: Jobs, autojump_clock: MockClock, event: Event
) -> None:
    async def do(job: Job, desk: Desk, report: Report) -> None:
        jobs.ask(job.id, event, 3.0, "as a person said")
        await trio.sleep_forever()

    job, lease = begin(jobs)
    with trio.fail_after(5):
        assert await work_at(jobs, lease, kinds(do))
    found = jobs.get(job)
    assert found.state == (State.PAUSED if event == Event.PAUSE else State.CANCELLED)
    assert found.reason == "as a person said"


async def test_sigterm_gives_the_job_back(jobs: Jobs) -> None:
    async def do(job: Job, desk: Desk, report: Report) -> None:
        await desk.answer(1, "x", failed=False, tokens=0)
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep_forever()

    job, lease = begin(jobs)
    with trio.fail_after(30):
        assert not await work_at(jobs, lease, kinds(do))
    found = jobs.get(job)
    assert (found.state, found.holder, found.starts) == (State.QUEUED, None, 0)
    assert jobs.waits(found) and jobs.answers(job) == [(1, "x")]


async def test_a_worker_takes_what_waits_those_of_dead_workers_too_until_nothing_is_left(
    tmp_path: Path, jobs: Jobs, autojump_clock: MockClock
) -> None:
    done = list[int]()

    async def do(job: Job, desk: Desk, report: Report) -> None:
        done.append(job.id)

    first = jobs.add("some", "a", {}, (), 1.0)
    orphan, _ = begin(jobs, ProcessId(process_id().pid, 1.0))  # a pid that is another's by now
    paused = jobs.add("some", "c", {}, (), 1.0)
    jobs.ask(paused, Event.PAUSE, 1.0)
    last = jobs.add("some", "d", {}, (), 1.0)
    await run_worker(tmp_path, last, kinds(do))
    assert done == [last, first, orphan]
    assert [one.state for one in jobs.all()] == [
        State.DONE, State.DONE, State.PAUSED, State.DONE,
    ]  # fmt: skip


async def test_a_worker_without_a_job_that_may_be_worked_at_ends(
    tmp_path: Path, jobs: Jobs, autojump_clock: MockClock
) -> None:
    async def do(job: Job, desk: Desk, report: Report) -> None:
        raise AssertionError("nobody may work at this")

    job, _ = begin(jobs, process_id(os.getppid()))  # that process lives
    await run_worker(tmp_path, job, kinds(do))
    assert jobs.get(job).state == State.RUNNING


async def test_a_job_that_was_resumed_at_once_waits_for_its_old_worker_to_end(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    living = {(old := ProcessId(1, 1.0))}
    done = list[float]()

    async def do(job: Job, desk: Desk, report: Report) -> None:
        done.append(trio.current_time())

    with open_jobs(tmp_path, living.__contains__) as jobs:
        job, _ = begin(jobs, old)
        jobs.ask(job, Event.CANCEL, 3.0)
        jobs.ask(job, Event.RESUME, 4.0)
        began_s = trio.current_time()
        monkeypatch.setattr("potluck.node.jobs.worker.open_jobs", lambda home: nullcontext(jobs))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_worker, tmp_path, job, kinds(do))
            await trio.sleep(4)
            assert done == []
            living.clear()
        assert done[0] - began_s >= 4
        assert jobs.get(job).state == State.DONE
