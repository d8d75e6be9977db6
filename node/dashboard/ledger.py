"""What the disk of this home tells a page: credit, bans, jobs and their losses, how to join.

Everything here blocks for files; what cannot be read is told as missing, for the page has more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from ...errors import RemoteError, UserError
from ...swarm.reputation import FOR_GOOD_S, Score, lower_of
from ..config import find_join, running_nodes
from ..credit.accounts import read_accounts, sums
from ..invite import load_private
from ..jobs.states import State
from ..jobs.store import Job, Jobs
from ..net.access import plain
from ..net.address import parse
from ..trust.bans import look

JOBS_MAX: Final = 24  # the newest
POINTS_MAX: Final = 240  # of a curve: as many as a wide screen's chart has pixels to tell apart
ACCOUNTS_MAX: Final = 24
BANS_MAX: Final = 24
SCORES_MAX: Final = 64
SHOWN: Final = (
    "done", "total", "errors", "tokens", "tokens_per_s", "peers", "left_s", "loss", "note",
)  # fmt: skip

Facts = dict[str, Any]


def credit_facts(home: Path, now: float) -> Facts | None:
    """None: no node has run here."""
    try:
        found = read_accounts(home, now)
    except UserError as error:
        return {"trouble": str(error)}
    if found is None:
        return None
    peer, accounts = found
    told = [{"peer": one.peer, "gave": one.gave, "took": one.took, "owed": one.owed}
            for one in accounts[:ACCOUNTS_MAX]]  # fmt: skip
    total = dict(zip(("gave", "took", "owed"), sums(accounts), strict=True))
    return {"peer": peer, "accounts": told, "sum": total, "count": len(accounts)}


def ban_facts(home: Path, now: float) -> Facts:
    found = look(home, now)
    told = [
        {
            "peer": one.peer,
            "grounds": one.grounds,
            "left_s": None if one.until_s >= FOR_GOOD_S else one.until_s - now,
        }
        for one in found[:BANS_MAX]
    ]
    return {"count": len(found), "bans": told}


def trust_facts(scores: Sequence[Score], now: float) -> list[Facts]:
    """What audits of this home found of whom, those that were audited most first."""
    known = sorted(scores, key=lambda one: (-(one.good + one.bad), one.peer))[:SCORES_MAX]
    return [
        {
            "peer": one.peer,
            "good": round(one.good, 2),
            "bad": round(one.bad, 2),
            "in_a_row": one.valid,
            "trust": round(lower_of(one.good, one.bad), 3),
            "banned": now < one.until_s,
        }
        for one in known
    ]


def job_facts(jobs: Jobs) -> list[Facts]:
    try:
        found = jobs.all()[-JOBS_MAX:]
        return [_job(jobs, one) for one in reversed(found)]
    except UserError:  # the disk: the next look may do
        return []


def _job(jobs: Jobs, job: Job) -> Facts:
    lost = job.state == State.RUNNING and not jobs.held(job)
    points = jobs.points(job.id) if job.kind == "finetune" else []
    step = math.ceil(len(points) / POINTS_MAX) or 1
    told = asdict(job.progress)
    return {
        "id": job.id,
        "kind": job.kind,
        "title": job.title,
        "state": "interrupted" if lost else str(job.state),
        "reason": job.reason,
        "made_s": job.made_s,
        "points": [*points[:-1:step], *points[-1:]],
        **{name: told[name] for name in SHOWN},
    }


def join_facts(home: Path, joined: Sequence[str]) -> Facts:
    """The line by which another machine joins. joined: what we were told to join by.

    Of a private swarm no line: whoever has its token is in, and a page is looked at by many.
    """
    try:
        private = load_private(home) is not None
        mine = [str(one) for told in running_nodes(home) for one in told.get("addresses", ())]
        known = mine or list(find_join(joined, home))
    except UserError:
        private, known = False, list(joined)
    far = [one for one in known if not _is_here(one)]
    if private:
        return {"private": True, "line": "potluck invite", "here": False}
    place = next(iter(far or known), None)
    line = None if place is None else f"potluck node -m auto --join {place}"
    return {"private": False, "line": line, "here": bool(known) and not far}


def _is_here(address: str) -> bool:
    """Whether it leads to this machine alone."""
    try:
        told = parse(address)
    except RemoteError:
        return False
    return told.is_ip and plain(told.host).is_loopback
