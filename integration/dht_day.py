"""Twenty-four hours in ten minutes: peers come and go a hundred times as often as they do at home.

Two parts. A day under a virtual clock (dht_world.py): two peers that stay and some that live for
108 s in the mean (a hundredth of three hours), half of them killed and half leaving by withdrawing;
all announce, some read. And real hosts on loopback: one that stays, while others come, announce,
read and go. Whatever a departed peer leaves behind in those that stay is counted: tasks, streams,
links, records, marks, contacts, descriptors, memory.

    python -m integration.dht_day                          the bar: some ten minutes
    python -m integration.dht_day --hours 1 --visits 50
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from potluck.crypto.keys import IdentityKey, peer_id_of, public_of
from potluck.dht.kad import KadDirectory, open_directory
from potluck.dht.keyspace import peer_point
from potluck.dht.network import prefixes_of
from potluck.dht.record import TTL_MAX_S
from potluck.node.net.host import Host, HostConfig, open_host

from .dht_world import Peer, World, announcement, run

HOURS = 24.0
GUESTS = 8  # at any time; each announcement goes to all of them
LIFE_S = 108.0  # in the mean: a hundredth of three hours
LOOKS_S = 60.0  # between two reads
WARM_SHARE = 0.1  # of the time, after which growth counts
VISITS = 400  # of real hosts
AT_ONCE = 4
QUIET_S = 6.0  # until the last connection is known to be over


def measure(hours: float = HOURS, *, visits: int = VISITS, seed: int = 1) -> dict[str, Any]:
    """Both parts."""
    began_s = time.process_time()
    day = run(lambda world: _day(world, hours), seed=seed)
    day["processor_s"] = round(time.process_time() - began_s, 1)
    return {"virtual": day, "real": trio.run(_visits, visits)}


def _fill_caches() -> None:
    """Fill what is remembered of ids and networks up to its bounds, as weeks would: else six
    thousand guests fill it during the day, and growth that ends looks like a leak."""
    for _ in range(peer_point.cache_parameters()["maxsize"] or 0):
        public = os.urandom(32)
        peer = peer_id_of(public)
        public_of(peer)
        peer_point(peer)
        prefixes_of(f"/ip4/{'.'.join(map(str, os.urandom(4)))}/tcp/4001/p2p/{peer}")


async def _day(world: World, hours: float) -> dict[str, Any]:
    _fill_caches()
    first = await world.join()
    second = await world.join(first.road.addresses())
    stayers = (first, second)
    told = {"hours": hours, "visits": 0, "reads": 0, "found": 0}
    levels: list[dict[str, float]] = []
    async with trio.open_nursery() as nursery:
        for peer in stayers:
            await nursery.start(peer.directory.keep, lambda peer=peer: peer.said())
        for _ in range(GUESTS):
            nursery.start_soon(_guests, world, stayers, told)
        nursery.start_soon(_look, second, first, told)
        for share in (WARM_SHARE, 0.25, 0.5, 0.75, 1.0):
            await trio.sleep_until(share * hours * 3600)
            levels.append(_level(world, stayers))
        nursery.cancel_scope.cancel()
    await trio.sleep(2 * TTL_MAX_S + 60)  # everybody's last record, and every idle stream
    rest = _level(world, stayers)
    return told | {
        "blamed": sum(world.blamed.values()),
        "after_a_tenth": levels[0],
        "at_the_end": levels[-1],
        "memory_mib": [level["rss_mib"] for level in levels],
        "memory_growth": round(levels[-1]["rss_mib"] / levels[0]["rss_mib"] - 1, 4),
        "afterwards": rest,
    }


async def _guests(world: World, stayers: Sequence[Peer], told: dict[str, Any]) -> None:
    """One seat: somebody comes, stays a while, goes; then the next."""
    while True:
        life_s = world.dice.expovariate(1 / LIFE_S)
        by = world.dice.choice(stayers).road.addresses()
        with trio.move_on_after(life_s):
            async with world.open_peer(by) as guest, trio.open_nursery() as nursery:
                nursery.start_soon(_keep, guest)
                await trio.sleep(life_s * 0.98)
                nursery.cancel_scope.cancel()
                if world.dice.random() < 0.5:
                    await guest.directory.withdraw()
        told["visits"] += 1
        await trio.sleep(world.dice.uniform(0.1, 10))


async def _keep(peer: Peer) -> None:
    await peer.directory.keep(peer.said)


async def _look(reader: Peer, owner: Peer, told: dict[str, Any]) -> None:
    while True:
        await trio.sleep(LOOKS_S)
        found = await reader.directory.find(owner.model)
        told["reads"] += 1
        told["found"] += [one.peer for one in found] == [owner.key.peer_id]


def _level(world: World, stayers: Sequence[Peer]) -> dict[str, float]:
    """What is held now, by those that stay."""
    gc.collect()
    sizes = [_sizes(peer.directory) for peer in stayers]
    return {
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "streams": world.streams,
        **{name: sum(size[name] for size in sizes) for name in sizes[0]},
        "rss_mib": round(_rss_mib(), 1),
    }


def _sizes(directory: KadDirectory) -> dict[str, int]:
    neighbours = directory._neighbours
    return {
        "records": len(directory._shelf),
        "record_bytes": directory._shelf.bytes_held,
        "marks": len(directory._reader),
        "contacts": len(neighbours.table),
        "spares": sum(map(len, neighbours.table._spares.values())),
        "lost": len(neighbours._lost),
        "links": len(neighbours.calls._links),
        "answering": len(directory.answers._open),
        "allowances": len(directory.answers._allowances),
        "checked": len(directory._checker._good),
        "keepers": len(directory._keepers),
    }


# ---- real hosts


async def _visits(count: int) -> dict[str, Any]:
    began_s, cpu_s = time.monotonic(), time.process_time()
    async with (
        open_host(HostConfig(seed=IdentityKey.generate().seed())) as host,
        trio.open_nursery() as nursery,
    ):
        key = IdentityKey.from_bytes(host._config.seed)
        async with open_directory(host, key, boot=1) as directory:
            left = [0.2 * count, 0.8 * count]
            levels = []
            resting = trio.lowlevel.current_statistics().tasks_living
            for wave in left:
                limit = trio.CapacityLimiter(AT_ONCE)
                async with trio.open_nursery() as visiting:
                    for _ in range(max(1, round(wave))):
                        await limit.acquire_on_behalf_of(visit := object())
                        visiting.start_soon(_visit, host, limit, visit)
                await _until_quiet(host, resting)
                levels.append(_real_level(host, directory))
            nursery.cancel_scope.cancel()
    return {
        "visits": count,
        "after_a_fifth": levels[0],
        "at_the_end": levels[1],
        "memory_growth": round(levels[1]["rss_mib"] / levels[0]["rss_mib"] - 1, 4),
        "seconds": round(time.monotonic() - began_s, 1),
        "processor_s": round(time.process_time() - cpu_s, 1),
    }


async def _visit(host: Host, limit: trio.CapacityLimiter, visit: object) -> None:
    """A host that comes, announces, reads, and goes without a word."""
    try:
        key = IdentityKey.generate()
        async with (
            open_host(HostConfig(seed=key.seed())) as guest,
            open_directory(guest, key, boot=1, bootstrap=host.addresses()) as directory,
        ):
            model = os.urandom(32).hex()
            assert await directory.announce(announcement(guest, model, 1)) >= 1
            assert len(await directory.find(model)) == 1
    finally:
        limit.release_on_behalf_of(visit)


async def _until_quiet(host: Host, resting: int) -> None:
    """Every guest's connection is over, and no more tasks live than before the first guest; the
    deadline is an answer too: what is left is counted."""

    def busy() -> bool:
        living = trio.lowlevel.current_statistics().tasks_living
        return bool(host.connected()) or host.streams > 0 or living > resting

    with trio.move_on_after(QUIET_S):
        while busy():  # noqa: ASYNC110  nothing tells of the last one
            await trio.sleep(0.05)


def _real_level(host: Host, directory: KadDirectory) -> dict[str, float]:
    gc.collect()
    return {
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "connections": len(host.connected()),
        "streams": host.streams,
        **_sizes(directory),
        "rss_mib": round(_rss_mib(), 1),
    }


def _rss_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=HOURS)
    parser.add_argument("--visits", type=int, default=VISITS)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.hours, visits=asked.visits), indent=2))


if __name__ == "__main__":
    main()
