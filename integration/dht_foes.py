"""A small swarm of real hosts on loopback, a third of them hostile: what dht_hostile simulates.

Each hostile host speaks `/potluck/kad/2` and serves what `Foe` of dht_hostile serves, over real
connections. All are in one process; the honest ones put, and read what each other put.

    python -m integration.dht_foes
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import trio

from potluck.crypto.keys import IdentityKey
from potluck.dht.kad import KadDirectory, open_directory
from potluck.dht.keyspace import peer_point
from potluck.dht.message import PROTOCOL, Find, to_frame
from potluck.node.net.host import Host, HostConfig, open_host

from .dht_hostile import KINDS, Count, Foe, Gang
from .dht_world import Peer

HONEST, HOSTILE = 10, 5


@dataclass
class _Ground:
    """As much of a World as a Gang needs."""

    dice: random.Random
    peers: list[Peer]
    hosts: dict[str, Host]

    def road(self, peer: str) -> Host:
        return self.hosts[peer]


async def among_real_hosts(lookups: int, *, seed: int = 1) -> dict[str, Any]:
    """Everybody knows every hostile host; the right answers of so many look-ups."""
    ground = _Ground(random.Random(seed), [], {})
    gang: Gang = Gang(ground)  # type: ignore[arg-type]
    async with AsyncExitStack() as stack:
        for number in range(HOSTILE):
            key = IdentityKey.generate()
            config = HostConfig(seed=key.seed())
            ground.hosts[key.peer_id] = await stack.enter_async_context(open_host(config))
            gang.add(KINDS[number % len(KINDS)], key)
        join: Sequence[str] = ()
        for _ in range(HONEST):
            key = IdentityKey.generate()
            host = await stack.enter_async_context(open_host(HostConfig(seed=key.seed())))
            opened = open_directory(host, key, boot=1, bootstrap=join)
            directory: KadDirectory = await stack.enter_async_context(opened)
            model = ground.dice.randbytes(32).hex()
            ground.peers.append(Peer(key, host, model, directory))  # type: ignore[arg-type]
            join = join or host.addresses()
        for foe in gang.foes:
            for peer in ground.peers:
                await _greet(foe, ground.hosts[foe.key.peer_id], peer)
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for peer in ground.peers:
                    nursery.start_soon(peer.announce)
        count = Count(seconds=[])
        while count.lookups < lookups:
            owner, reader = ground.dice.sample(ground.peers, 2)
            await count.look(reader, owner)
    seconds = sorted(count.seconds or [])
    return {
        "honest": HONEST, "hostile": HOSTILE, "lookups": count.lookups,
        "right_share": count.right / count.lookups, "wrong": count.wrong,
        "questions_to_the_hostile": sum(gang.answers.values()),
        "ms_p50": round(1000 * seconds[len(seconds) // 2], 1),
    }  # fmt: skip


async def _greet(foe: Foe, host: Host, peer: Peer) -> None:
    """Be met: say a Hello to this peer, so that its table may hold us."""
    await host.connect(peer.road.addresses())
    stream = await host.open_stream(peer.key.peer_id, PROTOCOL)
    question = Find(1, peer_point(peer.key.peer_id), False, b"")
    await stream.send(to_frame(foe.hello()), to_frame(question))
    with trio.fail_after(5):
        await stream.receive()
    await stream.close()


def measure(lookups: int = 200) -> dict[str, Any]:
    """So many look-ups among real hosts."""
    return trio.run(among_real_hosts, lookups)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
