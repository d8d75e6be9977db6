"""One session as its server holds it, and what may come next in it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import trio

from ..swarm.blocks import BlockRange
from ..swarm.receipt import Notary
from ..swarm.wire import Message, Receipts, Step
from .chain import Seat
from .frames import FrameStream
from .remembering import Memory
from .wardrobe import Lent


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
