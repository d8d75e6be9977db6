"""A stream from this process to itself: to be served here as any client is.

Bounded as a real one is: whoever sends waits while a few pieces are unread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from ..errors import Refused, RemoteError, TransportError
from .log import get_logger
from .net.stream import Stream

UNREAD_MAX: Final = 4  # pieces: each a frame, of a few MiB at most

Serve = Callable[[Stream], Awaitable[None]]

log = get_logger()


class _End:
    """One end. Both break together."""

    def __init__(
        self,
        peer: str,
        out: trio.MemorySendChannel[bytes],
        into: trio.MemoryReceiveChannel[bytes],
        over: trio.Event,
    ) -> None:
        self.peer = peer
        self._out, self._into, self._over = out, into, over
        self._rest = memoryview(b"")

    async def send(self, *parts: bytes | bytearray | memoryview) -> None:
        try:
            await self._out.send(b"".join(parts))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise TransportError("the stream is over") from None

    async def receive(self, max_bytes: int = 65536) -> memoryview:
        if not self._rest:
            try:
                self._rest = memoryview(await self._into.receive())
            except trio.EndOfChannel:
                if self._over.is_set():
                    raise TransportError("the stream was reset") from None
                return memoryview(b"")
            except trio.ClosedResourceError:
                raise TransportError("the stream is over") from None
        piece, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return piece

    async def broken(self) -> None:
        await self._over.wait()

    async def close(self) -> None:
        self._out.close()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        self._over.set()
        self._out.close()
        self._into.close()
        await trio.lowlevel.checkpoint()


class Loopback:
    """Opens streams to `serve`, as if this peer had dialed itself; they live in the nursery."""

    def __init__(self, peer: str, serve: Serve, nursery: trio.Nursery) -> None:
        self.peer_id = peer
        self._serve = serve
        self._nursery = nursery

    async def open_stream(self, peer: str, protocol: str) -> Stream:
        assert peer == self.peer_id, "only to ourselves"
        await trio.lowlevel.checkpoint()
        over = trio.Event()
        there: tuple[trio.MemorySendChannel[bytes], trio.MemoryReceiveChannel[bytes]]
        back: tuple[trio.MemorySendChannel[bytes], trio.MemoryReceiveChannel[bytes]]
        there, back = trio.open_memory_channel(UNREAD_MAX), trio.open_memory_channel(UNREAD_MAX)
        self._nursery.start_soon(self._run, _End(peer, back[0], there[1], over))
        return _End(peer, there[0], back[1], over)

    async def _run(self, stream: Stream) -> None:
        try:
            await self._serve(stream)
        except (RemoteError, TransportError, Refused) as error:
            log.debug("our own stream failed", reason=str(error))
            await stream.reset()
        else:
            await stream.close()
