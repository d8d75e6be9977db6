"""One session as its server holds it, and what may come next in it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import trio

from ..errors import PotluckError, RemoteError, TransportError
from ..swarm.blocks import BlockRange
from ..swarm.receipt import Notary
from ..swarm.rows import row_bytes
from ..swarm.wire import Message, Open, Receipts, Step
from .chain import Seat
from .engine import Engine
from .frames import FrameStream
from .remembering import Memory
from .wardrobe import Lent

AHEAD_MAX = 6  # frames read while a step waits: ours are three steps and as many Signs


@dataclass(slots=True)
class Served:
    frames: FrameStream
    cache: Any
    blocks: BlockRange
    tokens: int
    dtype: str
    payload_bytes_max: int
    notary: Notary | None = None  # where receipts were asked for
    worn: Lent | None = None  # the adapter
    memory: Memory | None = None  # of prompts, where it was asked for and there is any
    seat: Seat | None = None  # in a chain, once the client has spoken of one
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    sending: trio.Lock = field(default_factory=trio.Lock)  # an answer, or that we leave
    length: int = 0
    ahead: deque[tuple[Message, memoryview]] = field(default_factory=deque)  # read while it waited
    brisk: bool = False  # its last step was short and no replay: the next may be here soon
    held: Receipts | None = None  # to go with the next answer


async def next_of(session: Served) -> tuple[Message, memoryview] | None:
    """What the client sends next, or was pushed here."""
    if session.seat is None:
        return await session.frames.receive()
    return await session.seat.receive(session.frames)


def unfit(session: Served, step: Step, tokens: int) -> str:
    """Why it is no step of this session; empty: it is."""
    if min(step.sizes) < 1 or step.rows > tokens:
        return f"a step of sizes {step.sizes} that wants {step.rows} rows"
    if step.at > session.length or step.at + tokens > session.tokens:
        return (
            f"a step at {step.at}..{step.at + tokens} of a session that holds "
            f"{session.length} of {session.tokens}"
        )
    return ""


def check_asked(asked: Open, engine: Engine, model: str) -> BlockRange:
    """The blocks of a session that can be served. Raises RemoteError."""
    mine = engine.blocks
    if asked.model != model:
        raise RemoteError("another model is served here")
    if not mine.start <= asked.start < asked.stop <= mine.stop:
        raise RemoteError(f"blocks {asked.start}:{asked.stop} are not in {mine}")
    if not 1 <= asked.tokens <= engine.context:
        raise RemoteError(f"{asked.tokens} positions; this model has {engine.context}")
    row_bytes(engine.width, asked.dtype)  # known
    return BlockRange(asked.start, asked.stop)


async def watch_for_end(
    session: Served, scope: trio.CancelScope, ended: list[PotluckError | None]
) -> None:
    """End the scope when the client leaves. What it sends before is kept, up to a limit."""
    kept = sum(len(payload) for _, payload in session.ahead)
    try:
        while kept < session.payload_bytes_max and len(session.ahead) < AHEAD_MAX:
            received = await session.frames.receive()
            if received is None:
                ended.append(None)
                break
            session.ahead.append(received)
            kept += len(received[1])
        else:  # the rest waits in the stream, if that lasts
            await session.frames.broken()
            ended.append(TransportError(f"{session.frames.peer} has left"))
    except (RemoteError, TransportError) as error:
        ended.append(error)
    scope.cancel()
