"""One request to a peer that serves blocks to train through, from its stream's opening to its end.

What is sent and what is heard go side by side: a peer that has no room says so at once, and need
not be sent the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import trio

from ..errors import PotluckError, Refused, RemoteError, TransportError
from ..swarm.adapter import Bundle
from ..swarm.blocks import BlockRange
from ..swarm.wire import PIECE_BYTES_MAX, Busy, Fault, Lacking, Train, Trained
from .adapters import bring
from .frames import FrameStream
from .net.stream import Stream
from .pieces import receive_pieces, send_pieces


async def ask(
    stream: Stream, asked: Train, payload: Sequence[memoryview], worn: Bundle | None, size: int
) -> memoryview:
    """The answer, of so many bytes. Ends the stream. Raises Refused, RemoteError, TransportError.

    worn: the adapter that is asked for, to be brought to a peer that lacks it.
    """
    frames = FrameStream(stream, PIECE_BYTES_MAX)
    answer: memoryview | None = None
    try:
        answer = await _converse(frames, asked, payload, worn, size)
    finally:
        await (frames.reset() if answer is None else frames.close())
    return answer


async def _converse(
    frames: FrameStream, asked: Train, payload: Sequence[memoryview], worn: Bundle | None, size: int
) -> memoryview:
    answer: memoryview | None = None
    failure: PotluckError | None = None
    sent = trio.Event()  # or cannot be

    async def send() -> None:
        with suppress(TransportError):  # what the peer said before the stream ended tells more
            await frames.send(asked)
            await send_pieces(frames, payload)
        sent.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        try:
            answer = await _hear(frames, asked, worn, size, sent)
        except (Refused, RemoteError, TransportError) as error:
            failure = error  # the nursery would wrap it in a group
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    assert answer is not None
    return answer


async def _hear(
    frames: FrameStream, asked: Train, worn: Bundle | None, size: int, sent: trio.Event
) -> memoryview:
    received = await frames.receive()
    if worn is not None and received is not None and isinstance(received[0], Lacking):
        await sent.wait()
        await bring(frames, worn, BlockRange(asked.start, asked.stop))
        received = await frames.receive()
    match received:
        case Trained(size=told), _:
            if told != size:
                raise RemoteError(f"an answer of {told} bytes, where {size} are due")
            return memoryview(await receive_pieces(frames, size))
        case Busy(reason, retry_after_s), _:
            raise Refused(reason, retry_after_s=retry_after_s)
        case Fault(reason), _:
            raise RemoteError(f"the peer says: {reason}")
        case None:
            raise TransportError(f"{frames.peer} has left")
    raise RemoteError("answered Train with something else")
