"""A stream in memory on which everything is a while under way, for tests and simulations.

Time is the trio clock: under a MockClock a road round the world costs nothing.
"""

import trio

from ..errors import TransportError

Parcel = tuple[float, bytes]  # when it arrives, what


class MemoryStream:
    """One end of a stream, with the surface of node/net/stream.py's. ends: this peer, the other."""

    def __init__(
        self,
        ends: tuple[str, str],
        out: "trio.MemorySendChannel[Parcel]",
        into: "trio.MemoryReceiveChannel[Parcel]",
        delay_s: float,
    ) -> None:
        self.me, self.peer = ends
        self._out, self._into, self._delay_s = out, into, delay_s
        self._next: Parcel | None = None

    async def send(self, *parts: bytes | bytearray | memoryview) -> None:
        try:
            await self._out.send((trio.current_time() + self._delay_s, b"".join(parts)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise TransportError("the stream broke") from None

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            if self._next is None:
                self._next = await self._into.receive()
        except trio.EndOfChannel:
            return b""
        except trio.ClosedResourceError:
            raise TransportError("the stream was reset") from None
        await trio.sleep_until(self._next[0])
        (_, piece), self._next = self._next, None
        return piece

    async def close(self) -> None:
        self._out.close()

    async def reset(self) -> None:
        self.reset_now()

    def reset_now(self) -> None:
        self._out.close()
        self._into.close()
