"""A swarm of servers and sessions over memory roads, under a virtual clock.

A session is real from the driver (node/session.py) to the server (node/server.py); what is
pretended is the road between them, the device, and the directory's network.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import trio

from potluck.crypto.keys import IdentityKey
from potluck.dht.memory import MemoryDirectory, MemoryShelf
from potluck.dht.record import Announcement
from potluck.node.adapters import Shelf
from potluck.node.compute.prefix_cache import PrefixCache
from potluck.node.frames import FrameStream
from potluck.node.leading import Chains
from potluck.node.queues import tell_queue
from potluck.node.router import Router
from potluck.node.server import Server
from potluck.node.session import LiveSession, SessionPlan, open_session
from potluck.node.wardrobe import Wardrobe
from potluck.swarm.adapter import Bundle
from potluck.swarm.admission import Admission, AdmissionConfig
from potluck.swarm.blocks import BlockRange
from potluck.swarm.ledger import Work
from potluck.swarm.wire import (
    CHAIN_PROTOCOL,
    CODED_PROTOCOL,
    EARLY_CHAIN_PROTOCOL,
    PROTOCOL,
    REMEMBERING_PROTOCOL,
    WEARING_PROTOCOL,
    Message,
    Open,
    Opened,
)

from .adding_engine import WIDTH, AddingEngine, InstantDevice
from .memory_host import MemoryHost, MemoryNet

MODEL = "ab" * 32
BLOCKS = 6
ROW_BYTES = WIDTH * 4


@dataclass
class Node:
    key: IdentityKey
    host: MemoryHost
    server: Server
    engine: AddingEngine
    admission: Admission
    device: InstantDevice
    wardrobe: Wardrobe


def client_of(net: MemoryNet, shelf: MemoryShelf) -> tuple[MemoryHost, Router]:
    """A new peer that only asks."""
    key = IdentityKey.generate()
    host = net.host(key.peer_id, key)
    directory = MemoryDirectory(key, shelf)
    return host, Router(host, directory, random.Random(1))  # type: ignore[arg-type]


@dataclass
class World:
    """A swarm in memory. `add` starts a server; `client` is a router to use it with."""

    net: MemoryNet
    shelf: MemoryShelf = field(default_factory=MemoryShelf)
    nodes: list[Node] = field(default_factory=list)

    async def add(
        self,
        start: int,
        stop: int,
        *,
        cache_tokens: int = 10_000,
        numerics: str = "adding",
        step_s: float = 0.001,
        shelf: Shelf | None = None,
        engine: Any = None,
        prefixes: PrefixCache | None = None,
        chains: bool = True,
        early: bool = True,
    ) -> Node:
        """engine: by default one that adds. prefixes: without, the node is of an older kind.
        chains: or it is one of those that know of none. early: or of those that are told of a
        chain one after the other."""
        key = IdentityKey.generate()
        host = self.net.host(key.peer_id)
        engine = engine or AddingEngine(BlockRange(start, stop), numerics)
        device = InstantDevice(engine, step_s)
        admission = Admission(AdmissionConfig(cache_tokens))
        wardrobe = Wardrobe(engine, admission, MODEL, token_bytes=ROW_BYTES, shelf=shelf)
        linked = Chains(host, key) if chains else None  # type: ignore[arg-type]
        server = Server(engine, device, admission, MODEL, key, wardrobe, prefixes, linked)
        if linked is not None:
            for protocol in (CHAIN_PROTOCOL, EARLY_CHAIN_PROTOCOL)[: 1 + early]:
                host.handle(protocol, linked.serve)
        for protocol in (PROTOCOL, WEARING_PROTOCOL, CODED_PROTOCOL):
            host.handle(protocol, server.serve)
        if prefixes is not None:
            host.handle(REMEMBERING_PROTOCOL, server.serve)
        tell_queue(host, MODEL, lambda: server.rows * step_s)  # type: ignore[arg-type]
        await MemoryDirectory(key, self.shelf).announce(announcement(start, stop, host, numerics))
        self.nodes.append(Node(key, host, server, engine, admission, device, wardrobe))
        return self.nodes[-1]

    def client(self) -> tuple[MemoryHost, Router]:
        return client_of(self.net, self.shelf)

    def serving(self, start: int) -> Node:
        """The node that serves the live session's hop that begins at this block."""
        return next(
            node
            for node in self.nodes
            if node.server.sessions and not node.host.dead and node.engine.blocks.start == start
        )


def announcement(start: int, stop: int, host: MemoryHost, numerics: str = "adding") -> Announcement:
    return Announcement(
        model=MODEL,
        name="adding",
        start=start,
        stop=stop,
        blocks=BLOCKS,
        state="online",
        device="cpu",
        dtype="float32",
        quantization="none",
        decode_tokens_s=1000.0,
        prefill_tokens_s=1000.0,
        addresses=host.addresses(),
        cache_tokens_free=10_000,
        context_tokens_max=4096,
        numerics=numerics,
        version="0",
    )


@asynccontextmanager
async def world(*spans: tuple[int, int]) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        made = World(MemoryNet(nursery))
        for start, stop in spans:
            await made.add(start, stop)
        yield made
        nursery.cancel_scope.cancel()


def plan(
    tokens: int = 64,
    wait_s: float = 0.0,
    receipts: bool = False,
    adapter: Bundle | None = None,
    chain: bool = False,
) -> SessionPlan:
    return SessionPlan(
        MODEL, "adding", BLOCKS, WIDTH, tokens, wait_s=wait_s, receipts=receipts, adapter=adapter,
        chain=chain,
    )  # fmt: skip


def rows(number: int, tokens: int = 1) -> bytes:
    return np.full((tokens, WIDTH), number, "<f4").tobytes()


THREE_STAGES = ((0, 2), (2, 4), (4, 6), (0, 2), (2, 4), (4, 6))


@asynccontextmanager
async def begun(
    made: World,
    tokens: int = 64,
    wait_s: float = 0.0,
    *,
    receipts: bool = False,
    works: Callable[[Work], None] | None = None,
    adapter: Bundle | None = None,
    chain: bool = False,
) -> AsyncIterator[tuple[LiveSession, Router]]:
    """A session of a new client, and the client's router. works: takes what was signed for."""
    host, router = made.client()
    asked = plan(tokens, wait_s, receipts, adapter, chain)
    async with open_session(host, router, asked, works) as session:  # type: ignore[arg-type]
        yield session, router


@asynccontextmanager
async def prompted(made: World, wait_s: float = 0.0) -> AsyncIterator[tuple[LiveSession, Router]]:
    """The same once its prompt was answered."""
    async with begun(made, wait_s=wait_s) as (session, router):
        await prompt(session)
        yield session, router


async def prompt(session: LiveSession) -> bytes:
    """Feed a prompt in two chunks; what comes of it."""
    session.feed(rows(100, 5), 5, 0)
    session.feed(rows(200, 3), 3, 1)
    await session.output()
    return bytes(await session.output())


async def step(session: LiveSession, number: int) -> bytes:
    """Feed one row; what comes of it."""
    session.feed(rows(number), 1, 1)
    return bytes(await session.output())


async def talk(
    made: World,
    kill_at: dict[int, list[int]],
    adapter: Bundle | None = None,
    *,
    chain: bool = False,
) -> list[bytes]:
    """A prompt in two chunks and eight steps. kill_at: before which step to kill which stages."""
    async with begun(made, adapter=adapter, chain=chain) as (session, _):
        out = [await prompt(session)]
        for number in range(8):
            for start in kill_at.get(number, []):
                await made.serving(start).host.die()
            out.append(await step(session, number))
    return out


async def undisturbed() -> list[bytes]:
    async with world(*THREE_STAGES) as made:
        return await talk(made, {})


# ---- a client of its own make


async def dial(made: World) -> FrameStream:
    host, _ = made.client()
    return FrameStream(await host.open_stream(made.nodes[0].host.peer_id, PROTOCOL))


def opening(**changes: object) -> Open:
    asked = {
        "session": bytes(16),
        "model": MODEL,
        "start": 0,
        "stop": 6,
        "tokens": 32,
        "dtype": "f32",
    }
    return Open(**(asked | changes))  # type: ignore[arg-type]


async def admitted(made: World) -> FrameStream:
    """A stream on which a session is open."""
    frames = await dial(made)
    await frames.send(opening())
    assert isinstance(await heard(frames), Opened)
    return frames


async def heard(frames: FrameStream) -> Message | None:
    """The next message; None at the end."""
    received = await frames.receive()
    return None if received is None else received[0]
