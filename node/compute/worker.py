"""The one thread that touches the device, in order.

A step is handed over, run, and its result handed back; no lock anywhere else. The thread sleeps
between steps and the event loop never computes.

    trio task ── queue ──▶ thread: fn(*args) ──▶ run_sync_soon ──▶ trio task
"""

import queue
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import outcome
import torch
import trio

from ...errors import Refused

T = TypeVar("T")

QUEUED_MAX = 256  # steps that may wait; each session has one, so this bounds no honest crowd
_RETRY_AFTER_S = 0.5  # guess: a full queue of 2 ms steps is empty by then


class _Job:
    """One call, and whose it is. Whoever pops the ticket decides: the thread to run it, or the
    task to take it back."""

    __slots__ = ("call", "task", "ticket")

    def __init__(self, call: Callable[[], Any], task: trio.lowlevel.Task) -> None:
        self.call = call
        self.task = task
        self.ticket = [True]

    def claim(self) -> bool:
        """True for exactly one of the callers, of whichever thread."""
        try:
            return self.ticket.pop()
        except IndexError:
            return False


class Worker:
    """Runs functions one after another on its own thread. Made by `open_worker`."""

    def __init__(self, token: trio.lowlevel.TrioToken, queued_max: int) -> None:
        self._token = token
        self._queued_max = queued_max
        self._waiting = 0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()

    @property
    def waiting(self) -> int:
        """Calls that wait or run now."""
        return self._waiting

    async def run(self, fn: Callable[..., T], *args: Any) -> T:
        """`fn(*args)` on the worker's thread: its result, or its exception.

        Cancelled while it waits: it never runs. Cancelled while it runs: this waits for its end,
        since a kernel cannot be stopped and its memory is in use. Raises Refused when too many
        wait.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._waiting >= self._queued_max:
            raise Refused("the device has too many steps waiting", retry_after_s=_RETRY_AFTER_S)
        job = _Job(lambda: fn(*args), trio.lowlevel.current_task())

        def abort(_raise_cancel: Callable[[], None]) -> trio.lowlevel.Abort:
            claimed = job.claim()
            return trio.lowlevel.Abort.SUCCEEDED if claimed else trio.lowlevel.Abort.FAILED

        self._waiting += 1
        self._jobs.put(job)
        try:
            return cast(T, await trio.lowlevel.wait_task_rescheduled(abort))
        finally:
            self._waiting -= 1

    def _work(self, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        while (job := self._jobs.get()) is not None:
            if job.claim():
                result = outcome.capture(job.call)
                self._token.run_sync_soon(trio.lowlevel.reschedule, job.task, result)
                del result
            del job

    def _stop(self) -> None:
        self._jobs.put(None)


@asynccontextmanager
async def open_worker(
    *, threads: int | None = None, queued_max: int = QUEUED_MAX
) -> AsyncIterator[Worker]:
    """A worker and its thread. At the end it finishes the step at hand and is joined.

    threads: how many the device's library may use for one step; None: its own choice.
    """
    worker = Worker(trio.lowlevel.current_trio_token(), queued_max)
    thread = threading.Thread(target=worker._work, args=(threads,), name="device", daemon=True)
    thread.start()
    try:
        yield worker
    finally:
        worker._stop()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(thread.join)
