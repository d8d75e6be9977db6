"""Several answers to one request, heard as they come.

    async with hearing(backend, jobs) as said:
        async for one in said: ...

Leaving it, by whatever road, frees the caches of all of them at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio

from ...errors import LocalError, PotluckError, only
from ..compute.sampling import Likely
from ..drafting import Guessed
from ..generation import Generation, Piece, Request
from .backend import Backend
from .speaker import Speaker


@dataclass(frozen=True, slots=True)
class Job:
    """One answer that is to be made. index: of the choice. receipt: what it rests on, signed, once
    all is heard, if the request wants that."""

    index: int
    request: Request
    speaker: Speaker
    receipt: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Said:
    """One token of one answer. exact, recoveries, guessed: of the answer so far."""

    index: int
    piece: Piece
    note: Likely | None
    exact: bool
    recoveries: int
    guessed: Guessed | None = None


class Hearing:
    """What is said, in the order in which it comes. Made by `hearing`."""

    def __init__(self, receive: trio.MemoryReceiveChannel[Said | PotluckError]) -> None:
        self._receive = receive

    def __aiter__(self) -> Hearing:
        return self

    async def __anext__(self) -> Said:
        """Raises what any of the answers raised."""
        try:
            found = await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        if isinstance(found, PotluckError):
            raise found
        return found


@asynccontextmanager
async def hearing(backend: Backend, jobs: Sequence[Job]) -> AsyncIterator[Hearing]:
    send, receive = trio.open_memory_channel[Said | PotluckError](0)
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            async with send:
                for job in jobs:
                    nursery.start_soon(_speak, backend, job, send.clone())
            try:
                yield Hearing(receive)
            except Exception as error:  # the caller's own: the nursery would wrap it in a group
                failure = error
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise only(group) from None
    if failure is not None:
        raise failure


async def _speak(
    backend: Backend, job: Job, send: trio.MemorySendChannel[Said | PotluckError]
) -> None:
    with send:  # no checkpoint at its end, in which a hearer who leaves hides what is raised
        try:
            async with backend.answer(job.request) as answer:
                async for piece in answer:
                    await send.send(_said(job, piece, answer))
                if job.request.receipts:
                    job.receipt.append(await backend.proof(answer))
        except LocalError:
            raise
        except PotluckError as error:  # the hearer's to handle
            await send.send(error)


def _said(job: Job, piece: Piece, answer: Generation) -> Said:
    note = job.speaker.notes.pop(0) if job.speaker.notes else None  # several may be drawn at once
    guessed = None if answer.guessed is None else replace(answer.guessed)  # as it is now
    return Said(job.index, piece, note, answer.exact, len(answer.recoveries), guessed)
