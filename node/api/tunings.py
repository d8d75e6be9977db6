"""/v1/fine_tuning/jobs: runs of this home, begun by whoever may ask; their adapters are models.

    training file ─▶ texts ─▶ run.toml ─▶ job (jobs/finetune.py) ─▶ adapter ─▶ "demo:poet-7"
                     tuning_file.py         trains, resumes          a model of /v1/models at once

ftjob-7 is job 7, so potluck job show 7 tells of it too. Others of the swarm may take part: the
run's file stands in the home. Of its epochs the store keeps the losses, not the times: events of a
run that is on its way bear the job's own.

Source: OpenAI's API reference, "Fine-tuning".
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ...errors import UserError
from ..jobs.files import Kept
from ..jobs.finetune import RunSpec
from ..jobs.states import Event, State
from ..jobs.store import Job
from ..jobs.tuning_file import RATE, Course, Hyper, course_of, read_texts, write_run
from .asked import Body, read_body
from .asking import Asking
from .backend import Backend
from .filing import kept_file
from .language import Language
from .office import API, Office, paged
from .problem import Problem, wrong
from .routes import Route, get, post
from .schemas_jobs import TUNING

PREFIX: Final = "ftjob-"
LIST_LIMIT, LIST_MOST = 20, 100
SEED_BITS: Final = 31
_SUFFIX: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_STATES: Final = {
    State.QUEUED: "queued",
    State.RUNNING: "running",
    State.PAUSED: "paused",
    State.DONE: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
}
_EVENTS: Final = {
    "cancel": Event.CANCEL,
    "pause": Event.PAUSE,
    "resume": Event.RESUME,
}


class Tunings:
    """The handlers, and the models that came of it."""

    def __init__(self, office: Office, backend: Backend) -> None:
        self._office = office
        self._backend = backend

    def routes(self) -> tuple[Route, ...]:
        jobs = "/v1/fine_tuning/jobs"
        return (
            Route(jobs, {"GET": self._list, "POST": self._create}),
            get(f"{jobs}/{{job}}", self._one),
            post(f"{jobs}/{{job}}/cancel", self._cancel),
            post(f"{jobs}/{{job}}/pause", self._pause),
            post(f"{jobs}/{{job}}/resume", self._resume),
            get(f"{jobs}/{{job}}/events", self._events),
            get(f"{jobs}/{{job}}/checkpoints", self._checkpoints),
        )

    async def models(self) -> Mapping[str, tuple[str, Path]]:
        """What runs of here have made: by name, its model and the adapter's folder."""
        found = await self._office.mine("finetune")
        return {
            _model(job): (job.spec[API]["model"], Path(job.spec["folder"]))
            for job in found
            if job.state == State.DONE
        }

    async def _create(self, asking: Asking) -> None:
        body = read_body(await asking.json(), TUNING)
        if (suffix := body.get("suffix")) is not None and not _SUFFIX.fullmatch(suffix):
            raise wrong("suffix may have letters, digits, - and _", "suffix")
        kept = await kept_file(self._office, body["training_file"], "training_file")
        if kept.purpose != "fine-tune":
            raise wrong(f"{kept.id} was brought for {kept.purpose}, not for fine-tune",
                        "training_file")  # fmt: skip
        language = await self._backend.language(body["model"])
        if language.adapter is not None:
            raise wrong("a run begins from a model without an adapter", "model")
        source = await self._backend.source(body["model"])
        seed = secrets.randbits(SEED_BITS) if body.get("seed") is None else int(body["seed"])
        file, course = await self._backend.run(
            self._prepare, kept, language, source, _hyper(body), seed
        )
        spec = await self._office.call(
            RunSpec.of, file, self._office.join, offline=self._office.offline
        )
        told = {**spec.facts(), API: _request(body, course, seed)}
        made = await self._office.call(
            self._office.jobs.add, "finetune", kept.name, told, (), time.time()
        )
        await self._office.begin(made)
        await asking.tell(told_run(await self._office.call(self._office.jobs.get, made)))

    def _prepare(
        self, kept: Kept, language: Language, source: str, hyper: Hyper, seed: int
    ) -> tuple[Path, Course]:
        """The run's file. Blocks. Raises a Problem or UserError."""
        try:
            texts = read_texts(self._office.files.path(kept.id), language.template)
            voice = language.voice
            course = course_of(texts, voice.text, voice.context, hyper)
        except FileNotFoundError as error:
            raise wrong(f"{kept.id} was deleted", "training_file") from error
        except UserError as error:
            raise wrong(
                f"{kept.name}: {error}", "training_file", "invalid_training_file"
            ) from error
        name = f"ft-{secrets.token_hex(6)}"
        return write_run(self._office.home, name, source, texts, course, seed), course

    async def _list(self, asking: Asking) -> None:
        found = [told_run(one) for one in await self._office.mine("finetune")]
        await asking.tell(paged(found, asking.asked(), limit=LIST_LIMIT, most=LIST_MOST))

    async def _one(self, asking: Asking) -> None:
        await asking.tell(told_run(await self._job(asking)))

    async def _cancel(self, asking: Asking) -> None:
        await self._ask(asking, "cancel")

    async def _pause(self, asking: Asking) -> None:
        await self._ask(asking, "pause")

    async def _resume(self, asking: Asking) -> None:
        await self._ask(asking, "resume")

    async def _ask(self, asking: Asking, what: str) -> None:
        job = await self._job(asking)
        try:
            job = await self._office.call(self._office.jobs.ask, job.id, _EVENTS[what], time.time())
        except UserError as error:
            raise Problem(
                409, f"{PREFIX}{job.id} is {_STATES[job.state]}: it cannot {what}",
                code="invalid_state",
            ) from error  # fmt: skip
        if what == "resume":
            await self._office.begin(job.id)
        await asking.tell(told_run(job))

    async def _events(self, asking: Asking) -> None:
        job = await self._job(asking)
        points = await self._office.call(self._office.jobs.points, job.id)
        found = told_events(job, points)
        await asking.tell(paged(found, asking.asked(), limit=LIST_LIMIT, most=LIST_MOST))

    async def _checkpoints(self, asking: Asking) -> None:
        """The adapter, once it is done; of the epochs before none is kept that could be asked."""
        job = await self._job(asking)
        points = await self._office.call(self._office.jobs.points, job.id)
        found = [_checkpoint(job, points)] if job.state == State.DONE and points else []
        await asking.tell(paged(found, asking.asked(), limit=LIST_LIMIT, most=LIST_MOST))

    async def _job(self, asking: Asking) -> Job:
        return await self._office.job("finetune", PREFIX, asking.found["job"])


def _hyper(body: Body) -> Hyper:
    """Of the request, or of its method; "auto" is nothing."""
    method = (body.get("method") or {}).get("supervised") or {}
    asked = {**(body.get("hyperparameters") or {}), **(method.get("hyperparameters") or {})}
    told = {name: None if value == "auto" else value for name, value in asked.items()}
    epochs, batch = told.get("n_epochs"), told.get("batch_size")
    return Hyper(
        None if epochs is None else int(epochs),
        None if batch is None else int(batch),
        told.get("learning_rate_multiplier"),
    )


def _request(body: Body, course: Course, seed: int) -> dict[str, Any]:
    """What of it is told again."""
    return {
        "model": body["model"],
        "training_file": body["training_file"],
        "suffix": body.get("suffix"),
        "metadata": body.get("metadata"),
        "seed": seed,
        "passes": course.passes,
        "batch": course.batch,
        "steps": course.steps,
        "rate": course.rate,
        "sequences": course.sequences,
    }


def _model(job: Job) -> str:
    """What the adapter is asked for as."""
    asked = job.spec[API]
    return f"{asked['model']}:{asked.get('suffix') or 'ft'}-{job.id}"


def told_run(job: Job) -> dict[str, Any]:
    asked, progress = job.spec[API], job.progress
    mendable = job.state == State.PAUSED and bool(job.reason)
    status = "failed" if mendable else _STATES[job.state]
    fault = {"code": "run_failed", "message": job.reason, "param": None}
    hyper = {
        "n_epochs": asked["passes"],
        "batch_size": asked["batch"],
        "learning_rate_multiplier": asked["rate"] / RATE,
    }
    left_s = progress.left_s if status == "running" else None
    return {
        "id": f"{PREFIX}{job.id}",
        "object": "fine_tuning.job",
        "created_at": int(job.made_s),
        "error": fault if status == "failed" else None,
        "fine_tuned_model": _model(job) if job.state == State.DONE else None,
        "finished_at": None if job.ended_s is None else int(job.ended_s),
        "hyperparameters": hyper,
        "model": asked["model"],
        "organization_id": "potluck",
        "result_files": [],
        "seed": asked["seed"],
        "status": status,
        "trained_tokens": progress.tokens if job.state == State.DONE else None,
        "training_file": asked["training_file"],
        "validation_file": None,
        "estimated_finish": None if left_s is None else int(time.time() + left_s),
        "integrations": [],
        "metadata": asked["metadata"],
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyper}},
        "potluck": {
            "job": job.id,
            "state": str(job.state),
            "note": progress.note or job.reason,
            "epoch": progress.done,
            "epochs": progress.total,
            "loss": progress.loss,
            "tokens_per_s": progress.tokens_per_s,
            "peers": progress.peers,
        },
    }


def told_events(job: Job, points: list[tuple[int, float]]) -> list[dict[str, Any]]:
    """The newest first."""
    steps, made = job.spec[API]["steps"], int(job.made_s)
    said: list[tuple[int, str, str, dict[str, Any]]] = [(made, "info", f"Job {job.id} made", {})]
    for epoch, loss in points:
        data = {"step": epoch * steps, "epoch": epoch, "train_loss": loss}
        said.append((made, "info", f"Step {epoch * steps}: training loss={loss:.4f}", data))
    if job.ended_s is not None or job.reason:
        level = "info" if job.state == State.DONE else "warn"
        level = "error" if job.state == State.FAILED else level
        words = f"Job {job.id} {_STATES[job.state]}" + (f": {job.reason}" if job.reason else "")
        said.append((int(job.ended_s or made), level, words, {}))
    told = [
        {
            "id": f"ftevent-{job.id}-{number}",
            "object": "fine_tuning.job.event",
            "created_at": at,
            "level": level,
            "message": message,
            "type": "metrics" if data else "message",
            "data": data,
        }
        for number, (at, level, message, data) in enumerate(said)
    ]
    return told[::-1]


def _checkpoint(job: Job, points: list[tuple[int, float]]) -> dict[str, Any]:
    epoch, loss = points[-1]
    step = epoch * job.spec[API]["steps"]
    return {
        "id": f"ftckpt-{job.id}-{step}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(job.ended_s or job.made_s),
        "fine_tuned_model_checkpoint": _model(job),
        "fine_tuning_job_id": f"{PREFIX}{job.id}",
        "step_number": step,
        "metrics": {"step": step, "train_loss": loss},
    }
