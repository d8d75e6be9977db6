"""Look on while a job is worked at: a bar, what it waits for, and its end.

Whoever looks on also sees to it that somebody works: a worker that was killed is followed by
another, as often as that brings the job any further (store.py, STARTS_MAX).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ..node.jobs.states import OPEN, State
from ..node.jobs.store import Job, Jobs
from ..node.jobs.worker import start_worker
from .edge import DONE, FAILED, INTERRUPTED, complain
from .job_words import facts, in_words, measures
from .options import note, print_json, say

if TYPE_CHECKING:
    from ..node.process import Outliving

LOOK_EVERY_S: Final = 0.2
START_AGAIN_S: Final = 2.0  # guess: a worker that ends at once is not started in a circle
START_LATEST_S: Final = 60.0  # guess: as on a full disk, where none can even take its job


def follow_to_its_end(
    store: Jobs,
    home: Path,
    number: int,
    *,
    detach: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """See to it that somebody works at the job, and look on unless told not to; the exit code."""
    if detach:
        if store.waits(store.get(number)):
            start_worker(home, store, number)
        _tell(store, store.get(number), json)
        return DONE
    try:
        with _looking(quiet=quiet or json) as show:
            job = _until_ended(store, home, number, show)
    except KeyboardInterrupt:
        note(f"job {number} goes on by itself; look on: potluck job show {number} --follow; ")
        note(f"end it: potluck job cancel {number}")
        return INTERRUPTED
    if json:
        print_json(facts(store, job))
    elif not quiet or job.state != State.DONE:
        note(in_words(store, job))
    if job.state == State.DONE:
        return DONE
    complain(f"job {number} is {job.state}: {job.reason or 'as it was asked'}")
    return FAILED


def _tell(store: Jobs, job: Job, json: bool) -> None:
    if json:
        print_json(facts(store, job))
    else:
        say(in_words(store, job))


def _until_ended(store: Jobs, home: Path, number: int, show: Callable[[Job], None]) -> Job:
    worker: Outliving | None = None
    next_s, wait_s, done = float("-inf"), START_AGAIN_S, -1
    while (job := store.get(number)).state in OPEN:
        show(job)
        if job.progress.done > done:
            wait_s, done = START_AGAIN_S, job.progress.done
        ended = worker is None or worker.poll() is not None
        if ended and time.monotonic() >= next_s and store.waits(job):
            worker, next_s = start_worker(home, store, number), time.monotonic() + wait_s
            wait_s = min(2 * wait_s, START_LATEST_S)
        time.sleep(LOOK_EVERY_S)
    show(job)
    return job


@contextmanager
def _looking(*, quiet: bool) -> Iterator[Callable[[Job], None]]:
    """What is shown of each look, on stderr: a bar; in a pipe, what it waits for, once."""
    if quiet:
        yield lambda job: None
    elif sys.stderr is not None and sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        told = ""

        def tell(job: Job) -> None:
            nonlocal told
            if job.progress.note not in ("", told):
                told = job.progress.note
                note(f"job {job.id} waits: {told}")

        yield tell


@contextmanager
def _bar() -> Iterator[Callable[[Job], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, told="")

        def show(job: Job) -> None:
            told = job.progress
            waits = f"; waits: {told.note}" if told.note else ""
            bar.update(
                task,
                description=f"job {job.id} {job.state}",
                total=told.total or None,
                completed=told.done,
                told=measures(told, job.kind) + waits,
            )

        yield show
