"""The jobs of a home, on disk: what was asked, how far it is, and what came of it.

    home/jobs/jobs.db    every job, line and answer
    home/jobs/7.log      what the workers of job 7 said

An answer is stored in the transaction that marks its line done, and a line that is done is never
written again: so whatever is killed when, each line is answered exactly once.

Whoever works at a job holds a *lease*: a number that grows whenever another takes over, or a person
pauses or cancels the job. Every write of a worker is conditional on it, so that one that was taken
for dead, or has not heard of its end, changes nothing any more. A holder is known by its pid and
the time at which it began: one that was killed, or did not survive the machine's restart, is seen
to be gone, and its job may be taken over at once.

Source: leases with a fencing token, as in Gray and Cheriton, "Leases", 1989, and Burrows, "The
Chubby lock service", 2006, section 2.4 (sequencers); a pid in place of a time limit, because all of
it is one machine.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...errors import PotluckError, UserError
from ..home import prepare_home
from ..process import ProcessId, find
from .database import Database, open_database
from .progress import Progress
from .states import OPEN, Event, State, after

FOLDER: Final = "jobs"
FILE: Final = "jobs.db"
WORKERS_MAX: Final = 4  # guess: each has the ends of a model in memory; other jobs wait their turn
STARTS_MAX: Final = 3  # in a row without getting any further: what kills them will kill the next
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS job (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT, title TEXT, spec TEXT, state TEXT,
    reason TEXT DEFAULT '', made_s REAL, ended_s REAL, lease INTEGER DEFAULT 0, starts INTEGER
    DEFAULT 0, pid INTEGER, born_s REAL, progress TEXT DEFAULT ''
);
CREATE TABLE IF NOT EXISTS line (
    job INTEGER REFERENCES job ON DELETE CASCADE, number INTEGER, failed INTEGER DEFAULT 0,
    tokens INTEGER DEFAULT 0, asked TEXT, answer TEXT, PRIMARY KEY (job, number)
);
CREATE INDEX IF NOT EXISTS open_line ON line (job, number) WHERE answer IS NULL;
CREATE TABLE IF NOT EXISTS point (
    job INTEGER REFERENCES job ON DELETE CASCADE, epoch INTEGER, loss REAL,
    PRIMARY KEY (job, epoch)
) WITHOUT ROWID;
"""
_JOB: Final = "id, kind, title, spec, state, reason, made_s, ended_s, lease, starts, progress, "
_HOLDER: Final = "pid, born_s"


class Superseded(PotluckError):
    """The lease is another's by now, or nobody's: whoever held it ends, and changes nothing."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work at a job. number: grows with every holder."""

    job: int
    number: int


@dataclass(frozen=True, slots=True)
class Job:
    """As it was when it was read. spec: what was asked, as its kind of work knows it. reason: why
    it is not running. starts: workers since it last got any further. made_s, ended_s: unix seconds.
    """

    id: int
    kind: str
    title: str
    spec: dict[str, Any]
    state: State
    reason: str
    made_s: float
    ended_s: float | None
    lease: int
    starts: int
    progress: Progress
    holder: ProcessId | None


def lives(holder: ProcessId | None) -> bool:
    """Whether that process is there, on this machine."""
    return holder is not None and find(holder) is not None


class Jobs:
    """Made by `open_jobs`. alive: whether a holder is there."""

    def __init__(self, folder: Path, database: Database, alive: Callable[[ProcessId | None], bool]):
        self.folder = folder
        self._database = database
        self._alive = alive

    def log(self, job: int) -> Path:
        """What its workers said."""
        return self.folder / f"{job}.log"

    # ---- for whoever asks and looks

    def add(
        self, kind: str, title: str, spec: dict[str, Any], lines: Iterable[str], now: float
    ) -> int:
        """A new job, with the lines it has to answer, numbered from 1; its id. What reading them
        raises undoes all of it."""
        with self._database.writing() as db:
            made = db.execute(
                "INSERT INTO job (kind, title, spec, state, made_s) VALUES (?, ?, ?, ?, ?)",
                (kind, title, json.dumps(spec), State.QUEUED, now),
            )
            job = int(made.lastrowid or 0)
            numbered = ((job, number, line) for number, line in enumerate(lines, 1))
            db.executemany("INSERT INTO line (job, number, asked) VALUES (?, ?, ?)", numbered)
            (total,) = db.execute("SELECT count(*) FROM line WHERE job = ?", (job,)).fetchone()
            told = Progress(total=total).text()
            db.execute("UPDATE job SET progress = ? WHERE id = ?", (told, job))
            return job

    def get(self, job: int) -> Job:
        """Raises UserError when there is none of this number."""
        with self._database.reading() as db:
            return _get(db, job)

    def all(self) -> list[Job]:
        with self._database.reading() as db:
            rows = db.execute(f"SELECT {_JOB}{_HOLDER} FROM job ORDER BY id").fetchall()
            return [_job(row) for row in rows]

    def held(self, job: Job) -> bool:
        """Whether a worker that lives works at it."""
        return job.state in OPEN and self._alive(job.holder)

    def waits(self, job: Job) -> bool:
        """Whether a worker should be started for it: nobody works at it, and there is room."""
        if job.state not in OPEN or self._alive(job.holder):
            return False
        others = {one.holder for one in self.all() if one.state == State.RUNNING}
        return sum(map(self._alive, others)) < WORKERS_MAX

    def ask(self, job: int, event: Event, now: float, reason: str = "") -> Job:
        """What a person asks of a job: pause, cancel, resume. Whoever works at it has no right to
        from now on. Raises UserError for what cannot be."""
        with self._database.writing() as db:
            found = _get(db, job)
            state = after(found.state, event)
            if state != found.state:
                _move(db, found, state, reason, now)
            if event == Event.RESUME:
                db.execute("UPDATE job SET starts = 0 WHERE id = ?", (job,))
            return _get(db, job)

    def answers(
        self, job: int, *, past: int = 0, count: int = 1000, failed: bool | None = None
    ) -> list[tuple[int, str]]:
        """The next answers that are there behind this line, in order. failed: of those that are
        errors, or of those that are none; None: of all."""
        which = "" if failed is None else f" AND failed = {int(failed)}"
        return self._lines("answer", f"answer IS NOT NULL{which}", job, past, count)

    def size(self, job: int, *, failed: bool) -> int:
        """Bytes of the answers that are errors, or that are none, each with its line's end."""
        with self._database.reading() as db:
            (found,) = db.execute(
                "SELECT coalesce(sum(length(CAST(answer AS BLOB)) + 1), 0) FROM line"
                " WHERE job = ? AND answer IS NOT NULL AND failed = ?",
                (job, int(failed)),
            ).fetchone()
            return int(found)

    def points(self, job: int) -> list[tuple[int, float]]:
        """A run's losses, by its epochs."""
        with self._database.reading() as db:
            found = db.execute("SELECT epoch, loss FROM point WHERE job = ? ORDER BY epoch", (job,))
            return [(int(epoch), float(loss)) for epoch, loss in found]

    def delete(self, job: int) -> None:
        """Forget a job that nobody works at. Raises UserError."""
        with self._database.writing() as db:
            found = _get(db, job)
            if found.state in OPEN or self._alive(found.holder):
                raise UserError(f"job {job} is {found.state}: potluck job cancel {job} first")
            db.execute("DELETE FROM job WHERE id = ?", (job,))
        self.log(job).unlink(missing_ok=True)

    # ---- for whoever works

    def claim(self, job: int, me: ProcessId, now: float) -> Lease | None:
        """The right to work at this job; None while another does, or as many work as may, or
        where it is not to be worked at."""
        with self._database.writing() as db:
            return self._claim(db, _get(db, job), me, now)

    def claim_next(self, me: ProcessId, now: float) -> Lease | None:
        """The same of whichever has waited longest, those of dead workers among them."""
        with self._database.writing() as db:
            marks = ", ".join("?" * len(OPEN))
            rows = db.execute(f"SELECT id FROM job WHERE state IN ({marks}) ORDER BY id", (*OPEN,))
            for (job,) in rows.fetchall():
                if (lease := self._claim(db, _get(db, job), me, now)) is not None:
                    return lease
        return None

    def _claim(self, db: sqlite3.Connection, job: Job, me: ProcessId, now: float) -> Lease | None:
        if job.state not in OPEN or (job.holder != me and self._alive(job.holder)):
            return None
        rows = db.execute(f"SELECT {_HOLDER} FROM job WHERE state = ?", (State.RUNNING,))
        holders = {_holder(*row) for row in rows} - {me, None}
        if sum(self._alive(one) for one in holders) >= WORKERS_MAX:
            return None
        if job.starts >= STARTS_MAX:
            running = _move(db, job, after(job.state, Event.CLAIM), "", now)
            reason = f"its worker ended {job.starts} times without getting any further"
            _move(db, running, after(running.state, Event.FAIL), reason, now)
            return None
        claimed = _move(db, job, after(job.state, Event.CLAIM), "", now)
        db.execute(
            "UPDATE job SET pid = ?, born_s = ?, starts = starts + 1 WHERE id = ?",
            (me.pid, me.created_s, job.id),
        )
        return Lease(job.id, claimed.lease)

    def leave(self, lease: Lease, event: Event, now: float, reason: str = "") -> None:
        """Release, pause, fail or finish what is held. Raises Superseded."""
        with self._held(lease) as (db, job):
            _move(db, job, after(job.state, event), reason, now)
            db.execute(
                "UPDATE job SET pid = NULL, born_s = NULL, starts = 0 WHERE id = ?", (job.id,)
            )

    def beat(self, lease: Lease, progress: Progress) -> None:
        """Tell how far it is. Raises Superseded."""
        with self._held(lease) as (db, job):
            _tell(db, job, progress)

    def open_lines(self, job: int, *, past: int, count: int) -> list[tuple[int, str]]:
        """The next lines without an answer behind this one: number and text."""
        return self._lines("asked", "answer IS NULL", job, past, count)

    def answer(
        self, lease: Lease, number: int, text: str, *, failed: bool = False, tokens: int = 0
    ) -> bool:
        """Store a line's answer; False when it has one. failed: it tells of an error. tokens: that
        were generated for it. Raises Superseded."""
        with self._held(lease) as (db, job):
            done = db.execute(
                "UPDATE line SET answer = ?, failed = ?, tokens = ?"
                " WHERE job = ? AND number = ? AND answer IS NULL",
                (text, failed, tokens, job.id, number),
            )
            db.execute("UPDATE job SET starts = 0 WHERE id = ?", (job.id,))
            return done.rowcount == 1

    def tally(self, job: int) -> Progress:
        """How far it is, by its lines."""
        with self._database.reading() as db:
            done, total, errors, tokens = db.execute(
                "SELECT count(answer), count(*), coalesce(sum(failed), 0), coalesce(sum(tokens), 0)"
                " FROM line WHERE job = ?",
                (job,),
            ).fetchone()
            return Progress(done, total, errors, tokens)

    def point(self, lease: Lease, epoch: int, loss: float) -> None:
        """Keep a run's loss of an epoch; one that is made again replaces it. Raises Superseded."""
        with self._held(lease) as (db, job):
            db.execute("INSERT OR REPLACE INTO point VALUES (?, ?, ?)", (job.id, epoch, loss))
            db.execute("UPDATE job SET starts = 0 WHERE id = ?", (job.id,))

    @contextmanager
    def _held(self, lease: Lease) -> Iterator[tuple[sqlite3.Connection, Job]]:
        with self._database.writing() as db:
            row = db.execute(
                f"SELECT {_JOB}{_HOLDER} FROM job WHERE id = ? AND lease = ? AND state = ?",
                (lease.job, lease.number, State.RUNNING),
            ).fetchone()
            if row is None:
                raise Superseded(f"job {lease.job} is no longer ours")
            yield db, _job(row)

    def _lines(
        self, what: str, which: str, job: int, past: int, count: int
    ) -> list[tuple[int, str]]:
        with self._database.reading() as db:
            return db.execute(
                f"SELECT number, {what} FROM line WHERE job = ? AND number > ? AND {which}"
                " ORDER BY number LIMIT ?",
                (job, past, count),
            ).fetchall()


@contextmanager
def open_jobs(home: Path, alive: Callable[[ProcessId | None], bool] = lives) -> Iterator[Jobs]:
    """Those of this home. Raises UserError when they cannot be kept."""
    folder = home / FOLDER
    prepare_home(folder)
    with open_database(folder / FILE, _TABLES) as database:
        yield Jobs(folder, database, alive)


def _get(db: sqlite3.Connection, job: int) -> Job:
    row = db.execute(f"SELECT {_JOB}{_HOLDER} FROM job WHERE id = ?", (job,)).fetchone()
    if row is None:
        raise UserError(f"there is no job {job}: potluck jobs lists them")
    return _job(row)


def _job(row: tuple[Any, ...]) -> Job:
    number, kind, title, spec, state, reason, made_s, ended_s, lease, starts, told, *holder = row
    return Job(
        number, kind, title, json.loads(spec), State(state), reason, made_s, ended_s, lease,
        starts, Progress.read(told), _holder(*holder),
    )  # fmt: skip


def _holder(pid: int | None, born_s: float | None) -> ProcessId | None:
    return None if pid is None or born_s is None else ProcessId(pid, born_s)


def _move(db: sqlite3.Connection, job: Job, state: State, reason: str, now: float) -> Job:
    """Into another state, under a new lease."""
    ended_s = None if state in OPEN or state == State.PAUSED else now
    db.execute(
        "UPDATE job SET state = ?, reason = ?, ended_s = ?, lease = lease + 1 WHERE id = ?",
        (state, reason, ended_s, job.id),
    )
    return _get(db, job.id)


def _tell(db: sqlite3.Connection, job: Job, progress: Progress) -> None:
    if progress == job.progress:
        return
    further = progress.done > job.progress.done
    db.execute(
        "UPDATE job SET progress = ?, starts = ? WHERE id = ?",
        (progress.text(), 0 if further else job.starts, job.id),
    )
