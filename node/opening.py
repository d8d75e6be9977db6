"""The first word on a stream: what it asks for, and who answers.

Before it nothing is taken that has a payload, and it has a deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

import trio

from ..errors import RemoteError, UserError
from ..swarm.admission import RETRY_LATEST_S
from ..swarm.wire import Busy, Fault
from .frames import FrameStream
from .net.stream import Stream

OPEN_S: Final = 10.0  # for the first frame; a good client sends it with the stream's opening
ANSWER_S: Final = 30.0  # for a client to take one answer: 8 MiB over 2 Mbit/s

T = TypeVar("T")
Asked = TypeVar("Asked", contravariant=True)


class Answers(Protocol[Asked]):
    """Who is asked."""

    async def converse(self, frames: FrameStream, asked: Asked) -> None:
        """To the end of what was asked for. Raises RemoteError for a fault of the client's,
        UserError for an honest one's mistake."""


async def serve_stream(
    stream: Stream, kind: type[T], choose: Callable[[T], Answers[T] | None]
) -> None:
    """What this stream asks for, of whom `choose` names; None: nobody serves here now."""
    frames = FrameStream(stream, payload_bytes_max=0)
    try:
        asked = await _opening(frames, kind)
        if asked is None:
            return
        answers = choose(asked)
        if answers is not None:
            await answers.converse(frames, asked)
            return
        with trio.move_on_after(ANSWER_S):
            await frames.send(Busy("the server is at rest", RETRY_LATEST_S))
            await frames.close()
    except (UserError, RemoteError) as error:
        with trio.move_on_after(1):
            await frames.send(Fault(str(error)[:250]))
            await frames.close()
        if isinstance(error, RemoteError):  # else a mistake, and no reason to be banned
            raise


async def _opening(frames: FrameStream, kind: type[T]) -> T | None:
    """None when the client goes without a word."""
    with trio.move_on_after(OPEN_S) as deadline:
        received = await frames.receive()
    if deadline.cancelled_caught:
        raise RemoteError(f"no word in {OPEN_S:.0f} s after opening a stream")
    asked = None if received is None else received[0]
    if asked is not None and not isinstance(asked, kind):
        raise RemoteError(f"{type(asked).__name__} before {kind.__name__}")
    return asked
