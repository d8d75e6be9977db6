"""Chunks over real streams, from several peers, by a process that is killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import trio

from potluck.node.chunks.serve import ChunkServer
from potluck.node.chunks.store import ChunkStore
from potluck.node.chunks.uplink import Uplink
from potluck.node.net.host import HostConfig, open_host
from potluck.swarm.chunk import PROTOCOL, Chunk, digest_of

from .waiting import comes_true

SIZE, COUNT = 256 * 1024, 48
BYTES_S = 2 * 1024 * 1024  # of each of the three that give


class Giving:
    """A library that remembers what it was asked for; or that gives other bytes."""

    def __init__(self, store: ChunkStore | None) -> None:
        self._store = store
        self.asked: set[str] = set()

    def get(self, name: bytes) -> bytes | None:
        self.asked.add(name.hex())
        return bytes(SIZE) if self._store is None else self._store.get(name)


def start(folder: Path, wanted: list[Chunk], addresses: list[str]) -> subprocess.Popen[str]:
    digests = ",".join(one.digest.hex() for one in wanted)
    command = [sys.executable, "-P", str(Path(__file__).with_name("chunk_fetcher.py"))]
    command += [str(folder), str(SIZE), digests, *addresses]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def test_kill_9_in_the_middle_costs_no_chunk_that_was_checked(tmp_path: Path) -> None:
    """Three peers give, of which each has half a dozen on its way at most, and one gives poison."""
    raws = [os.urandom(SIZE) for _ in range(COUNT)]
    wanted = [Chunk(digest_of(raw), SIZE) for raw in raws]
    here = ChunkStore(tmp_path / "here", 1 << 30)
    for chunk, raw in zip(wanted, raws, strict=True):
        here.put(chunk, raw)
    there = tmp_path / "there"
    async with AsyncExitStack() as stack:
        addresses, libraries = [], []
        for number in range(4):
            config = HostConfig(seed=bytes((number + 1,)) * 32)
            host = await stack.enter_async_context(open_host(config))
            libraries.append(Giving(None if number == 3 else here))
            host.handle(PROTOCOL, ChunkServer(libraries[-1], Uplink(BYTES_S)).serve)
            addresses.append(next(one for one in host.addresses() if "127.0.0.1" in one))

        def kept() -> set[str]:
            return {path.name for path in there.glob("??/*") if not path.name.startswith(".")}

        first = start(there, wanted, addresses)
        await comes_true(lambda: len(kept()) >= COUNT // 3)
        first.send_signal(signal.SIGKILL)
        await trio.to_thread.run_sync(first.wait)
        assert first.stdout is not None
        first.stdout.close()
        before = kept()
        assert COUNT // 3 <= len(before) < COUNT
        for library in libraries:
            library.asked.clear()

        second = start(there, wanted, addresses)
        await trio.to_thread.run_sync(partial(second.communicate, timeout=60))
        assert second.returncode == 0
        assert all(library.asked for library in libraries[:3]), "from several at once"
        assert not before & {name for one in libraries[:3] for name in one.asked}
        assert len(libraries[3].asked) <= 1, "who lies is asked once"
    store = ChunkStore(there, 1 << 30)
    assert all(store.get(c.digest) == raw for c, raw in zip(wanted, raws, strict=True))
