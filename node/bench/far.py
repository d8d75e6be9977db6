"""A host whose peers seem far away: what goes over its streams comes later, both ways.

Only for measuring. Bytes keep their order and their rate; each is held for the same time, as a long
road holds it, so that what follows at once is on its way at the same time.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import trio

from ...errors import TransportError
from ..net.host import Host
from ..net.stream import Stream

READ_BYTES = 256 * 1024
AHEAD_MAX = 1024  # pieces on the way


class FarHost:
    """As the host, but for streams that it opens."""

    def __init__(self, host: Host, one_way_s: float, nursery: trio.Nursery) -> None:
        self._host = host
        self._one_way_s = one_way_s
        self._nursery = nursery

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    async def open_stream(self, peer: str, protocol: str) -> FarStream:
        stream = await self._host.open_stream(peer, protocol)
        far = FarStream(stream, self._one_way_s)
        self._nursery.start_soon(far.carry_out)
        self._nursery.start_soon(far.carry_in)
        return far


class FarStream:
    """One stream over the long road. `carry_out` and `carry_in` run as long as it lasts."""

    def __init__(self, stream: Stream, one_way_s: float) -> None:
        self.peer = stream.peer
        self._stream = stream
        self._one_way_s = one_way_s
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
                    await self._in.send((trio.current_time() + self._one_way_s, bytes(data)))
            except TransportError as error:
                self._failure = error

    async def send(self, *parts: bytes | bytearray | memoryview) -> None:
        if self._failure is not None:
            raise self._failure
        await self._out.send((trio.current_time() + self._one_way_s, b"".join(parts)))

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
