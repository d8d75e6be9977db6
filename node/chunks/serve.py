"""Gives chunks to peers: what they name, if it is here, in pieces that leave others room.

A request is a few hundred bytes and its answer up to 64 MiB, so a peer has few at a time, all
together have a bound, and whoever does not take what it asked for is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import trio

from ...crypto.codec import decode, encode
from ...errors import RemoteError, TransportError
from ...swarm.chunk import LETTER_BYTES_MAX, Have, Lack, Later, Want
from ...swarm.wire import PIECE_BYTES_MAX
from ..letters import receive_letter, send_letter
from ..net.stream import Stream
from ..pieces import BYTES_S, seconds_for
from .deadline import within
from .uplink import Uplink

WAIT_S: Final = 10.0  # guess: for a request; and for each answer, beside what its bytes take
REQUESTS_MAX: Final = 32  # guess: at a time; each holds one chunk in memory
PEER_REQUESTS_MAX: Final = 2  # one that ends while the next begins
RETRY_S: Final = 2.0  # guess: a batch is meant to take so long


class Library(Protocol):
    """Where chunks are: a ChunkStore, or several."""

    def get(self, name: bytes) -> bytes | None:
        """Checked. Blocks."""


class ChunkServer:
    """`serve` is the handler of swarm/chunk.py's protocol."""

    def __init__(self, library: Library, uplink: Uplink | None = None) -> None:
        self._library = library
        self._uplink = uplink or Uplink()
        self._open: Counter[str] = Counter()
        # who gets less than the least rate gives up, and all that it was sent was in vain
        self._requests_max = int(min(REQUESTS_MAX, max(1.0, self._uplink.bytes_s / BYTES_S)))
        self.sent_bytes = 0  # of chunks, since the start

    async def serve(self, stream: Stream) -> None:
        """One request. Raises RemoteError, TransportError."""
        with self._place(stream.peer) as free:
            raw: bytes | None = None
            with trio.move_on_after(WAIT_S):
                raw = await receive_letter(stream, LETTER_BYTES_MAX)
            if raw is None:
                raise TransportError(f"{stream.peer} opened a stream and asked for nothing")
            wanted = decode(raw, Want, max_bytes=LETTER_BYTES_MAX).chunks
            if len(set(wanted)) < len(wanted):
                raise RemoteError("a chunk twice in one request")
            if free:
                for name in wanted:
                    await self._give(stream, name)
            else:
                await _say(stream, Later(RETRY_S))
        await stream.close()

    async def _give(self, stream: Stream, name: bytes) -> None:
        raw = await trio.to_thread.run_sync(self._library.get, name)
        if raw is None:
            await _say(stream, Lack())
            return
        await _say(stream, Have(len(raw)))
        view = memoryview(raw)
        for at in range(0, len(view), PIECE_BYTES_MAX):
            piece = view[at : at + PIECE_BYTES_MAX]
            await self._uplink.turn(stream.peer, len(piece))
            with within(stream.peer, WAIT_S + seconds_for(len(piece))):
                await stream.send(piece)
            self.sent_bytes += len(piece)

    @contextmanager
    def _place(self, peer: str) -> Iterator[bool]:
        """Whether there is one for this request."""
        free = self._open.total() < self._requests_max and self._open[peer] < PEER_REQUESTS_MAX
        if not free:
            yield False
            return
        self._open[peer] += 1
        try:
            yield True
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]


async def _say(stream: Stream, message: Have | Lack | Later) -> None:
    with within(stream.peer, WAIT_S):
        await send_letter(stream, encode(message))
