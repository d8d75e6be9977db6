"""What a job is at, and what may become of it: a table, and nothing that waits.

                 claim               finish
      queued ────────────▶ running ──────────▶ done
       ▲  ▲                │  │  │
       │  └─── release ────┘  │  └── fail ───▶ failed ────┐
       │                      │                           │
       │        pause         ▼         cancel            │
       │  (queued, running) paused ──(all but done)──▶ cancelled
       │                      │                           │
       └────── resume ────────┴───────────────────────────┘

`claim` of a running job is a worker that takes the place of a dead one; whether it is dead is for
the store to see (store.py). What is done stays done.

Source: the life of OpenAI's batches (API reference, "The batch object": in_progress, completed,
failed, cancelled), with BOINC's suspend and resume, because here a person owns both ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from ...errors import UserError


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Event(StrEnum):
    CLAIM = "claim"  # a worker begins, or takes over
    RELEASE = "release"  # a worker is asked to end: another goes on
    FINISH = "finish"
    FAIL = "fail"  # our own fault, or a worker that dies again and again
    PAUSE = "pause"  # by a person, or for one: what hinders it, only a person can mend
    CANCEL = "cancel"
    RESUME = "resume"


TABLE: Final[Mapping[tuple[State, Event], State]] = {
    (State.QUEUED, Event.CLAIM): State.RUNNING,
    (State.RUNNING, Event.CLAIM): State.RUNNING,
    (State.RUNNING, Event.RELEASE): State.QUEUED,
    (State.RUNNING, Event.FINISH): State.DONE,
    (State.RUNNING, Event.FAIL): State.FAILED,
    (State.QUEUED, Event.PAUSE): State.PAUSED,
    (State.RUNNING, Event.PAUSE): State.PAUSED,
    (State.QUEUED, Event.CANCEL): State.CANCELLED,
    (State.RUNNING, Event.CANCEL): State.CANCELLED,
    (State.PAUSED, Event.CANCEL): State.CANCELLED,
    (State.FAILED, Event.CANCEL): State.CANCELLED,
    (State.QUEUED, Event.RESUME): State.QUEUED,
    (State.RUNNING, Event.RESUME): State.RUNNING,
    (State.PAUSED, Event.RESUME): State.QUEUED,
    (State.FAILED, Event.RESUME): State.QUEUED,
    (State.CANCELLED, Event.RESUME): State.QUEUED,
}
OPEN: Final = frozenset({State.QUEUED, State.RUNNING})  # somebody works at it, or should


def may(state: State, event: Event) -> bool:
    return (state, event) in TABLE


def after(state: State, event: Event) -> State:
    """Raises UserError for what cannot be."""
    if (found := TABLE.get((state, event))) is None:
        raise UserError(f"a job that is {state} cannot {event}: see potluck jobs")
    return found
