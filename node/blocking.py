"""The Python client without an event loop: one runs on a thread of its own meanwhile.

with potluck.connect(join=[...]) as swarm:
    for piece in swarm.generate("demo", "Hello", max_new_tokens=64, seed=1): ...
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from pathlib import Path
from typing import Unpack

import outcome
import trio

from ..dht.directory import ModelOffer
from ..dht.record import Announcement
from ..errors import PotluckError
from ..swarm.microbatch import Brought, Microbatch
from .client import Options, Swarm, open_swarm
from .compute.voice import Voice
from .generation import Generation, Piece
from .trainer import Trainer


class BlockingSwarm:
    """A client for code without an event loop. Made by `connect`; usable from any thread."""

    def __init__(self, swarm: Swarm, token: trio.lowlevel.TrioToken, nursery: trio.Nursery) -> None:
        self._swarm = swarm
        self._token = token
        self._nursery = nursery

    def generate(
        self, model: str, prompt: str | Sequence[int], **options: Unpack[Options]
    ) -> Iterator[Piece]:
        """The answer, piece by piece. Arguments and errors as `Swarm.generation`.

        Closing the iterator, or leaving its loop, frees the servers' caches at once.
        """
        answer = self._swarm.generation(model, prompt, **options)
        scope, done = trio.CancelScope(), threading.Event()
        send, receive = trio.open_memory_channel[outcome.Value[Piece] | outcome.Error](1)

        def start() -> None:
            self._nursery.start_soon(_pump, answer, send, scope, done)

        trio.from_thread.run_sync(start, trio_token=self._token)
        finished = False
        try:
            while True:
                try:
                    result = trio.from_thread.run(receive.receive, trio_token=self._token)
                except (trio.EndOfChannel, trio.RunFinishedError):
                    if finished:
                        return
                    raise PotluckError("the client was left before its answer had ended") from None
                piece = result.unwrap()
                finished = piece.finish is not None
                yield piece
        finally:
            with suppress(trio.RunFinishedError):  # then all that it had open is closed
                trio.from_thread.run_sync(scope.cancel, trio_token=self._token)
                done.wait()

    def voice(self, model: str) -> Voice:
        """The tokenizer and the two ends of a model, loaded once. Raises UserError."""
        return trio.from_thread.run(self._swarm.voice, model, trio_token=self._token)

    def adapter(self, model: str, ref: str | Path) -> str:
        """The digest of an adapter, loaded once. Raises UserError."""
        worn = trio.from_thread.run(
            self._swarm.adapter, self.voice(model), ref, trio_token=self._token
        )
        return worn.hex

    def training(self, model: str) -> BlockingTrainer:
        """What takes batches over a model's blocks and back (`potluck.RemoteModel`). Raises
        UserError."""
        voice = self.voice(model)
        trainer = trio.from_thread.run_sync(self._swarm.trainer, voice, trio_token=self._token)
        return BlockingTrainer(trainer, self._token)

    def models(self) -> tuple[ModelOffer, ...]:
        """The models that the swarm serves, by name."""
        return trio.from_thread.run(self._swarm.models, trio_token=self._token)

    def spans(self, model: str) -> tuple[Announcement, ...]:
        """Who serves which blocks of the model with this digest."""
        return trio.from_thread.run(self._swarm.spans, model, trio_token=self._token)


class BlockingTrainer:
    """A trainer for code without an event loop; usable from any thread."""

    def __init__(self, trainer: Trainer, token: trio.lowlevel.TrioToken) -> None:
        self._trainer = trainer
        self._token = token

    @property
    def resent(self) -> int:
        """Pieces that were sent once more, since the start."""
        return self._trainer.resent

    def forward(self, batches: Sequence[Microbatch]) -> list[tuple[int, memoryview]]:
        """All at the same time: as `Trainer.forward` each, or none is open."""
        done: dict[int, tuple[int, memoryview]] = {}

        async def one(place: int) -> None:
            done[place] = await self._trainer.forward(batches[place])

        try:
            self._run(one, len(batches))
        except PotluckError:
            self.drop([number for number, _ in done.values()])
            raise
        return [done[place] for place in range(len(batches))]

    def backward(self, grads: Sequence[tuple[int, memoryview]]) -> list[Brought]:
        """All at the same time: as `Trainer.backward` each."""
        done: dict[int, Brought] = {}

        async def one(place: int) -> None:
            done[place] = await self._trainer.backward(*grads[place])

        try:
            self._run(one, len(grads))
        except PotluckError:
            self.drop([number for number, _ in grads])
            raise
        return [done[place] for place in range(len(grads))]

    def drop(self, numbers: Sequence[int]) -> None:
        """Nobody wants these any more. Waits for nothing: a collector of garbage may call it."""

        def drop() -> None:
            for number in numbers:
                self._trainer.drop(number)

        with suppress(trio.RunFinishedError):  # then nothing is open
            self._token.run_sync_soon(drop)

    def _run(self, one: Callable[[int], Awaitable[None]], count: int) -> None:
        """`one` of each number below `count`; the first error, if any, once all have ended."""
        failed: list[PotluckError] = []

        async def guarded(place: int, scope: trio.CancelScope) -> None:
            try:
                await one(place)
            except PotluckError as error:
                failed.append(error)
                scope.cancel()

        async def run() -> None:
            async with trio.open_nursery() as nursery:
                for place in range(count):
                    nursery.start_soon(guarded, place, nursery.cancel_scope)

        try:
            trio.from_thread.run(run, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise PotluckError("the client was left while a batch was on its way") from None
        if failed:
            raise failed[0]


async def _pump(
    answer: AbstractAsyncContextManager[Generation],
    send: trio.MemorySendChannel[outcome.Value[Piece] | outcome.Error],
    scope: trio.CancelScope,
    done: threading.Event,
) -> None:
    """Carry an answer's pieces, or its error, to the thread that waits for them."""
    try:
        with scope:
            async with send:
                try:
                    async with answer as pieces:
                        async for piece in pieces:
                            await send.send(outcome.Value(piece))
                except Exception as error:  # the other thread's to handle, whatever it is
                    await send.send(outcome.Error(error))
    finally:
        done.set()


@contextmanager
def connect(
    join: Sequence[str] = (),
    *,
    home: str | Path | None = None,
    offline: bool = False,
    anonymous: bool = False,
) -> Iterator[BlockingSwarm]:
    """Join as a client, as `open_swarm` does, without an event loop: one runs on a thread of its
    own meanwhile."""
    running: Future[trio.lowlevel.TrioToken] = Future()
    started: Future[BlockingSwarm] = Future()
    ended: Future[None] = Future()
    leave, joining = trio.Event(), trio.CancelScope()

    async def stay() -> None:
        if not running.set_running_or_notify_cancel():
            return
        running.set_result(token := trio.lowlevel.current_trio_token())
        with joining:
            async with (
                open_swarm(join, home=home, offline=offline, anonymous=anonymous) as swarm,
                trio.open_nursery() as nursery,
            ):
                started.set_result(BlockingSwarm(swarm, token, nursery))
                await leave.wait()
                nursery.cancel_scope.cancel()

    def run() -> None:
        result = outcome.capture(trio.run, stay)
        if isinstance(result, outcome.Error):
            (ended if started.done() else started).set_exception(result.error)
        if not ended.done():
            ended.set_result(None)

    thread = threading.Thread(target=run, name="potluck", daemon=True)
    try:
        thread.start()
        yield started.result()
    finally:  # Ctrl-C may come anywhere; while we join there is nothing to leave in order
        if not running.cancel():
            end = leave.set if started.done() else joining.cancel
            with suppress(trio.RunFinishedError):  # it has failed: the error is raised here
                running.result().run_sync_soon(end)
            thread.join()
            ended.result()
