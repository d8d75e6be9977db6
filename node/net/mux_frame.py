"""Yamux on the wire: twelve bytes of header, then a payload if it is data.

Source: github.com/hashicorp/yamux/blob/master/spec.md, and libp2p's notes on it
(github.com/libp2p/specs/blob/master/yamux). Nothing here waits.

    version 1 B │ type 1 B │ flags 2 B │ stream id 4 B │ length 4 B
    data: length bytes follow;  window: so many more may be sent;  ping: a number;  go away: why
"""

import struct
from dataclasses import dataclass

from ...errors import RemoteError

DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
KEPT_FOR_THE_LAST_PART = FIN | RST

HEADER = struct.Struct(">BBHII")
HEADER_BYTES = HEADER.size
# A whole frame fits one noise message (65,535 bytes with its 16-byte tag), so none is cut in two.
PAYLOAD_BYTES_MAX = 65_535 - 16 - HEADER_BYTES
FIRST_WINDOW_BYTES = 256 * 1024  # the specification's window of a new stream
# go-yamux and js send at most 64 KiB a frame; 16 MiB is the largest window any of them grants.
ACCEPTED_PAYLOAD_BYTES_MAX = 16 * 1024 * 1024

GOOD_BYE, PROTOCOL_FAULT, INTERNAL_FAULT = range(3)  # why one goes away


def header(kind: int, flags: int, stream_id: int, value: int) -> bytes:
    """The twelve bytes; `value` is the payload's length, the window's growth, or a number."""
    return HEADER.pack(0, kind, flags, stream_id, value)


@dataclass(slots=True)
class Frame:
    """One frame, or one part of a long one (then SYN and ACK lead, FIN and RST end it)."""

    kind: int
    flags: int
    stream_id: int
    value: int  # of DATA: the bytes in `payload`
    payload: memoryview | None = None


class FrameReader:
    """Cuts the bytes of one connection into frames, however they were cut on the way."""

    def __init__(self) -> None:
        self._head = b""  # of a header that has not come whole
        self._stream_id = 0  # whose payload is still coming
        self._left = 0  # bytes of it still to come
        self._last_flags = 0  # flags for its last part

    def feed(self, piece: bytes) -> list[Frame]:
        """Take the next bytes, give the frames that they complete. Raises RemoteError."""
        if self._head:
            piece = self._head + piece
            self._head = b""
        frames: list[Frame] = []
        view = memoryview(piece)
        at, end = 0, len(piece)
        while at < end:
            if self._left:
                taken = min(self._left, end - at)
                self._left -= taken
                flags = 0 if self._left else self._last_flags
                frames.append(Frame(DATA, flags, self._stream_id, taken, view[at : at + taken]))
                at += taken
                continue
            if end - at < HEADER_BYTES:
                self._head = piece[at:]
                break
            version, kind, flags, stream_id, value = HEADER.unpack_from(piece, at)
            if version != 0 or kind > GO_AWAY:
                raise RemoteError(f"no yamux frame: version {version}, type {kind}")
            at += HEADER_BYTES
            if kind != DATA or value == 0:
                frames.append(Frame(kind, flags, stream_id, value))
                continue
            if value > ACCEPTED_PAYLOAD_BYTES_MAX:
                raise RemoteError(f"a yamux frame announces {value} bytes")
            if value <= end - at:
                frames.append(Frame(DATA, flags, stream_id, value, view[at : at + value]))
                at += value
                continue
            self._stream_id, self._left = stream_id, value
            self._last_flags = flags & KEPT_FOR_THE_LAST_PART
            frames.append(Frame(DATA, flags & ~KEPT_FOR_THE_LAST_PART, stream_id, 0))
        return frames
