"""Whole frames over one stream: what both ends of a session speak through."""

from __future__ import annotations

from collections.abc import Iterator

import trio

from ..errors import RemoteError
from ..swarm.frame import PAYLOAD_BYTES_MAX, FrameReader, pack_frame
from ..swarm.wire import Message
from .net.stream import Stream

READ_BYTES = 256 * 1024  # one read takes a decode step whole, and a prefill chunk in few


class FrameStream:
    """Messages with raw payloads over a stream. One task may send while another receives."""

    def __init__(self, stream: Stream, payload_bytes_max: int = PAYLOAD_BYTES_MAX) -> None:
        self._stream = stream
        self._reader = FrameReader(payload_bytes_max)
        self._frames: Iterator[tuple[Message, memoryview]] = iter(())  # of the last read
        self.peer = stream.peer

    def allow(self, payload_bytes_max: int) -> None:
        """Payloads of up to this many bytes are read from here on."""
        self._reader.payload_bytes_max = payload_bytes_max

    async def send(self, message: Message, *payload: bytes | bytearray | memoryview) -> None:
        """Send one frame in one flush. Raises TransportError."""
        payload_bytes = sum(len(part) for part in payload)
        await self._stream.send(pack_frame(message, payload_bytes), *payload)

    async def send_both(
        self,
        message: Message,
        *payload: bytes | bytearray | memoryview,
        before: Message | None = None,
        behind: Message | None = None,
    ) -> None:
        """Send one frame, and others without a payload before and behind it, in one flush."""
        head = pack_frame(message, sum(len(part) for part in payload))
        if before is not None:
            head = pack_frame(before) + head
        rest = () if behind is None else (pack_frame(behind),)
        await self._stream.send(head, *payload, *rest)

    async def receive(self) -> tuple[Message, memoryview] | None:
        """The next frame, or None when the other end has finished.

        Raises RemoteError for a malformed or too large frame, TransportError when the road breaks.
        """
        if self._reader.unfinished:  # a read of many frames is no reason why others should wait
            await trio.lowlevel.checkpoint()
        while (frame := next(self._frames, None)) is None:
            data = await self._stream.receive(READ_BYTES)
            if not len(data):
                if self._reader.unfinished:
                    raise RemoteError("the stream ended inside a frame")
                return None
            self._frames = self._reader.feed(data)
        return frame

    async def broken(self) -> None:
        """Wait until the stream is, by the other end or the road."""
        await self._stream.broken()

    async def close(self) -> None:
        await self._stream.close()

    async def reset(self) -> None:
        await self._stream.reset()
