"""What a kind of job is to do, and what it is given to do it with.

    class BatchWork:                                   batch.py, finetune.py
        async def run(self, job, desk, report): ...

It returns when all is done. It may be cancelled anywhere, and the process may be killed anywhere:
what the desk has taken is kept, and the next run goes on from there. A UserError that it raises
pauses the job until a person has mended what the line says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import trio

from .database import DiskTrouble
from .progress import Progress
from .results import write_answers
from .store import Job, Jobs, Lease

DISK_AGAIN_S: Final = 5.0  # nothing tells when a disk has room again

T = TypeVar("T")


class Report:
    """How far a job is, told by its work whenever it changes; kept by the worker's beat."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def tell(self, **changed: Any) -> None:
        """Fields of `Progress`."""
        self.progress = replace(self.progress, **changed)


class Desk:
    """The store, as the holder of one lease writes it. All of it may raise Superseded.

    Calls go one at a time, on a thread. What a full disk refuses is held, and offered again until
    it is taken: nothing that was answered is lost, and no more is asked meanwhile than is at hand.
    """

    def __init__(self, jobs: Jobs, lease: Lease, report: Report) -> None:
        self._jobs = jobs
        self._lease = lease
        self._report = report
        self._turn = trio.Lock()

    async def open_lines(self, *, past: int, count: int) -> list[tuple[int, str]]:
        return await self._call(
            lambda: self._jobs.open_lines(self._lease.job, past=past, count=count)
        )

    async def answer(self, number: int, text: str, *, failed: bool, tokens: int) -> bool:
        """False when the line had its answer."""
        return await self._patiently(
            lambda: self._jobs.answer(self._lease, number, text, failed=failed, tokens=tokens)
        )

    async def tally(self) -> Progress:
        return await self._call(lambda: self._jobs.tally(self._lease.job))

    async def write(self, out: Path, *, replace: bool) -> None:
        """All answers, in order, to a file. Raises UserError."""
        job = self._lease.job
        await self._call(
            lambda: write_answers(self._jobs, job, out, replace=replace, beside=f"job{job}")
        )

    async def point(self, epoch: int, loss: float) -> None:
        await self._patiently(lambda: self._jobs.point(self._lease, epoch, loss))

    async def beat(self) -> None:
        """Tell how far it is; a disk that refuses is tried again by the next beat."""
        progress = self._report.progress
        try:
            await self._call(lambda: self._jobs.beat(self._lease, progress))
        except DiskTrouble as trouble:
            self._report.tell(note=str(trouble))

    async def _patiently(self, write: Callable[[], T]) -> T:
        while True:
            try:
                return await self._call(write)
            except DiskTrouble as trouble:
                self._report.tell(note=str(trouble))
            await trio.sleep(DISK_AGAIN_S)

    async def _call(self, call: Callable[[], T]) -> T:
        async with self._turn:
            return await trio.to_thread.run_sync(call)


class Work(Protocol):
    """One kind of job."""

    async def run(self, job: Job, desk: Desk, report: Report) -> None:
        """Raises UserError for what only a person can mend."""
