"""A host whose peers seem far away: what goes over its streams comes later, both ways.

Only for measuring. Bytes keep their order, and their rate where none is given; each is held for the
same time, as a long road holds it, so that what follows at once is on its way at the same time. A
road of a rate sends them one after another, those of all streams to a peer.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import trio

from ...errors import TransportError
from ..net.host import Host
from ..net.stream import Stream

READ_BYTES = 256 * 1024
AHEAD_MAX = 1024  # pieces on the way


class Lane:
    """One direction of a road. bytes_s: that it takes."""

    def __init__(self, one_way_s: float, bytes_s: float) -> None:
        self._one_way_s = one_way_s
        self._bytes_s = bytes_s
        self._free_s = 0.0

    def due_s(self, size: int) -> float:
        """When so many bytes that set out now have come, by trio's clock."""
        self._free_s = max(self._free_s, trio.current_time()) + size / self._bytes_s
        return self._free_s + self._one_way_s


class FarHost:
    """As the host, but for streams that it opens. bytes_s: of the road to each peer."""

    def __init__(
        self, host: Host, one_way_s: float, nursery: trio.Nursery, bytes_s: float = math.inf
    ) -> None:
        self._host = host
        self._road = one_way_s, bytes_s
        self._nursery = nursery
        self._lanes: dict[str, tuple[Lane, Lane]] = {}  # there and back

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    async def open_stream(self, peer: str, protocol: str) -> FarStream:
        stream = await self._host.open_stream(peer, protocol)
        if peer not in self._lanes:
            self._lanes[peer] = Lane(*self._road), Lane(*self._road)
        far = FarStream(stream, *self._lanes[peer])
        self._nursery.start_soon(far.carry_out)
        self._nursery.start_soon(far.carry_in)
        return far


class FarStream:
    """One stream over the long road. `carry_out` and `carry_in` run as long as it lasts."""

    def __init__(self, stream: Stream, there: Lane, back: Lane) -> None:
        self.peer = stream.peer
        self._stream = stream
        self._there, self._back = there, back
        self._out, self._to_carry = trio.open_memory_channel[tuple[float, bytes]](AHEAD_MAX)
        self._in, self._arrived = trio.open_memory_channel[tuple[float, bytes]](AHEAD_MAX)
        self._left: deque[bytes] = deque()  # of what has come, unread
        self._carrying = trio.CancelScope()
        self._failure: TransportError | None = None

    async def carry_out(self) -> None:
        try:
            async for due_s, data in self._to_carry:
                await trio.sleep_until(due_s)
                await self._stream.send(data)
            await self._stream.close()
        except TransportError as error:
            self._failure = error

    async def carry_in(self) -> None:
        with self._carrying, self._in:
            try:
                while len(data := await self._stream.receive(READ_BYTES)):
                    await self._in.send((self._back.due_s(len(data)), bytes(data)))
            except TransportError as error:
                self._failure = error

    async def send(self, *parts: bytes | bytearray | memoryview) -> None:
        if self._failure is not None:
            raise self._failure
        data = b"".join(parts)
        await self._out.send((self._there.due_s(len(data)), data))

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if not self._left:
            try:
                due_s, data = await self._arrived.receive()
            except trio.EndOfChannel:
                if self._failure is not None:
                    raise self._failure from None
                return b""
            with trio.CancelScope(shield=True):  # what was taken off the road is not lost
                await trio.sleep_until(due_s)
            self._left.append(data)
        data = self._left.popleft()
        if len(data) > max_bytes:
            self._left.appendleft(data[max_bytes:])
        return data[:max_bytes]

    async def broken(self) -> None:
        await self._stream.broken()

    async def close(self) -> None:
        self._out.close()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        self._out.close()
        self._carrying.cancel()
        await self._stream.reset()
