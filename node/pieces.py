"""What is too large for one frame, in pieces: other streams of the connection take turns between.

The receiver knows the size before, and takes no byte more; a deadline grows with what has come.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import trio

from ..errors import RemoteError, TransportError
from ..swarm.wire import PIECE_BYTES_MAX, Message, Piece
from .frames import FrameStream

BYTES_S: Final = 512 * 1024  # 4 Mbit/s: whoever is slower is not waited for


def seconds_for(size: int) -> float:
    """How long it may take to send so many bytes."""
    return size / BYTES_S


async def send_pieces(frames: FrameStream, parts: Iterable[bytes | memoryview]) -> None:
    """Raises TransportError."""
    for part in parts:
        view = memoryview(part)
        for at in range(0, len(view), PIECE_BYTES_MAX):
            await frames.send(Piece(), view[at : at + PIECE_BYTES_MAX])


async def receive_pieces(
    frames: FrameStream, size: int, deadline: trio.CancelScope | None = None
) -> bytearray:
    """So many bytes. deadline: is moved on by what comes. Raises RemoteError or TransportError."""
    raw = bytearray()
    while len(raw) < size:
        piece = await next_of(frames, Piece)
        if not len(piece) or len(raw) + len(piece) > size:
            raise RemoteError(f"pieces of another size than the {size} bytes that were told")
        raw += piece
        if deadline is not None:
            deadline.deadline += seconds_for(len(piece))
    return raw


async def next_of(frames: FrameStream, kind: type[Message]) -> memoryview:
    """What follows the next message, which must be of this kind."""
    received = await frames.receive()
    if received is None:
        raise TransportError(f"{frames.peer} has left")
    message, payload = received
    if not isinstance(message, kind):
        raise RemoteError(f"{type(message).__name__} in place of {kind.__name__}")
    return payload
