"""Peers that give chunks over memory roads, honestly or not, and one that fetches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from sim.memory_host import MemoryNet, MemoryStream

from potluck.crypto.codec import decode
from potluck.errors import RemoteError
from potluck.node.chunks.fetch import Fetcher
from potluck.node.chunks.serve import ChunkServer
from potluck.node.chunks.store import ChunkStore
from potluck.node.letters import receive_letter
from potluck.swarm.chunk import LETTER_BYTES_MAX, PROTOCOL, Chunk, Want, digest_of

RAWS = [bytes((number,)) * (900 + number) for number in range(40)]
WANTED = [Chunk(digest_of(raw), len(raw)) for raw in RAWS]
NAMES = [one.digest for one in WANTED]
RAW_OF = dict(zip(NAMES, RAWS, strict=True))


class Memory(dict[bytes, bytes]):
    """A library. asked: what it was asked for, in order."""

    def __init__(self, has: Sequence[bytes], asked: list[bytes]) -> None:
        super().__init__({name: RAW_OF[name] for name in has})
        self._asked = asked

    def get(self, name: bytes) -> bytes | None:  # type: ignore[override]
        self._asked.append(name)
        return super().get(name)


Answer = Callable[[MemoryStream, Want], Awaitable[None]]


@dataclass
class World:
    net: MemoryNet
    nursery: trio.Nursery
    folder: Path
    blamed: list[tuple[str, str]] = field(default_factory=list)
    asked: dict[str, list[bytes]] = field(default_factory=dict)

    def serve(self, peer: str, has: Sequence[bytes] = NAMES, **how: Any) -> ChunkServer:
        """A peer that has these chunks, and counts what it is asked for."""
        server = ChunkServer(Memory(has, self.asked.setdefault(peer, [])), **how)
        self.net.host(peer).handle(PROTOCOL, server.serve)  # type: ignore[arg-type]
        return server

    def answer(self, peer: str, answer: Answer) -> None:
        """A peer that says what it likes."""
        seen = self.asked.setdefault(peer, [])

        async def serve(stream: MemoryStream) -> None:
            raw = await receive_letter(stream, LETTER_BYTES_MAX)
            assert raw is not None
            want = decode(raw, Want)
            seen.extend(want.chunks)
            await answer(stream, want)
            await stream.close()

        self.net.host(peer).handle(PROTOCOL, serve)

    def fetcher(self, store: ChunkStore | None = None) -> Fetcher:
        store = store or ChunkStore(self.folder, 1 << 30)
        return Fetcher(self.net.host("me"), store, self._blame, salt=b"me")

    def _blame(self, peer: str, error: RemoteError) -> None:
        self.blamed.append((peer, str(error)))


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield World(MemoryNet(nursery), nursery, folder)
        nursery.cancel_scope.cancel()


def all_of(*peers: str) -> dict[str, list[bytes]]:
    return {peer: NAMES for peer in peers}


def whole(folder: Path) -> bool:
    store = ChunkStore(folder, 1 << 30)
    return all(store.get(name) == raw for name, raw in RAW_OF.items())
