"""Many hosts in one process, for `bench_dht`: each with an identity, a listener and a directory.

    python -m potluck.node.bench.hosts COUNT [MULTIADDR ...]

A line of JSON in, a line of JSON out, one at a time; the first line out says where the first host
is. It ends when its stdin does.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import psutil
import trio

from ...crypto.keys import IdentityKey
from ...dht.kad import KadDirectory, open_directory
from ...dht.record import Announcement
from ..net.host import Host, HostConfig, open_host

LINE_BYTES_MAX = 1 << 20


@dataclass(slots=True)
class _Seat:
    host: Host
    directory: KadDirectory
    version: int = 0  # told in the record, so that a reader proves that it read the newest

    def announcement(self) -> Announcement:
        return Announcement(
            model=model_of(self.host.peer_id), name="bench", start=0, stop=1, blocks=1,
            state="online", device="none", dtype="none", quantization="none",
            decode_tokens_s=1.0, prefill_tokens_s=1.0, addresses=self.host.addresses(),
            cache_tokens_free=self.version, context_tokens_max=1, numerics="none", version="0",
        )  # fmt: skip


def model_of(peer: str) -> str:
    """A model of this peer's own, so that each record stands at a place of its own."""
    return sha256(peer.encode()).hexdigest()


async def run(count: int, join: list[str]) -> None:
    async with AsyncExitStack() as stack:
        keeping = await stack.enter_async_context(trio.open_nursery())
        seats = []
        for _ in range(count):
            key = IdentityKey.generate()
            host = await stack.enter_async_context(open_host(HostConfig(seed=key.seed())))
            opened = open_directory(host, key, boot=int(time.time()), bootstrap=join)
            seats.append(_Seat(host, await stack.enter_async_context(opened)))
            join = join or list(host.addresses())
        gc.freeze()
        _say({"peers": [seat.host.peer_id for seat in seats], "addresses": join})
        orders = trio.lowlevel.FdStream(sys.stdin.fileno())
        waiting = bytearray()
        while piece := await orders.receive_some(LINE_BYTES_MAX):
            waiting += piece
            while (end := waiting.find(b"\n")) >= 0:
                order = json.loads(waiting[:end])
                del waiting[: end + 1]
                _say(await _obey(order, seats, keeping))
        keeping.cancel_scope.cancel()


async def _obey(order: dict[str, Any], seats: list[_Seat], keeping: trio.Nursery) -> dict[str, Any]:
    seat = seats[order.get("host", 0)]
    began_s = time.perf_counter()
    match order["do"]:
        case "put":
            seat.version += 1
            kept = await seat.directory.announce(seat.announcement())
            return {"s": time.perf_counter() - began_s, "kept": kept, "version": seat.version}
        case "find":
            found = await seat.directory.find(order["model"])
            spent_s = time.perf_counter() - began_s
            return {"s": spent_s, "found": [[one.peer, one.cache_tokens_free] for one in found]}
        case "keep":
            for one in seats:
                keeping.start_soon(one.directory.keep, one.announcement)
    return {
        "cpu_s": time.process_time(),
        "connections": sum(len(one.host.connected()) for one in seats),
        "streams": sum(one.host.streams for one in seats),
        "known": sum(len(one.directory.peers()) for one in seats),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "rss_mib": psutil.Process().memory_info().rss / 2**20,
    }


def _say(told: dict[str, Any]) -> None:
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    trio.run(run, int(sys.argv[1]), sys.argv[2:])
