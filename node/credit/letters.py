"""Short messages over a stream of their own: each with its length before it, all within a limit."""

from __future__ import annotations

from typing import Final

from ...errors import RemoteError
from ..net.stream import Stream

LENGTH_BYTES: Final = 4


async def send_letter(stream: Stream, body: bytes) -> None:
    """Raises TransportError."""
    await stream.send(len(body).to_bytes(LENGTH_BYTES), body)


async def receive_letter(stream: Stream, bytes_max: int) -> bytes | None:
    """The next letter; None when the other end has finished before it.

    Raises RemoteError for one that is too long or ends early, TransportError when the road breaks.
    """
    head = await _exactly(stream, LENGTH_BYTES)
    if not head:
        return None
    size = int.from_bytes(head)
    if len(head) < LENGTH_BYTES or size > bytes_max:
        raise RemoteError(f"a letter of {size} bytes, above {bytes_max}")
    body = await _exactly(stream, size)
    if len(body) < size:
        raise RemoteError("a letter that ends early")
    return body


async def _exactly(stream: Stream, size: int) -> bytes:
    """So many bytes, or fewer at the end of the stream."""
    found = bytearray()
    while len(found) < size:
        data = await stream.receive(size - len(found))
        if not len(data):
            break
        found += data
    return bytes(found)
