"""Chunks in memory, as store.py has them on disk: for what is fetched, read once and let go."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...swarm.chunk import Chunk, check


class MemoryChunks:
    """Of one fetch. Usable from several threads at once. bytes_max: of all chunks together."""

    folder = Path("memory")  # for whoever is told that there is no room

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._held: dict[bytes, bytes] = {}

    def lacks(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Those that are not here, each once."""
        return [one for one in dict.fromkeys(chunks) if one.digest not in self._held]

    def put(self, chunk: Chunk, raw: bytes | bytearray | memoryview) -> None:
        """Keep it. Raises RemoteError unless these are its bytes."""
        check(chunk, raw)
        self._held[chunk.digest] = bytes(raw)

    def get(self, name: bytes) -> bytes | None:
        """Its bytes; None when it is not here."""
        return self._held.get(name)

    def used_bytes(self) -> int:
        """Of all chunks that are here."""
        return sum(map(len, list(self._held.values())))
