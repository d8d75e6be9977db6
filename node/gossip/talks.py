"""Talks of a few tagged messages on a stream of their own, each a letter (../letters.py).

Nothing is left open between two talks, each has a deadline and a limit, and whoever talks nonsense
ends that talk alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from ...crypto.codec import decode_any, encode
from ...errors import TransportError
from ..letters import receive_letter, send_letter
from ..net.host import Host
from ..net.stream import Stream

TALK_S: Final = 10.0  # a dial across the world, and a few round trips


class Talk:
    """The messages of a stream, each one of `kinds`."""

    def __init__(self, stream: Stream, kinds: tuple[type[Any], ...], bytes_max: int) -> None:
        self.peer = stream.peer
        self._stream = stream
        self._kinds = kinds
        self._bytes_max = bytes_max

    async def send(self, *messages: object) -> None:
        """Send all in one run. Raises TransportError."""
        await send_letter(self._stream, *map(encode, messages))

    async def receive(self) -> Any | None:
        """The next message; None when there comes no more. Raises RemoteError, TransportError."""
        raw = await receive_letter(self._stream, self._bytes_max)
        return None if raw is None else decode_any(raw, self._kinds, max_bytes=self._bytes_max)

    async def close(self) -> None:
        await self._stream.close()


@asynccontextmanager
async def open_talk(
    host: Host, peer: str, protocol: str, kinds: tuple[type[Any], ...], bytes_max: int
) -> AsyncIterator[Talk]:
    """A talk with a peer that speaks `protocol`, dialled if need be.

    Raises TransportError when the peer cannot be reached, does not speak it, or is too slow. To
    propose what it does not speak would look like a fault.
    """
    with trio.move_on_after(TALK_S) as deadline:
        await host.dial_known(peer)
        await host.identified(peer)
        claims = host.claims(peer)
        if claims is None or protocol not in claims.protocols:
            raise TransportError(f"{peer} does not speak {protocol}")
        stream = await host.open_stream(peer, protocol)
        try:
            yield Talk(stream, kinds, bytes_max)
        finally:
            with trio.CancelScope(shield=True):
                await stream.close()
    if deadline.cancelled_caught:
        raise TransportError(f"{peer} took more than {TALK_S:.0f} s")
