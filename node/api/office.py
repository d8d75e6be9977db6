"""Where files and jobs of the API are kept, and who works at them.

Everything on the disk goes by a thread; what the disk refuses is told as 503, and nothing is lost.
A job's worker is a process of its own (jobs/worker.py). One that was killed, or whose machine was
started anew, is followed by another for as long as the API runs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from ...errors import UserError
from ..jobs.database import DiskTrouble
from ..jobs.files import Files, TooMuch
from ..jobs.states import OPEN
from ..jobs.store import Job, Jobs, open_jobs
from ..jobs.worker import start_worker
from ..log import get_logger
from .problem import Problem, wrong

DISK_RETRY_S: Final = 30.0
LOOK_S: Final = 5.0  # guess: a worker that died is missed for so long
START_AGAIN_S: Final = 10.0  # guess: one that ends at once is not started in a circle
API: Final = "api"  # what a job's spec holds of the request that made it

T = TypeVar("T")
log = get_logger()


@dataclass(slots=True)
class Office:
    """start: a worker for a job. join: what its workers join by, where it is not the home that
    says."""

    home: Path
    jobs: Jobs
    files: Files
    start: Callable[[int], object]
    join: tuple[str, ...] = ()
    offline: bool = False
    _started_s: dict[int, float] = field(default_factory=dict)

    async def call(self, fn: Callable[..., T], *args: Any, **named: Any) -> T:
        """`fn` on a thread. Raises a Problem for what the disk refuses."""
        try:
            return await trio.to_thread.run_sync(partial(fn, *args, **named))
        except TooMuch as error:
            raise Problem(413, str(error), code="file_too_large", param="file") from error
        except (DiskTrouble, OSError) as error:
            raise Problem(
                503, str(error), code="disk_trouble", retry_after_s=DISK_RETRY_S
            ) from error

    async def mine(self, kind: str) -> list[Job]:
        """The jobs of this kind that were asked for here, the newest first."""
        found = await self.call(self.jobs.all)
        return [one for one in reversed(found) if one.kind == kind and API in one.spec]

    async def job(self, kind: str, prefix: str, name: str) -> Job:
        """Raises a Problem (404)."""
        number = name.removeprefix(prefix)
        if name.startswith(prefix) and number.isascii() and number.isdigit() and len(number) < 16:
            with suppress(UserError):
                found = await self.call(self.jobs.get, int(number))
                if found.kind == kind and API in found.spec:
                    return found
        raise Problem(404, f"there is no {name[:80]!r} here", code="not_found")

    async def begin(self, job: int) -> None:
        """See to it that somebody works at it; where the disk is in the way, later."""
        with suppress(Problem):
            await self._start(job)

    async def _start(self, job: int) -> None:
        found = await self.call(self.jobs.get, job)
        if await self.call(self.jobs.waits, found):
            self._started_s[job] = trio.current_time()
            await self.call(self.start, job)

    async def run(self) -> None:
        """A service: jobs that lost their workers get others."""
        while True:
            try:
                for one in await self.call(self.jobs.all):
                    due_s = self._started_s.get(one.id, -START_AGAIN_S) + START_AGAIN_S
                    if API in one.spec and one.state in OPEN and trio.current_time() >= due_s:
                        await self._start(one.id)
            except (Problem, UserError) as error:
                log.warning("jobs not looked after", why=str(error))
            await trio.sleep(LOOK_S)


@asynccontextmanager
async def open_office(
    home: Path, join: tuple[str, ...] = (), *, offline: bool = False
) -> AsyncIterator[Office]:
    """Raises UserError when the home cannot keep jobs."""
    with open_jobs(home) as jobs:
        files = Files(home)
        await trio.to_thread.run_sync(files.sweep)
        yield Office(home, jobs, files, partial(start_worker, home, jobs), join, offline)


def paged(
    items: Sequence[dict[str, Any]], asked: dict[str, str], *, limit: int, most: int
) -> dict[str, Any]:
    """A list in OpenAI's shape: what follows `after`, at most `limit`. Raises a Problem."""
    told = asked.get("limit", "")
    whole = told.isascii() and told.isdigit() and len(told) < 10
    if told and not (whole and 1 <= int(told) <= most):
        raise wrong(f"limit must be 1 to {most}", "limit")
    count, first = int(told) if told else limit, 0
    if (after := asked.get("after")) is not None:
        places = [place for place, one in enumerate(items) if one["id"] == after]
        if not places:
            raise wrong(f"after: there is no {after[:80]!r} in this list", "after")
        first = places[0] + 1
    page = items[first : first + count]
    return {
        "object": "list",
        "data": list(page),
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": first + count < len(items),
    }
