"""A host and a directory that say what they are told to say: for the router."""

from __future__ import annotations

import random

import trio

from potluck.dht.network import NOWHERE, Prefixes
from potluck.dht.record import Announcement
from potluck.errors import TransportError
from potluck.node.letters import LENGTH_BYTES
from potluck.node.queues import QUEUE_BYTES
from potluck.node.router import Router

PEER = "12D3KooWMhw8hzWY5GXwZviQPA9K6zwkQQSoLxUwhbjnMVpCEPaL"
RELAY = "12D3KooWMbbPVGsZYh3ChQjue712NHHGNybRRXwnuSpezYjGbCDS"
DIRECT = f"/ip4/11.0.9.2/tcp/4001/p2p/{PEER}"
NEAR = f"/ip4/192.168.1.5/tcp/4001/p2p/{PEER}"
CIRCUIT = f"/ip4/11.0.1.1/tcp/4001/p2p/{RELAY}/p2p-circuit/p2p/{PEER}"


def announced(peer: str, *addresses: str) -> Announcement:
    return Announcement(
        model="0" * 64, name="m", start=0, stop=4, blocks=4, state="online", device="cpu",
        dtype="float32", quantization="none", decode_tokens_s=100.0, prefill_tokens_s=200.0,
        addresses=addresses, cache_tokens_free=10**6, context_tokens_max=64, version="0",
        numerics="cpu fp32", peer=peer,
    )  # fmt: skip


class Told:
    """A stream on which somebody tells that nobody waits."""

    def __init__(self) -> None:
        self._said = QUEUE_BYTES.to_bytes(LENGTH_BYTES) + bytes(QUEUE_BYTES)

    async def receive(self, max_bytes: int) -> bytes:
        said, self._said = self._said[:max_bytes], self._said[max_bytes:]
        return said

    async def close(self) -> None: ...


class Network:
    """A host and a directory. relays: of each peer that is connected; None: directly."""

    peer_id = "me"

    def __init__(self, *told: Announcement) -> None:
        self.told = told
        self.relays: dict[str, str | None] = {}
        self.stands: dict[str, Prefixes] = {}  # as connections show it
        self.barred: set[str] = set()
        self.alive: set[str] = set()  # who tells its queue
        self.reading_s: list[float] = []  # how long the next reads take

    async def find(self, model: str) -> tuple[Announcement, ...]:
        found = self.told
        if self.reading_s:
            await trio.sleep(self.reading_s.pop(0))
        return found

    def learn(self, peer: str, addresses: tuple[str, ...]) -> None: ...

    def where(self, peer: str) -> Prefixes:
        return self.stands.get(peer, NOWHERE)

    def welcomes(self, peer: str) -> bool:
        return peer not in self.barred

    async def open_stream(self, peer: str, protocol: str) -> Told:
        if peer not in self.alive:
            raise TransportError("nobody tells his queue here")
        return Told()

    def rtt_s(self, peer: str) -> float | None:
        return 0.01 if peer in self.relays else None

    def relay_of(self, peer: str) -> str | None:
        return self.relays.get(peer)


def router(network: Network, seed: int = 1) -> Router:
    return Router(network, network, random.Random(seed))  # type: ignore[arg-type]
