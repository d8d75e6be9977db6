"""What one member of a guarded group is told: in order, on one stream, and none of it for ever.

    post ─▶ a queue, so long and so large ─▶ one stream, opened anew where it broke ─▶ the member
                         └▶ past its time: it is dropped, and the stream that took nothing with it

Each message has a time until which the step can still make use of it. So a member that stops to
read, or reads a byte a minute, costs nobody anything but what waits for it, and that not for long;
when it reads again it is told what is said then, and asks for what it missed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Final

import trio

from ...errors import TransportError
from ..letters import send_letter
from ..log import get_logger
from ..net.stream import Stream

MESSAGES_MAX: Final = 4096  # that wait: five an attempt, rulings, and what is asked
PIECE_BYTES: Final = 256 * 1024
AGAIN_S: Final = 1.0  # guess: until a member that could not be reached is dialed again

log = get_logger()


Opens = Callable[[str], Awaitable[Stream]]  # a stream to this peer


@dataclass(frozen=True, slots=True)
class _Letter:
    """until_s: after which it is of no use."""

    message: bytes
    load: bytes
    until_s: float

    @property
    def size(self) -> int:
        return len(self.message) + len(self.load)


class Outbox:
    """For one member. opens: a stream to it. bytes_max: that may wait. To be run as a task."""

    def __init__(self, peer: str, opens: Opens, bytes_max: int) -> None:
        self._peer = peer
        self._opens = opens
        self._bytes_max = bytes_max
        self._outbox, self._todo = trio.open_memory_channel[_Letter](MESSAGES_MAX)
        self._stream: Stream | None = None
        self._whole = True  # nothing is half said on it
        self._scope = trio.CancelScope()
        self.waiting_bytes = 0
        self.sent_bytes = 0

    def post(self, message: bytes, load: bytes, until_s: float) -> bool:
        """To be sent in its turn, with its load behind it; whether there was room for it."""
        letter = _Letter(message, load, until_s)
        if self.waiting_bytes + letter.size > self._bytes_max:
            return False
        try:
            self._outbox.send_nowait(letter)
        except trio.WouldBlock:
            return False
        self.waiting_bytes += letter.size
        return True

    def close(self) -> None:
        """Nothing more is said, nor what waits."""
        self._scope.cancel()

    async def run(self) -> None:
        """Until it is closed."""
        with self._scope:
            try:
                async for letter in self._todo:
                    self._whole = False
                    await self._deliver(letter)
                    self._whole = True
                    self.waiting_bytes -= letter.size
            finally:
                if self._stream is not None:
                    with trio.CancelScope(shield=True):
                        await (self._stream.close() if self._whole else self._stream.reset())

    async def _deliver(self, letter: _Letter) -> None:
        if trio.current_time() >= letter.until_s:
            return  # it waited behind others for too long; the stream is none the worse
        with trio.move_on_at(letter.until_s) as late:
            await self._say(letter)
        if late.cancelled_caught:
            log.debug("not taken in time", by=self._peer)
            await self._drop()  # it may have taken a part

    async def _say(self, letter: _Letter) -> None:
        view = memoryview(letter.load)
        for last in (False, True):  # a stream that broke since is opened once more
            try:
                stream = self._stream = self._stream or await self._opens(self._peer)
                await send_letter(stream, letter.message)
                for at in range(0, len(view), PIECE_BYTES):
                    await stream.send(view[at : at + PIECE_BYTES])
                self.sent_bytes += letter.size
                return
            except TransportError as error:
                log.debug("not sent", peer=self._peer, reason=str(error))
                await self._drop()
                if not last:
                    await trio.sleep(AGAIN_S)

    async def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.reset()


class Outboxes:
    """One for each member that something is said to. opens: a stream. bytes_max: of each."""

    def __init__(self, opens: Opens, bytes_max: int) -> None:
        self._opens = opens
        self._bytes_max = bytes_max
        self._of: dict[str, Outbox] = {}
        self._gone_bytes = 0  # that left by those which are closed
        self._nursery: trio.Nursery | None = None

    @property
    def sent_bytes(self) -> int:
        return self._gone_bytes + sum(one.sent_bytes for one in self._of.values())

    def begin(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def post(self, peer: str, message: bytes, load: bytes, until_s: float) -> None:
        assert self._nursery is not None, "begun first"
        outbox = self._of.get(peer)
        if outbox is None:
            outbox = self._of[peer] = Outbox(peer, self._opens, self._bytes_max)
            self._nursery.start_soon(outbox.run)
        if not outbox.post(message, load, until_s):
            log.warning("outbox full", peer=peer)

    def hush(self, peer: str) -> None:
        """Nothing is said to it any more."""
        outbox = self._of.pop(peer, None)
        if outbox is not None:
            outbox.close()
            self._gone_bytes += outbox.sent_bytes

    def keep(self, peers: Collection[str]) -> None:
        """Nothing is said to others."""
        for peer in self._of.keys() - {*peers}:
            self.hush(peer)
