"""What carries a connection's bytes: a TCP socket, or a stream over somebody else's connection.

Noise and yamux read and write without waiting, and wait apart from it. So a carrier has a socket's
three calls, which raise BlockingIOError, and two waits:

    socket      recv_into, send ──▶ the kernel
    stream      recv_into, send ──▶ one yamux stream of a connection to a relay (circuit relay v2)
    websocket   recv_into, send ──▶ messages of a WebSocket (websocket.py)
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Protocol

import trio

from ...errors import TransportError
from .mux_stream import MuxStream

TCP_INFO_BYTES = 152  # Linux's struct tcp_info up to and with tcpi_min_rtt, in it since 4.6
UNKNOWN_RTT = 0xFFFFFFFF
STREAM_PIECE_BYTES = 256 * 1024  # as much as a link takes from a socket at once

_MIN_RTT = struct.Struct("=I")


class Carrier(Protocol):
    """A two-way byte road below Noise."""

    local_host: str  # the address of ours that it goes from; "" when it is none of ours

    def recv(self, size: int, /) -> bytes:
        """Up to `size` bytes that are there, b"" at the end. BlockingIOError, OSError."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """The same, into a buffer."""

    def send(self, data: bytes | bytearray | memoryview, /) -> int:
        """Take what there is room for. Raises BlockingIOError, OSError.

        What was not taken comes first in the next call: some of it may be under way already.
        """

    async def readable(self) -> None:
        """Wait until `recv` gives something. TransportError once closed. May return early."""

    async def writable(self) -> None:
        """Wait until `send` takes something. TransportError once closed. May return early."""

    def path_rtt_s(self) -> float:
        """The shortest round trip below us, in seconds; 0 where nobody knows."""

    def close(self) -> None:
        """Close it; whoever waits on it gets TransportError. May be called twice."""


class SocketCarrier:
    """A connected socket, not blocking. Its calls are the socket's own: nothing is added."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.recv = sock.recv
        self.recv_into = sock.recv_into
        self.send = sock.send
        self.local_host = _local_host(sock)
        self._closed = False

    async def readable(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self.sock.fileno())
        except (trio.ClosedResourceError, OSError, ValueError) as error:
            raise TransportError("connection closed") from error

    async def writable(self) -> None:
        try:
            await trio.lowlevel.wait_writable(self.sock.fileno())
        except (trio.ClosedResourceError, OSError, ValueError) as error:
            raise TransportError("connection closed") from error

    def path_rtt_s(self) -> float:
        """As the kernel has seen it: no queue of ours is in it, as it would be in a ping's."""
        if sys.platform != "linux" or self._closed:
            return 0.0
        try:
            info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
        except OSError:  # not TCP, but a pair of sockets in one machine
            return 0.0
        if len(info) < TCP_INFO_BYTES:
            return 0.0
        microseconds: int = _MIN_RTT.unpack_from(info, TCP_INFO_BYTES - _MIN_RTT.size)[0]
        return microseconds / 1e6 if microseconds < UNKNOWN_RTT else 0.0

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self.sock.fileno())
            self.sock.close()


class BufferedCarrier:
    """The reading half of a carrier whose `readable` does the work: what it finds is kept here."""

    def __init__(self) -> None:
        self._arrived: memoryview = memoryview(b"")
        self._ended = False

    def recv(self, size: int, /) -> bytes:
        self._check()
        piece = bytes(self._arrived[:size])
        self._arrived = self._arrived[size:]
        return piece

    def recv_into(self, buffer: memoryview, /) -> int:
        self._check()
        size = min(len(buffer), len(self._arrived))
        buffer[:size] = self._arrived[:size]
        self._arrived = self._arrived[size:]
        return size

    def _check(self) -> None:
        if not self._arrived and not self._ended:
            raise BlockingIOError


class StreamCarrier(BufferedCarrier):
    """A stream, as a road for a connection of its own.

    What is sent waits in the stream until its window and its connection take it; while anything
    waits nothing more is taken, so that a connection over a relay is pushed back like any other.
    """

    local_host = ""

    def __init__(self, stream: MuxStream) -> None:
        super().__init__()
        self.stream = stream

    def send(self, data: bytes | bytearray | memoryview, /) -> int:
        if self.stream.failure is not None:
            raise OSError(str(self.stream.failure))
        if self.stream.pending:
            raise BlockingIOError
        piece = bytes(data)  # the caller's buffer is used again before this one has left
        self.stream.offer(piece)
        return len(piece)

    async def readable(self) -> None:
        if not self._arrived and not self._ended:
            self._arrived = memoryview(await self.stream.receive(STREAM_PIECE_BYTES)).cast("B")
            self._ended = not self._arrived

    async def writable(self) -> None:
        await self.stream.drained()

    def path_rtt_s(self) -> float:
        return 0.0

    def close(self) -> None:
        self.stream.close_now()


def remote_of(sock: socket.socket) -> tuple[str, int]:
    """Where a connected socket leads. Raises TransportError, and closes it, when it broke."""
    try:
        host, port = sock.getpeername()[:2]
    except OSError as error:
        sock.close()
        raise TransportError(error.strerror or "the connection broke") from error
    return host, port


def _local_host(sock: socket.socket) -> str:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return ""
    try:
        host: str = sock.getsockname()[0]
    except OSError:  # it broke already, as the first use will show
        return ""
    return host.partition("%")[0]
