"""Servers that are trained through, of a real small model, over memory roads."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from potluck.crypto.keys import IdentityKey
from potluck.dht.memory import MemoryDirectory, MemoryShelf
from potluck.dht.record import Announcement
from potluck.node.compute.checkpoint import Checkpoint
from potluck.node.compute.gradients import Gradients
from potluck.node.opening import serve_stream
from potluck.node.router import Router
from potluck.node.trainer import Trainer
from potluck.node.training import Training
from potluck.node.wardrobe import Wardrobe
from potluck.swarm.admission import Admission, AdmissionConfig
from potluck.swarm.blocks import BlockRange
from potluck.swarm.wire import TRAINING_PROTOCOL, Train

from .memory_host import MemoryHost, MemoryNet
from .memory_swarm import client_of

TOKEN_BYTES = 1024


class Fuse:
    """Blown once, by the first of several devices that computes a slice; which then stops."""

    def __init__(self) -> None:
        self.blown = trio.Event()
        self.by: Eager | None = None


class Eager:
    """A device with all its time to spare, for one after another."""

    def __init__(self) -> None:
        self.slices = 0
        self.fuse: Fuse | None = None
        self._line = trio.Lock()

    async def spare(self, slices: Iterator[None]) -> None:
        async with self._line:
            for _ in slices:
                self.slices += 1
                if self.fuse is not None and self.fuse.by is None:
                    self.fuse.by = self
                    self.fuse.blown.set()
                    await trio.sleep_forever()
                await trio.lowlevel.checkpoint()


@dataclass
class Node:
    host: MemoryHost
    training: Training
    device: Eager
    admission: Admission
    wardrobe: Wardrobe
    blocks: BlockRange


@dataclass
class TrainingWorld:
    checkpoint: Checkpoint
    net: MemoryNet
    nursery: trio.Nursery
    shelf: MemoryShelf = field(default_factory=MemoryShelf)
    nodes: list[Node] = field(default_factory=list)

    @property
    def model(self) -> str:
        return self.checkpoint.digest()

    async def add(
        self, start: int, stop: int, *, cache_tokens: int = 100_000, quantization: str = "none"
    ) -> Node:
        key, blocks = IdentityKey.generate(), BlockRange(start, stop)
        host = self.net.host(key.peer_id)
        admission, device = Admission(AdmissionConfig(cache_tokens)), Eager()
        teacher = Gradients.load(self.checkpoint, blocks, quantization=quantization)
        wardrobe = Wardrobe(teacher, admission, self.model, token_bytes=TOKEN_BYTES)  # type: ignore[arg-type]
        training = Training(
            lambda: teacher, device, admission, wardrobe,
            blocks=blocks, model=self.model, context=self.checkpoint.spec.context,
            token_bytes=TOKEN_BYTES,
            release=lambda one: admission.release(one, trio.current_time()),
        )  # fmt: skip
        host.handle(
            TRAINING_PROTOCOL, lambda stream: serve_stream(stream, Train, lambda asked: training)
        )
        told = announcement(self.checkpoint, self.model, blocks, host)
        await MemoryDirectory(key, self.shelf).announce(told)
        self.nodes.append(Node(host, training, device, admission, wardrobe, blocks))
        return self.nodes[-1]

    def client(self) -> tuple[MemoryHost, Router]:
        return client_of(self.net, self.shelf)

    def trainer(self, wait_s: float = 60.0) -> Trainer:
        host, router = self.client()
        spec = self.checkpoint.spec
        trainer = Trainer(
            host, router, random.Random(3), model=self.model, name="tiny",
            blocks=spec.blocks, width=spec.hidden, wait_s=wait_s,
        )  # type: ignore[arg-type]  # fmt: skip
        self.nursery.start_soon(trainer.run)
        return trainer


def announcement(
    checkpoint: Checkpoint, model: str, blocks: BlockRange, host: MemoryHost
) -> Announcement:
    return Announcement(
        model=model, name="tiny", start=blocks.start, stop=blocks.stop,
        blocks=checkpoint.spec.blocks, state="online", device="cpu", dtype="float32",
        quantization="none", decode_tokens_s=1000.0, prefill_tokens_s=1000.0,
        addresses=host.addresses(), cache_tokens_free=1000, context_tokens_max=128,
        numerics="", version="0",
    )  # fmt: skip


@asynccontextmanager
async def training_world(
    checkpoint: Checkpoint, spans: Sequence[tuple[int, int]]
) -> AsyncIterator[TrainingWorld]:
    async with trio.open_nursery() as nursery:
        made = TrainingWorld(checkpoint, MemoryNet(nursery), nursery)
        for start, stop in spans:
            await made.add(start, stop)
        yield made
        nursery.cancel_scope.cancel()
