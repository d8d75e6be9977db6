"""Tables of pieces, asked of peers and told to them (swarm/weights.py says what they mean)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import trio

from ...crypto.codec import decode, encode
from ...crypto.keys import IdentityKey
from ...errors import RemoteError, TransportError
from ...swarm.weights import (
    ASK_BYTES_MAX,
    PROTOCOL,
    TABLE_BYTES_MAX,
    Ask,
    Table,
    read_table,
    sign_table,
)
from ..chunks.deadline import within
from ..chunks.fetch import Host
from ..chunks.uplink import Uplink
from ..letters import receive_letter, send_letter
from ..net.stream import Stream
from ..pieces import seconds_for

ASK_S: Final = 10.0  # guess: a dial across the world, beside what the table's bytes take
ASKED_MAX: Final = 8  # guess: at a time; each may be two megabytes


class TableServer:
    """`serve` is the handler of swarm/weights.py's protocol."""

    def __init__(
        self, key: IdentityKey, find: Callable[[bytes], Table | None], uplink: Uplink | None = None
    ) -> None:
        """find: what is here of the file with this sha256. Blocks."""
        self._key = key
        self._find = find
        self._uplink = uplink or Uplink()
        self._open: Counter[str] = Counter()

    async def serve(self, stream: Stream) -> None:
        """One question. Whoever asks while its last one is open, or beside too many others, is told
        that nothing is here. Raises RemoteError, TransportError."""
        peer = stream.peer
        with within(peer, ASK_S):
            raw = await receive_letter(stream, ASK_BYTES_MAX)
        if raw is None:
            raise TransportError(f"{peer} opened a stream and asked nothing")
        asked = decode(raw, Ask, max_bytes=ASK_BYTES_MAX)
        told = b""
        if self._open[peer] == 0 and self._open.total() < ASKED_MAX:
            self._open[peer] += 1
            try:
                told = await trio.to_thread.run_sync(self._told, asked.file)
                await self._uplink.turn(peer, len(told))
                with within(peer, ASK_S + seconds_for(len(told))):
                    await send_letter(stream, told)
            finally:
                del self._open[peer]
        else:
            with within(peer, ASK_S):
                await send_letter(stream, b"")
        await stream.close()

    def _told(self, file: bytes) -> bytes:
        table = self._find(file)
        return b"" if table is None else sign_table(self._key, table)


async def ask_table(host: Host, peer: str, file: bytes, size: int) -> tuple[Table, bytes] | None:
    """What a peer has of a file, and the same as it signed it; None: nothing. Raises RemoteError,
    TransportError, Refused."""
    stream: Stream | None = None
    finished = False
    try:
        with within(peer, ASK_S + seconds_for(size >> 15)):  # 32 bytes of a piece's 2^20
            stream = await host.open_stream(peer, PROTOCOL)
            await send_letter(stream, encode(Ask(file)))
            raw = await receive_letter(stream, TABLE_BYTES_MAX)
        finished = True
    finally:
        if stream is not None:
            with trio.CancelScope(shield=True):
                await (stream.close() if finished else stream.reset())
    if raw is None:
        raise TransportError(f"{peer} has left")
    if not raw:
        return None
    if len(raw) > (size >> 14) + 4096:
        raise RemoteError(f"a table of {len(raw)} bytes for a file of {size}")
    table = await trio.to_thread.run_sync(read_table, raw, peer, file, size)
    return table, raw
