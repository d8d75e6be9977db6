"""Homes over memory roads, each with its node's till and its clients: for tests of credit.

In real time, since the disk is another thread's; nothing here waits for a clock.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from sim.memory_host import MemoryHost, MemoryNet

from potluck.crypto.keys import IdentityKey
from potluck.node.credit import purse as purse_module
from potluck.node.credit import till as till_module
from potluck.node.credit.purse import Purse
from potluck.node.credit.tallies import Tallies, open_tallies
from potluck.node.credit.till import Metered, Till
from potluck.swarm.blocks import BlockRange
from potluck.swarm.tally import work_of
from potluck.swarm.wire import Step

WIDTH, BLOCKS = 1000, 4


class Host(MemoryHost):
    """As a client and a node see it."""

    def __init__(self, net: MemoryNet, peer_id: str) -> None:
        super().__init__(net, peer_id)
        self.best_of: Callable[[str], object] = lambda peer: None

    def connected(self) -> tuple[str, ...]:
        return tuple(self._net.hosts)

    def claims(self, peer: str) -> None:
        return None

    def best(self, peer: str) -> object:
        return self.best_of(peer)

    def unhandle(self, protocol: str) -> None:
        self.handlers.pop(protocol, None)


class Worker:
    """A device that takes no time. `asked`: what was posted."""

    waiting = 0

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    async def run(self, function, *args):  # type: ignore[no-untyped-def]
        await trio.lowlevel.checkpoint()
        return function(*args)

    def post(self, function, *args):  # type: ignore[no-untyped-def]
        self.asked.append(args)
        function(*args)

    async def step(self, cache, peer, payload, step, dtype, *, within_s):  # type: ignore[no-untyped-def]
        await trio.lowlevel.checkpoint()
        return memoryview(b""), 0.0


@dataclass
class Home:
    """A home with its node's till; `purse` opens one of its clients."""

    folder: Path
    net: MemoryNet
    key: IdentityKey
    worker: Worker = field(default_factory=Worker)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.host = Host(self.net, self.key.peer_id)
        self.net.hosts[self.key.peer_id] = self.host
        self.tallies = open_tallies(self.folder, self.key.peer_id)
        self.till = Till(self.host, self.key, self.tallies)  # type: ignore[arg-type]
        self.metered = Metered(self.till, self.worker, BlockRange(0, BLOCKS), WIDTH)  # type: ignore[arg-type]

    def start(self) -> None:
        self.net.nursery.start_soon(self.till.run)
        self.net.nursery.start_soon(self.till.attend, self.metered)

    def client(self) -> Client:
        key = IdentityKey.generate()
        host = Host(self.net, key.peer_id)
        self.net.hosts[key.peer_id] = host
        tallies = open_tallies(self.folder, self.key.peer_id)
        return Client(host, Purse(host, self.key, tallies, self.net.nursery), tallies)  # type: ignore[arg-type]

    def credit(self, other: Home) -> float:
        """What another may use here."""
        return self.till._credit.credit(other.key.peer_id, time.time())

    def sums(self, other: Home) -> tuple[float, float]:
        """(gave, took), as it has it on disk."""
        tally = self.tallies.pair(other.key.peer_id).tally
        return tally.gave(self.key.peer_id), tally.gave(other.key.peer_id)


@dataclass
class Client:
    host: Host
    purse: Purse
    tallies: Tallies

    async def take(self, giver: Home, tokens: int, *, told: int | None = None) -> float:
        """A step at a giver; told: of how many tokens the client knows."""
        cache = BlockRange(0, BLOCKS)
        me = self.host.peer_id
        step = Step(0, (tokens,), 1)
        await giver.metered.step(cache, me, memoryview(b""), step, "f32", within_s=1)
        told = tokens if told is None else told
        if told:
            self.purse.took(giver.key.peer_id, told, work_of(told, BLOCKS, WIDTH))
        return work_of(tokens, BLOCKS, WIDTH)


@dataclass
class World:
    folder: Path
    net: MemoryNet

    def home(self, name: str) -> Home:
        made = Home(self.folder / name, self.net, IdentityKey.generate())
        made.start()
        return made


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        net = MemoryNet(nursery)
        with trio.fail_after(60):
            yield World(folder, net)
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greet as often as one likes; see at once what another process signed; and wait long for what
    comes in the end, on however slow a machine."""
    monkeypatch.setattr(purse_module, "SETTLE_S", 30.0)
    monkeypatch.setattr(purse_module, "EXCHANGE_S", 30.0)
    monkeypatch.setattr(till_module, "EXCHANGE_S", 30.0)
    monkeypatch.setattr(till_module, "GREETINGS_SAVED", 1e9)
    monkeypatch.setattr(till_module, "TICK_S", 0.05)
    monkeypatch.setattr(till_module, "HURRY_S", 0.0)


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110  # the disk tells nobody
        await trio.sleep(0.01)
