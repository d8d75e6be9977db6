"""The one thread that touches the device, in order.

Two things are handed to it. A call is run as it is, before all that waits. A step of a session goes
to the lane (batch.py), which runs what waits in passes; between two passes the thread takes in what
has come. Each is handed over once and its result handed back once. The thread sleeps when there is
nothing to do and the event loop never computes. A call that may be made beside a pass (engine.py)
is made by the caller's task, so that opening a session waits for nobody's pass. And work that is
cut into slices, training, is done in what time is to spare (swarm/spare.py).

    trio task ── queue ──▶ thread: fn(*args), or a lane's pass ──▶ run_sync_soon ──▶ trio task
                                   or a slice, in spare time
"""

import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar, cast

import outcome
import torch
import trio

from ...errors import LocalError, Refused
from ...swarm.spare import Spare
from ...swarm.wire import Step
from .batch import Answer, Done, Lane, Order
from .engine import is_beside

T = TypeVar("T")

QUEUED_MAX = 256  # steps that may wait; each session has one, so this bounds no honest crowd
_RETRY_AFTER_S = 0.5  # guess: a full queue of 2 ms steps is empty by then
_LOOK_S = 0.05  # guess: while slices wait for readers to pause
_SPENT = object()  # of slices: none is left


class _Job:
    """One call or step, and whose it is. Whoever pops the ticket decides: the thread to run it, or
    the task to take it back."""

    __slots__ = ("_raise_cancel", "_ticket", "call", "order", "slices", "task")

    def __init__(self, call: Callable[[], Any] | None, task: trio.lowlevel.Task | None) -> None:
        self.call = call
        self.task = task  # None: nobody waits for the result
        self.order: Order | None = None
        self.slices: Iterator[None] | None = None
        self._ticket = [True]
        self._raise_cancel: Callable[[], None] | None = None

    def claim(self) -> bool:
        """True for exactly one of the callers, of whichever thread."""
        try:
            return self._ticket.pop()
        except IndexError:
            return False

    def release(self) -> None:
        """Between two passes it may be taken back."""
        self._ticket.append(True)

    def give_up(self, raise_cancel: Callable[[], None]) -> None:
        """The task is cancelled, and waits only for the pass at hand."""
        self._raise_cancel = raise_cancel

    def given_up(self) -> bool:
        return self._raise_cancel is not None

    def wake(self, result: outcome.Value[Any] | outcome.Error | None) -> None:
        """Hand the result back; None: it was given up. In the event loop."""
        assert self.task is not None
        if result is None:
            assert self._raise_cancel is not None
            result = outcome.capture(self._raise_cancel)
        trio.lowlevel.reschedule(self.task, result)


class Worker:
    """Runs calls and steps on its own thread. Made by `open_worker`."""

    def __init__(self, token: trio.lowlevel.TrioToken, queued_max: int) -> None:
        self._token = token
        self._queued_max = queued_max
        self._waiting = 0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lane: Lane | None = None
        self._spare = Spare()
        self._sliced: deque[_Job] = deque()  # that wait for spare time, and the one begun

    @property
    def waiting(self) -> int:
        """Calls and steps that wait or run now."""
        return self._waiting

    def serve(self, lane: Lane) -> None:
        """From now on steps go to this lane. Once, before the first step."""
        if self._lane is not None:
            raise LocalError("a worker serves one lane")
        self._lane = lane

    async def run(self, fn: Callable[..., T], *args: Any) -> T:
        """`fn(*args)` on the worker's thread: its result, or its exception.

        Cancelled while it waits: it never runs. Cancelled while it runs: this waits for its end,
        since a kernel cannot be stopped and its memory is in use. One that may be made beside a
        pass is made here and now; refused, it waits its turn, since what was handed over before
        may make room. Raises Refused when too many wait.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if is_beside(fn):
            with suppress(Refused):
                made = fn(*args)
                await trio.lowlevel.cancel_shielded_checkpoint()
                return made
        job = _Job(lambda: fn(*args), trio.lowlevel.current_task())
        return cast(T, await self._hand_over(job))

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        """Have `fn(*args)` run before anything that is handed over later; nobody waits for it."""
        self._jobs.put(_Job(lambda: fn(*args), None))

    async def step(
        self,
        cache: Any,
        peer: str,
        payload: memoryview,
        step: Step,
        dtype: str,
        *,
        within_s: float,
    ) -> Answer:
        """Run a session's step: the answer's payload, and the seconds it took in the blocks.

        Cancelled while it waits, or between two passes: it is dropped at once. Cancelled in a
        pass: this waits for the pass alone. Raises RemoteError for a payload or position that no
        honest client sends; Refused when too many wait, or when it has waited `within_s` seconds.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        job = _Job(None, trio.lowlevel.current_task())
        until_s = time.monotonic() + within_s
        job.order = Order(cache, peer, payload, step, dtype, until_s, job)
        return cast(Answer, await self._hand_over(job))

    async def spare(self, slices: Iterator[None]) -> None:
        """Have each `next` of `slices` run in spare time, until there is none. They wait in line.

        Cancelled, it is dropped, after the slice at hand. Raises what a slice raises, and Refused.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        job = _Job(None, trio.lowlevel.current_task())
        job.slices = slices
        await self._hand_over(job)

    async def _hand_over(self, job: _Job) -> object:
        if self._waiting >= self._queued_max:
            raise Refused("the device has too many steps waiting", retry_after_s=_RETRY_AFTER_S)

        def abort(raise_cancel: Callable[[], None]) -> trio.lowlevel.Abort:
            if job.claim():
                if job.order is not None and self._lane is not None:
                    self.post(self._lane.drop, job.order)  # and its payload with it
                return trio.lowlevel.Abort.SUCCEEDED
            job.give_up(raise_cancel)
            return trio.lowlevel.Abort.FAILED

        counts = int(job.slices is None)  # nobody waits behind what is done in spare time
        self._waiting += counts
        self._jobs.put(job)
        try:
            return await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            self._waiting -= counts

    def _work(self, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        while self._take_in():
            self._turn()
        while self._busy():
            self._turn()

    def _busy(self) -> bool:
        return self._lane is not None and self._lane.waiting > 0

    def _take_in(self) -> bool:
        """Take what was handed over, waiting for it if there is nothing else to do; False at the
        end."""
        block = not self._busy() and not self._may_slice()
        timeout_s = _LOOK_S if self._sliced else None
        while True:
            try:
                job = self._jobs.get(block, timeout_s)
            except queue.Empty:
                return True
            if job is None:
                return False
            self._begin(job)
            block = False

    def _begin(self, job: _Job) -> None:
        if job.slices is not None:
            self._sliced.append(job)
            return
        if job.order is not None:
            assert self._lane is not None
            self._reply(self._lane.add(job.order))
            return
        if job.claim():
            assert job.call is not None
            result = outcome.capture(job.call)
            if job.task is not None:
                self._token.run_sync_soon(trio.lowlevel.reschedule, job.task, result)
            else:
                self._token.run_sync_soon(result.unwrap)  # what it raised ends the program

    def _turn(self) -> None:
        if self._may_slice():
            self._slice()
        elif self._lane is not None and self._lane.waiting:
            self._reply(self._lane.turn())
            self._spare.passed()

    def _may_slice(self) -> bool:
        if not self._sliced:
            return False
        now, lane = time.monotonic(), self._lane
        if lane is None:
            return True
        return self._spare.may(now, served=lane.is_read(None, now), waits=lane.waiting > 0)

    def _slice(self) -> None:
        job, began_s = self._sliced[0], time.monotonic()
        if not job.claim():  # its task has taken it back
            self._sliced.popleft()
            return
        assert job.slices is not None
        result = outcome.capture(next, job.slices, _SPENT)
        now = time.monotonic()
        held = self._busy() or not self._jobs.empty()
        self._spare.took(now - began_s, now, held=held)
        if isinstance(result, outcome.Value) and result.value is not _SPENT:
            if not job.given_up():
                job.release()
                return
            self._sliced.popleft()
            self._token.run_sync_soon(_wake, [(job, None)])
            return
        self._sliced.popleft()
        self._token.run_sync_soon(_wake, [(job, result)])

    def _reply(self, done: Done) -> None:
        if done:
            ready = [(order.owner, result) for order, result in done]
            self._token.run_sync_soon(_wake, ready)

    def _stop(self) -> None:
        self._jobs.put(None)


def _wake(ready: list[tuple[_Job, Any]]) -> None:
    for job, result in ready:
        job.wake(result)


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
