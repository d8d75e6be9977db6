"""What was given to a stream to send and has not left, and who waits for it.

The pieces are the callers' own buffers, so that bulk is copied once only, into its noise message;
whoever gave them has to wait until the last of them has left, and gets them back when cancelled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import trio

from .mux_inbox import Bytes


class Outbox:
    """Pieces of bytes, in order. A ticket is the number of all bytes up to somebody's last."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: deque[memoryview] = deque()
        self._given = 0
        self._taken = 0
        self._waiting: deque[tuple[int, trio.lowlevel.Task]] = deque()

    def put(self, parts: Iterable[Bytes], size: int) -> int:
        """Add what is to be sent, `size` bytes in all; the ticket for it."""
        for part in parts:
            view = memoryview(part).cast("B")
            if len(view):
                self._pieces.append(view)
        self.size += size
        self._given += size
        return self._given

    def take(self, parts: list[Bytes], size: int) -> None:
        """Append the next `size` bytes to `parts`, and wake those whose bytes these were."""
        self.size -= size
        self._taken += size
        while size:
            piece = self._pieces.popleft()
            if len(piece) > size:
                self._pieces.appendleft(piece[size:])
                piece = piece[:size]
            parts.append(piece)
            size -= len(piece)
        while self._waiting and self._waiting[0][0] <= self._taken:
            trio.lowlevel.reschedule(self._waiting.popleft()[1])

    def has_left(self, ticket: int) -> bool:
        return self._taken >= ticket

    async def left(self, ticket: int, *, cancelled: Callable[[], None] = lambda: None) -> None:
        """Wait until all up to a ticket has left, or the box is cleared."""
        waiting = (ticket, trio.lowlevel.current_task())
        self._waiting.append(waiting)

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._waiting.remove(waiting)
            cancelled()
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    @property
    def last(self) -> int:
        """The ticket for all that is here."""
        return self._given

    def withdraw(self, ticket: int, size: int) -> bool:
        """Take back the last `size` bytes given; False when some have left, or others followed."""
        if self._taken > ticket - size or self._given != ticket:
            return False
        self.size -= size
        self._given -= size
        while size:
            size -= len(self._pieces.pop())
        return True

    def clear(self) -> None:
        """Drop everything, and wake whoever waits."""
        self._pieces.clear()
        self.size = 0
        while self._waiting:
            trio.lowlevel.reschedule(self._waiting.popleft()[1])
