"""What has arrived on a stream and is not read yet, at the cost of its weight. Nothing here waits.

Payloads are views into decrypted noise messages, so taking one up copies nothing. But a view keeps
its whole message alive, and an object costs a hundred bytes however short it is: so what is a small
part of its message is copied out, and what is short is joined to what is there.
"""

from collections import deque

Bytes = bytes | bytearray | memoryview

JOIN_BELOW_BYTES = 4 * 1024
JOINED_BYTES_MAX = 64 * 1024


class Inbox:
    """Pieces of bytes, in order."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: deque[Bytes] = deque()

    def put(self, payload: memoryview) -> None:
        """Add what has come."""
        size = len(payload)
        self.size += size
        pieces = self._pieces
        if size >= JOIN_BELOW_BYTES or not pieces:
            pieces.append(payload if 2 * size >= len(memoryview(payload.obj)) else bytes(payload))
        elif type(last := pieces[-1]) is bytearray and len(last) < JOINED_BYTES_MAX:
            last += payload
        else:
            pieces.append(bytearray(payload))

    def put_back(self, rest: Bytes) -> None:
        """Give back the end of what was taken last."""
        self.size += len(rest)
        self._pieces.appendleft(rest)

    def take(self, max_bytes: int) -> Bytes:
        """The next 1 to `max_bytes` bytes; only if there are any."""
        piece = self._pieces.popleft()
        if len(piece) > max_bytes:
            view = memoryview(piece)
            self._pieces.appendleft(view[max_bytes:])
            piece = view[:max_bytes]
        self.size -= len(piece)
        return piece

    def clear(self) -> int:
        """Drop everything; return how much it was."""
        size, self.size = self.size, 0
        self._pieces.clear()
        return size
