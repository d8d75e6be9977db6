"""What a stream is to the rest of the node: one two-way byte stream to one peer."""

from typing import Protocol


class Stream(Protocol):
    """A two-way byte stream. One task may send while another receives, not two of a kind."""

    peer: str  # the other end's peer id, proved by the handshake

    async def send(self, *parts: bytes | bytearray | memoryview) -> None:
        """Send all parts as one run of bytes, in one flush. Raises TransportError.

        The parts may be changed by the caller once this returns. Cancelled, an unknown number of
        bytes is sent: reset the stream.
        """

    async def receive(self, max_bytes: int = 65536) -> bytes | bytearray | memoryview:
        """Return 1 to `max_bytes` bytes, or b"" when the peer has finished. Raises TransportError.

        Cancelled, nothing is lost: the bytes are there for the next call.
        """

    async def broken(self) -> None:
        """Wait until it was reset, or its connection is over, though bytes may be left to read."""

    async def close(self) -> None:
        """Finish writing and forget the stream. Never raises; may be called twice."""

    async def reset(self) -> None:
        """Drop the stream both ways, at once. Never raises; may be called twice."""
