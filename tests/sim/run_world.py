"""Members of a run over memory roads: real gossip and a real directory, weights of ten numbers."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import trio

from potluck.crypto.keys import IdentityKey
from potluck.dht.memory import MemoryDirectory, MemoryShelf
from potluck.node.compute.average.flat import Flat
from potluck.node.compute.mixing import Mixer, Vector
from potluck.node.runs.company import Company
from potluck.node.runs.gossip import Gossip
from potluck.swarm.run.plan import Data, Exchanging, Plan, Terms, agree
from potluck.swarm.run.statement import Said

from .memory_host import MemoryHost, MemoryNet

FLAT = Flat(("a", "b"), ((2, 3), (4,)))
START = torch.zeros(FLAT.count)
TERMS = agree(Plan("tales", "demo", Data(("x.txt",))), b"m" * 32, (b"d" * 32,), b"s" * 32)


def terms_of(**said: Any) -> Terms:
    """exchange: 32 bits, the mean of three, no gate, unless said otherwise."""
    wanted: dict[str, Any] = {
        "aggregator": "mean", "asked": 3, "liars": 1, "bits": 32, "gate": 0.0, **said,
    }  # fmt: skip
    return replace(TERMS, exchange=Exchanging(**wanted))


@dataclass
class Peer:
    key: IdentityKey
    host: MemoryHost
    company: Company
    gossip: Gossip
    mixer: Mixer
    forks: list[str] = field(default_factory=list)
    kept: bool = True  # what a checkpoint says
    losses: dict[float, float] = field(default_factory=dict)  # of weights by their first number

    async def exchange(self, epoch: int, value: float) -> Vector:
        """With weights that are all this; where they end."""
        return (await self.gossip.exchange(epoch, torch.full((FLAT.count,), value), 100)).weights


@dataclass
class RunWorld:
    net: MemoryNet
    nursery: trio.Nursery
    shelf: MemoryShelf = field(default_factory=MemoryShelf)
    peers: list[Peer] = field(default_factory=list)

    async def add(self, terms: Terms | None = None, *, serves: bool = True) -> Peer:
        terms = terms or terms_of()
        key, dice = IdentityKey.generate(), random.Random(len(self.peers))
        host: Any = self.net.host(key.peer_id)
        directory = MemoryDirectory(key, self.shelf)
        company = Company(host, directory, terms, dice)
        asked = terms.exchange
        mixer = Mixer(
            FLAT, START, rule=asked.aggregator, asked=asked.asked, liars=asked.liars,
            bits=asked.bits,
        )  # fmt: skip

        async def keep() -> bool:
            await trio.lowlevel.checkpoint()
            return peer.kept

        async def loss_of(weights: Vector) -> float:
            await trio.lowlevel.checkpoint()
            return peer.losses.get(round(float(weights[0]), 3), 1.0)

        def on_fork(one: Said, other: Said) -> None:
            peer.forks.append(one.peer)

        gossip = Gossip(
            host, company, key, terms, mixer, keep=keep, loss_of=loss_of, on_fork=on_fork
        )
        peer = Peer(key, host, company, gossip, mixer)
        if serves:
            await self.nursery.start(gossip.run)
        await self.nursery.start(company.run)
        self.peers.append(peer)
        return peer

    async def together(self, epoch: int, values: list[float]) -> list[Vector]:
        """All exchange at once."""
        found: dict[int, Vector] = {}

        async def one(at: int) -> None:
            found[at] = await self.peers[at].exchange(epoch, values[at])

        async with trio.open_nursery() as nursery:
            for at in range(len(values)):
                nursery.start_soon(one, at)
        return [found[at] for at in range(len(values))]


@asynccontextmanager
async def run_world(count: int, terms: Terms | None = None) -> AsyncIterator[RunWorld]:
    """So many who know each other."""
    async with trio.open_nursery() as nursery:
        made = RunWorld(MemoryNet(nursery), nursery)
        for _ in range(count):
            await made.add(terms)
        for peer in made.peers:
            await peer.company.until(count - 1)
        yield made
        nursery.cancel_scope.cancel()
