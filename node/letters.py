"""Short messages over a stream of their own: each with its length before it, all within a limit."""

from __future__ import annotations

from typing import Final

from ..errors import RemoteError
from .net.stream import Stream

LENGTH_BYTES: Final = 4


async def send_letter(stream: Stream, *bodies: bytes) -> None:
    """Each of `bodies` is a letter; all leave in one run. Raises TransportError."""
    await stream.send(*(len(body).to_bytes(LENGTH_BYTES) + body for body in bodies))


async def receive_letter(stream: Stream, bytes_max: int) -> bytes | None:
    """The next letter; None when the other end has finished before it.

    Raises RemoteError for one that is too long or ends early, TransportError when the road breaks.
    Cancelled, it may have taken a part: nothing can be read from the stream after that.
    """
    head = await receive_up_to(stream, LENGTH_BYTES)
    if not head:
        return None
    size = int.from_bytes(head)
    if len(head) == LENGTH_BYTES and size > bytes_max:
        raise RemoteError(f"a letter of {size} bytes, above {bytes_max}")
    body = await receive_up_to(stream, size)
    if len(head) < LENGTH_BYTES or len(body) < size:
        raise RemoteError("the stream ended inside a letter")
    return body


async def receive_up_to(stream: Stream, size: int) -> bytes:
    """So many bytes; fewer only where the stream ends. Raises TransportError."""
    found = bytearray()
    while len(found) < size:
        data = await stream.receive(size - len(found))
        if not len(data):
            break
        found += data
    return bytes(found)
