"""A job in words, as JSON, and in a table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..errors import UserError
from ..node.jobs.progress import Progress
from ..node.jobs.states import OPEN, State
from ..node.jobs.store import Job, Jobs
from .options import note
from .tables import print_table

MIB = 1 << 20
LOST = "interrupted"  # no state of the store: its worker is gone, and none was started since


def state_of(store: Jobs, job: Job) -> str:
    return LOST if job.state == State.RUNNING and not store.held(job) else str(job.state)


def facts(store: Jobs, job: Job) -> dict[str, Any]:
    """What a program wants to know."""
    held = store.held(job)
    return {
        "id": job.id,
        "kind": job.kind,
        "title": job.title,
        "state": state_of(store, job),
        "reason": job.reason,
        "pid": job.holder.pid if held and job.holder is not None else None,
        "made_s": job.made_s,
        "ended_s": job.ended_s,
        "out": job.spec.get("out") or None,
        **asdict(job.progress),
    }


def in_words(store: Jobs, job: Job) -> str:
    """All that a person wants to know."""
    state = state_of(store, job)
    lines = [f"job {job.id}: {job.title}, {state}, {measures(job.progress, job.kind)}"]
    if job.reason:
        lines.append(f"  {job.reason}")
    if job.progress.note and job.state in OPEN:
        lines.append(f"  waits: {job.progress.note}")
    lines += [f"  {one}" for one in _next(job, state)]
    return "\n".join(lines)


def _next(job: Job, state: str) -> list[str]:
    """What to copy."""
    match state:
        case "queued" | "running":
            return [f"look on:  potluck job show {job.id} --follow"]
        case "done" if job.spec.get("out"):
            return [f"answers:  {job.spec['out']}"]
        case "done" if job.kind == "batch":
            return [f"answers:  potluck job result {job.id}"]
        case "done":
            return [
                f"the adapter:  {job.spec['folder']}",
                f"its loss:  potluck job plot {job.id} loss.png",
            ]
    return [f"go on:  potluck job resume {job.id}"]


def measures(told: Progress, kind: str) -> str:
    """How far, how fast, with whom."""
    unit = "lines" if kind == "batch" else "epochs"
    parts = [f"{told.done} of {told.total} {unit}" if told.total else f"{told.done} {unit}"]
    if told.errors:
        parts.append(f"{told.errors} error{'' if told.errors == 1 else 's'}")
    if told.loss is not None:
        parts.append(f"loss {told.loss:.4g}")
    if told.tokens:
        parts.append(f"{told.tokens} tokens")
    if told.tokens_per_s:
        parts.append(f"{told.tokens_per_s:.1f} tokens/s")
    if told.sent_bytes:
        parts.append(f"{told.sent_bytes / MIB:.1f} MiB sent")
    if told.peers:
        parts.append(f"{told.peers} peer{'' if told.peers == 1 else 's'}")
    if told.left_s:
        parts.append(f"{clock(told.left_s)} left")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """1:02:03"""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}"


def print_jobs(store: Jobs, found: Sequence[Job]) -> None:
    if not found:
        note("no jobs here: potluck submit FILE makes one")
        return
    now = time.time()
    rows = []
    for job in found:
        told = job.progress
        open_ = job.state in OPEN
        done = f"{told.done}/{told.total}" if told.total else str(told.done)
        rate = f"{told.tokens_per_s:.1f}" if open_ and told.tokens_per_s else ""
        left = clock(told.left_s) if open_ and told.left_s is not None else ""
        since = clock((job.ended_s or now) - job.made_s)
        why = job.reason or (told.note if open_ else "")
        row = (str(job.id), state_of(store, job), done, str(told.errors or ""), rate, left, since)
        rows.append((*row, job.title, why))
    columns = ("ID>", "STATE", "DONE>", "ERRORS>", "TOKENS/S>", "LEFT>", "AGE>", "FILE", "")
    print_table(columns, rows)


def check_result(job: Job, *, partial: bool) -> None:
    """Raises UserError where there is none yet."""
    if job.state == State.DONE or (partial and job.kind == "batch"):
        return
    told = f"job {job.id} is {job.state}, {measures(job.progress, job.kind)}: wait for it"
    raise UserError(told + (", or give --partial" if job.kind == "batch" else ""))
