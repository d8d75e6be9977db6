"""How many bytes a second may go to others and come from them, as this node's owner allows.

    all connections of a host ──┬── up    one token bucket
                                └── down  another

    send   takes what the bucket has; where it is empty the carrier waits for a piece, in the order
           in which carriers came, so that nobody gets more by having more to say
    recv   takes what is there, and pays for it before it reads again: the kernel's buffer fills,
           and TCP holds the sender back

Inside a connection what is small goes first anyway (mux_turns.py). What comes over a relay's
connection was counted there.

Source: the token bucket of RFC 2697; BOINC's max_bytes_sec_up and _down, which are 0, no limit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from ...dht.allowance import Allowance, allowance
from .carrier import Carrier, StreamCarrier

LEAST_BYTES_S = 128 * 1024  # below it a peer's ping stands behind its own bulk until we seem dead
BURST_S = 0.25  # guess: of the rate, at once
PIECE_S = 0.05  # guess: of the rate, before it is another connection's turn
PIECE_BYTES_MAX = 64 * 1024


class Bucket:
    """Tokens for bytes. bytes_s: how many of them a second; 0: as many as there are."""

    def __init__(self, bytes_s: float, clock: Callable[[], float] = trio.current_time) -> None:
        self.bytes_s = bytes_s
        self.piece_bytes = max(1, min(PIECE_BYTES_MAX, int(bytes_s * PIECE_S)))
        self._clock = clock
        self._allowance: Allowance | None = None  # made at the first use, when there is a clock

    @property
    def _left(self) -> Allowance:
        if self._allowance is None:
            self._allowance = allowance(self.bytes_s, self.bytes_s * BURST_S, self._clock())
        return self._allowance

    def at_once(self, size: int) -> int:
        """Take as many of so many bytes as there are; none while anybody waits."""
        left = self._left
        left.take(self._clock(), 0.0)  # what has come in meanwhile
        taken = max(0, min(size, int(left.left)))
        left.left -= taken
        return taken

    async def wait(self, size: int) -> None:
        """Take so many, and wait until they are there. Cancelled, they are given back."""
        wait_s = self._left.take(self._clock(), size)
        try:
            await trio.sleep(wait_s)
        except trio.Cancelled:
            self._left.left += size
            raise


@dataclass(slots=True)
class Pace:
    """One for a host. Bytes a second of all connections together; 0: no limit."""

    up_bytes_s: float = 0.0
    down_bytes_s: float = 0.0
    up: Bucket = field(init=False)
    down: Bucket = field(init=False)

    def __post_init__(self) -> None:
        self.up, self.down = Bucket(self.up_bytes_s), Bucket(self.down_bytes_s)

    def over(self, carrier: Carrier) -> Carrier:
        """The same road, at this pace."""
        if isinstance(carrier, StreamCarrier) or not (self.up_bytes_s or self.down_bytes_s):
            return carrier
        return PacedCarrier(carrier, self)


class PacedCarrier:
    """A carrier that waits for its bytes' turn."""

    def __init__(self, below: Carrier, pace: Pace) -> None:
        self.below = below
        self.local_host = below.local_host
        self._up, self._down = pace.up, pace.down
        self._granted = 0  # bytes that may be sent, and were taken from the bucket
        self._offered = 0  # of the piece that below has not taken: it comes again as it was
        self._debt = 0  # bytes that were read, and not paid for

    def recv(self, size: int, /) -> bytes:
        return self._owed(self.below.recv(self._share(size)))

    def recv_into(self, buffer: memoryview, /) -> int:
        size = self.below.recv_into(buffer[: self._share(len(buffer))])
        self._debt += size
        return size

    def send(self, data: bytes | bytearray | memoryview, /) -> int:
        if not self._up.bytes_s:
            return self.below.send(data)
        if not self._offered:
            if not self._granted:
                self._granted = self._up.at_once(min(len(data), self._up.piece_bytes))
            self._offered = min(len(data), self._granted)
        if not self._offered:
            raise BlockingIOError
        sent = self.below.send(memoryview(data)[: self._offered])
        self._granted -= sent
        self._offered = 0
        return sent

    async def readable(self) -> None:
        while self._debt and self._down.bytes_s:
            debt, self._debt = self._debt, 0
            try:
                await self._down.wait(debt)
            except trio.Cancelled:
                self._debt += debt
                raise
        await self.below.readable()

    async def writable(self) -> None:
        if self._up.bytes_s and not self._granted:
            piece = self._up.piece_bytes
            await self._up.wait(piece)
            self._granted += piece
        await self.below.writable()

    def path_rtt_s(self) -> float:
        return self.below.path_rtt_s()

    def close(self) -> None:
        self.below.close()

    def _share(self, size: int) -> int:
        return min(size, self._down.piece_bytes) if self._down.bytes_s else size

    def _owed(self, piece: bytes) -> bytes:
        self._debt += len(piece)
        return piece
