"""A process that fetches chunks from peers, to be killed at any moment.

python integration/chunk_fetcher.py FOLDER SIZE DIGESTS ADDRESS...     digests by commas
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from potluck.node.chunks.fetch import Fetcher
from potluck.node.chunks.store import ChunkStore
from potluck.node.net.host import HostConfig, open_host
from potluck.swarm.chunk import Chunk


async def main(folder: str, size: str, digests: str, *addresses: str) -> None:
    wanted = [Chunk(bytes.fromhex(one), int(size)) for one in digests.split(",")]
    async with open_host(HostConfig(seed=b"fetcher " * 4)) as host:
        store = ChunkStore(Path(folder), 1 << 30)
        fetcher = Fetcher(host, store, host.blame, salt=b"x")
        peers = [await host.connect([address]) for address in addresses]
        await fetcher.fetch(wanted, {peer: [one.digest for one in wanted] for peer in peers})
        print(fetcher.received_bytes, flush=True)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
