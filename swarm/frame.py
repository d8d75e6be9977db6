"""Bytes to frames and back: a fixed prefix, a small header, then the raw payload.

    0      1      2            4                    8
    ├──────┼──────┼────────────┼────────────────────┼─ header ─┼─ payload ─┤
      tag    zero   header len       payload len       msgpack    raw bytes

All numbers are big-endian. The header is the message (wire.py) by the one codec; the payload is
hidden states as they lie in memory, which never pass through MessagePack. Lengths are checked
against the limits before a byte of the body is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final

from ..crypto.codec import decode, encode
from ..errors import RemoteError
from .wire import TAG_OF, TAGS, Message

Bytes = bytes | bytearray | memoryview

PREFIX: Final = Struct(">BBHI")
HEADER_BYTES_MAX: Final = 16 * 1024  # a step that replays 4,096 one-token steps has 12 KiB
PAYLOAD_BYTES_MAX: Final = 32 * 1024 * 1024  # 512 tokens of a 16,384-wide model in fp32


def pack_frame(message: Message, payload_bytes: int = 0) -> bytes:
    """The prefix and header of a frame whose payload, sent right after, has this many bytes."""
    header = encode(message)
    if len(header) > HEADER_BYTES_MAX or payload_bytes > PAYLOAD_BYTES_MAX:
        raise ValueError(f"a frame of {len(header)} + {payload_bytes} bytes is above the limits")
    return PREFIX.pack(TAG_OF[type(message)], 0, len(header), payload_bytes) + header


class FrameReader:
    """Feed it what a stream gives, in any pieces; it gives back whole frames.

    It holds at most one unfinished frame and what one `feed` brought. Raises RemoteError, after
    which the stream is not to be read on.
    """

    __slots__ = ("_chunks", "_held", "_wanted", "payload_bytes_max")

    def __init__(self, payload_bytes_max: int = PAYLOAD_BYTES_MAX) -> None:
        self._chunks: list[Bytes] = []
        self._held = 0
        self._wanted = PREFIX.size
        self.payload_bytes_max = payload_bytes_max

    @property
    def unfinished(self) -> bool:
        """True inside a frame: an end of stream here is a broken one."""
        return self._held > 0

    def feed(self, data: Bytes) -> Iterator[tuple[Message, memoryview]]:
        """The frames that `data` completes, each with its payload (a view, valid for good)."""
        self._chunks.append(data)
        self._held += len(data)
        while self._held >= self._wanted:
            whole = self._joined()
            tag, zero, header_bytes, payload_bytes = PREFIX.unpack_from(whole)
            self._check(tag, zero, header_bytes, payload_bytes)
            end = PREFIX.size + header_bytes + payload_bytes
            if self._held < end:
                self._wanted = end
                return
            split = PREFIX.size + header_bytes
            message = decode(bytes(whole[PREFIX.size : split]), TAGS[tag])
            rest = whole[end:]
            self._chunks = [rest] if len(rest) else []
            self._held = len(rest)
            self._wanted = PREFIX.size
            yield message, whole[split:end]

    def _joined(self) -> memoryview:
        if len(self._chunks) > 1:
            self._chunks = [b"".join(self._chunks)]
        return memoryview(self._chunks[0])

    def _check(self, tag: int, zero: int, header_bytes: int, payload_bytes: int) -> None:
        if tag not in TAGS or zero:
            raise RemoteError(f"unknown message {tag}")
        if header_bytes > HEADER_BYTES_MAX or payload_bytes > self.payload_bytes_max:
            raise RemoteError(f"a frame of {header_bytes} + {payload_bytes} bytes is too large")
