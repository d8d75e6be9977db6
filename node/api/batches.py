"""/v1/batches: every line of a file asked of the swarm, by the durable jobs of this home.

    file of requests ─▶ job (jobs/batch.py) ─▶ answers ─▶ two files: output and errors
         judged at once, all of it               kept in the store, each line exactly once

A batch is its job: batch_7 is job 7, and potluck job show 7 tells of it too. What our states have
and OpenAI's have not: a job that a person paused is in progress, and one that only a person can
mend has failed, with the reason, until it is resumed.

Source: OpenAI's API reference, "Batch".
"""

from __future__ import annotations

import os
import secrets
import time
from typing import Any, Final

from ...errors import UserError
from ..jobs.files import Kept
from ..jobs.lines import SEED_BITS, BatchSpec, read_file, split_lines
from ..jobs.states import OPEN, Event, State
from ..jobs.store import Job
from .asked import Body, read_body
from .asking import Asking
from .backend import Backend
from .filing import kept_file, results_of
from .office import API, Office, paged
from .problem import Problem, wrong
from .routes import Route, get, post
from .schemas_jobs import BATCH

PREFIX: Final = "batch_"
LIST_LIMIT, LIST_MOST = 20, 100  # OpenAI's
MODELS_MAX: Final = 16  # in one file: guess; each is loaded by its worker
_STATES: Final = {
    State.QUEUED: "in_progress",
    State.RUNNING: "in_progress",
    State.PAUSED: "in_progress",
    State.DONE: "completed",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
}


class Batches:
    """The handlers."""

    def __init__(self, office: Office, backend: Backend) -> None:
        self._office = office
        self._backend = backend

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("/v1/batches", {"GET": self._list, "POST": self._create}),
            get("/v1/batches/{batch}", self._one),
            post("/v1/batches/{batch}/cancel", self._cancel),
        )

    async def _create(self, asking: Asking) -> None:
        body = read_body(await asking.json(), BATCH)
        kept = await kept_file(self._office, body["input_file_id"], "input_file_id")
        if kept.purpose != "batch":
            raise wrong(f"{kept.id} was brought for {kept.purpose}, not for batch", "input_file_id")
        lines, models = await self._office.call(self._read, kept, body["endpoint"])
        if len(models) > MODELS_MAX:
            raise wrong(f"a file may name at most {MODELS_MAX} models", "input_file_id")
        sources = {name: await self._backend.source(name) for name in sorted(models)}
        spec = BatchSpec(
            seed=secrets.randbits(SEED_BITS),
            join=self._office.join,
            offline=self._office.offline,
            sources=sources,
        )
        told = {**spec.facts(), API: _request(body)}
        made = await self._office.call(
            self._office.jobs.add, "batch", kept.name, told, lines, time.time()
        )
        await self._office.begin(made)
        await asking.tell(await self._told(await self._office.call(self._office.jobs.get, made)))

    def _read(self, kept: Kept, url: str) -> tuple[list[str], set[str]]:
        """(the lines, the models they name). Blocks. Raises a Problem."""
        models: set[str] = set()
        try:
            with self._office.files.path(kept.id).open("rb") as opened:
                spec = BatchSpec()
                told = read_file(split_lines(opened), kept.name, spec.defaults, models.add, url=url)
                return list(told), models
        except FileNotFoundError as error:
            raise wrong(f"{kept.id} was deleted", "input_file_id") from error
        except UserError as error:
            raise wrong(str(error), "input_file_id", "invalid_input_file") from error
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise Problem(503, f"{kept.id}: {why}", code="disk_trouble") from error

    async def _list(self, asking: Asking) -> None:
        found = [await self._told(one) for one in await self._office.mine("batch")]
        await asking.tell(paged(found, asking.asked(), limit=LIST_LIMIT, most=LIST_MOST))

    async def _one(self, asking: Asking) -> None:
        await asking.tell(await self._told(await self._job(asking)))

    async def _cancel(self, asking: Asking) -> None:
        job = await self._job(asking)
        if job.state == State.DONE:
            raise Problem(
                409, f"{PREFIX}{job.id} is completed", code="invalid_state", param="batch_id"
            )
        job = await self._office.call(self._office.jobs.ask, job.id, Event.CANCEL, time.time())
        await asking.tell(await self._told(job))

    async def _job(self, asking: Asking) -> Job:
        return await self._office.job("batch", PREFIX, asking.found["batch"])

    async def _told(self, job: Job) -> dict[str, Any]:
        names = {told["id"].rpartition("-")[2] for _, told in await results_of(self._office, job)}
        return told_batch(job, names)


def _request(body: Body) -> dict[str, Any]:
    """What of it is told again."""
    names = ("input_file_id", "endpoint", "completion_window", "metadata")
    return {name: body.get(name) for name in names}


def told_batch(job: Job, results: set[str]) -> dict[str, Any]:
    """results: which files of answers there are: output, error."""
    asked, progress = job.spec[API], job.progress
    mendable = job.state == State.PAUSED and bool(job.reason)
    status = "failed" if mendable else _STATES[job.state]
    ended = int(job.ended_s) if job.ended_s is not None else None
    fault = {"code": "batch_failed", "message": job.reason, "param": None, "line": None}

    def when(state: State) -> int | None:
        return ended if job.state == state else None

    return {
        "id": f"{PREFIX}{job.id}",
        "object": "batch",
        **asked,
        "errors": {"object": "list", "data": [fault]} if status == "failed" else None,
        "status": status,
        "output_file_id": f"file-batch-{job.id}-output" if "output" in results else None,
        "error_file_id": f"file-batch-{job.id}-error" if "error" in results else None,
        "created_at": int(job.made_s),
        "in_progress_at": int(job.made_s),
        "expires_at": None,  # a job has time
        "finalizing_at": when(State.DONE),
        "completed_at": when(State.DONE),
        "failed_at": when(State.FAILED) or (int(job.made_s) if mendable else None),
        "expired_at": None,
        "cancelling_at": when(State.CANCELLED),
        "cancelled_at": when(State.CANCELLED),
        "request_counts": {
            "total": progress.total,
            "completed": progress.done - progress.errors,
            "failed": progress.errors,
        },
        "potluck": {
            "job": job.id,
            "state": str(job.state),
            "note": progress.note if job.state in OPEN else job.reason,
            "tokens": progress.tokens,
            "tokens_per_s": progress.tokens_per_s,
            "peers": progress.peers,
        },
    }
