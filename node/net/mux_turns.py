"""Whose bytes leave next: streams with little to send, then bulk, a frame each in turn.

A message in between frames of bulk waits for one frame at most, however many streams are in bulk.
When both kinds wait they alternate, message by message, so that many small senders do not starve
bulk either. Nothing here waits.
"""

from collections import deque
from typing import Protocol

from .mux_frame import HEADER_BYTES
from .mux_inbox import Bytes

SMALL_BYTES = 16 * 1024  # no more than this to send is little: a request, a token's hidden state


class Sender(Protocol):
    """A stream, as far as its turn goes."""

    window: int  # bytes that the peer lets it send
    queued: bool  # kept by `Turns`

    @property
    def pending(self) -> int:
        """Bytes that it wants to send."""

    def put_frame(self, parts: list[Bytes], room: int) -> int:
        """Append a frame of at most `room` payload bytes; return the bytes appended."""


class Turns:
    """Streams that want to send and may."""

    def __init__(self) -> None:
        self._small: deque[Sender] = deque()
        self._bulk: deque[Sender] = deque()
        self._bulk_turn = False

    def __bool__(self) -> bool:
        return bool(self._small or self._bulk)

    def add(self, sender: Sender) -> None:
        """Give it a place behind the others of its kind, unless it has one."""
        if not sender.queued:
            sender.queued = True
            (self._small if sender.pending <= SMALL_BYTES else self._bulk).append(sender)

    def fill(self, parts: list[Bytes], room: int) -> None:
        """Append frames of those whose turn it is, up to `room` bytes with their headers."""
        bulk_first = bool(self._bulk) and (self._bulk_turn or not self._small)
        self._bulk_turn = not bulk_first
        for queue in (self._bulk, self._small) if bulk_first else (self._small, self._bulk):
            while queue and room > HEADER_BYTES:
                sender = queue.popleft()
                sender.queued = False
                if sender.pending and sender.window:
                    room -= sender.put_frame(parts, room - HEADER_BYTES)
                    if sender.pending and sender.window:
                        self.add(sender)
