"""The process that works at jobs: takes one, works until it is done, takes the next.

    potluck job work 7        what `submit` and `resume` start, apart from the terminal

    claim ─▶ run ─▶ finish ─▶ claim the next ─▶ ... ─▶ nothing left: end
              │
              ├── the lease is lost (cancel, pause, another)     end it, next
              ├── UserError: only a person can mend it           pause, next
              ├── SIGTERM                                        release, end
              └── our own fault                                  fail, end loudly

Whatever ends this process otherwise ends no job: its holder is seen to be gone (store.py), and
whoever looks may start another.
"""

from __future__ import annotations

import errno
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import trio

from ...errors import UserError, only
from ..log import get_logger
from ..process import Outliving, ProcessId, process_id, start
from .database import DiskTrouble
from .states import Event, State
from .store import Job, Jobs, Lease, Superseded, open_jobs
from .work import Desk, Report, Work

log = get_logger()

Works = Mapping[str, Callable[[], Work]]

BEAT_S: Final = 0.5  # how far it is, and whether it is still ours: as a person looks
TAKE_S: Final = 15.0  # for the holder of before to end, whose lease is gone
LOOK_EVERY_S: Final = 0.1
FULL: Final = (errno.ENOSPC, errno.EDQUOT)
MARK: Final = "POTLUCK_JOBS"  # in the environment of every worker: the home of its jobs
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
# -P: no folder that we happen to stand in may shadow a module
PROGRAM: Final = (sys.executable, "-P", "-m", "potluck.cli", "job", "work")


def start_worker(home: Path, jobs: Jobs, job: int) -> Outliving:
    """A worker apart from this process and its terminal; what it says is in the job's log."""
    command = [*PROGRAM, str(job), "--home", str(home)]
    return start(command, mark=(MARK, str(home)), environment={}, log=jobs.log(job))


async def run_worker(home: Path, first: int, works: Works) -> None:
    """Work at this job, then at whatever waits, until SIGTERM or until there is nothing left."""
    me = process_id()
    with open_jobs(home) as jobs:
        lease = await _take(jobs, first, me)
        while lease is not None:
            if not await work_at(jobs, lease, works):
                return
            lease = await trio.to_thread.run_sync(jobs.claim_next, me, time.time())


async def _take(jobs: Jobs, job: int, me: ProcessId) -> Lease | None:
    """The lease, if its last holder ends in time; else of another job that waits."""
    with trio.move_on_after(TAKE_S):
        while True:
            lease = await trio.to_thread.run_sync(jobs.claim, job, me, time.time())
            found = await trio.to_thread.run_sync(jobs.get, job)
            if lease is not None or found.state != State.QUEUED:
                return lease
            await trio.sleep(LOOK_EVERY_S)
    return await trio.to_thread.run_sync(jobs.claim_next, me, time.time())


@dataclass(slots=True)
class _Shift:
    """Our time at one job. event: what it ends with; None: it is not ours to end. stopped: by a
    signal. failure: our own."""

    scope: trio.CancelScope
    event: Event | None = Event.RELEASE
    reason: str = ""
    stopped: bool = False
    failure: Exception | None = None

    def lose(self) -> None:
        self.event = None
        self.scope.cancel()

    async def until_stopped(self) -> None:
        with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
            async for number in signals:
                log.info("stopping", signal=signal.Signals(number).name)
                self.stopped = True
                self.scope.cancel()

    async def beats(self, desk: Desk) -> None:
        """Until the lease is lost."""
        while True:
            try:
                await desk.beat()
            except Superseded:
                self.lose()
            await trio.sleep(BEAT_S)

    async def work(self, work: Work, job: Job, desk: Desk, report: Report) -> None:
        try:
            await work.run(job, desk, report)
            report.tell(note="", left_s=0.0)
            await desk.beat()
            self.event = Event.FINISH
        except Superseded:
            self.lose()
        except UserError as error:
            self.event, self.reason = Event.PAUSE, str(error)
        except Exception as error:  # the edge of a job: it is told that it failed, and we end
            found = only(error) if isinstance(error, ExceptionGroup) else error
            if isinstance(found, OSError) and found.errno in FULL:  # of a log that cannot grow
                self.event, self.reason = Event.PAUSE, f"{found.strerror}: free that disk"
            else:
                self.event, self.reason, self.failure = Event.FAIL, repr(found), error
        self.scope.cancel()


async def work_at(jobs: Jobs, lease: Lease, works: Works) -> bool:
    """Until the job is done, or no longer ours; False when a signal asks us to end."""
    job = await trio.to_thread.run_sync(jobs.get, lease.job)
    report = Report(replace(job.progress, note=""))
    desk = Desk(jobs, lease, report)
    log.info("working", job=job.id, kind=job.kind, title=job.title)
    async with trio.open_nursery() as nursery:
        shift = _Shift(nursery.cancel_scope)
        nursery.start_soon(shift.until_stopped)
        nursery.start_soon(shift.beats, desk)
        await shift.work(works[job.kind](), job, desk, report)
    await _leave(jobs, lease, shift)
    if shift.failure is not None:
        raise shift.failure
    return not shift.stopped


async def _leave(jobs: Jobs, lease: Lease, shift: _Shift) -> None:
    """Say what came of it. Where that is no longer ours to say, or the disk refuses, what is on the
    disk stands, and another worker goes on."""
    if shift.event is not None:
        try:
            await trio.to_thread.run_sync(jobs.leave, lease, shift.event, time.time(), shift.reason)
        except (Superseded, DiskTrouble) as error:
            log.warning("left as it is", job=lease.job, reason=str(error))
    log.info("left", job=lease.job, by=shift.event and str(shift.event), reason=shift.reason)
