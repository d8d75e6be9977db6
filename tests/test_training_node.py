"""Training over what the sessions' tests stand on: a node's own stage, and real streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import trio
from net_hosts import seeded
from sim.memory_host import MemoryHost, MemoryNet
from sim.training_swarm import Eager

from potluck.crypto.keys import IdentityKey
from potluck.dht.memory import MemoryDirectory, MemoryShelf
from potluck.errors import Refused, RemoteError, TransportError
from potluck.node.compute.gradients import Gradients
from potluck.node.compute.lesson import Shape
from potluck.node.compute.tensor import pack
from potluck.node.config import NodeConfig
from potluck.node.holder import Holder
from potluck.node.member import Member
from potluck.node.net.host import open_host
from potluck.node.opening import serve_stream
from potluck.node.serving import open_model
from potluck.node.training import Training
from potluck.node.training_call import ask
from potluck.node.wardrobe import Wardrobe
from potluck.swarm.admission import Admission, AdmissionConfig
from potluck.swarm.blocks import BlockRange
from potluck.swarm.wire import TRAINING_PROTOCOL, Train

MODEL = "ab" * 32
ONE = BlockRange(0, 1)


async def test_a_node_trains_with_the_blocks_that_it_serves_and_leaves_in_order(
    tmp_path: Path,
) -> None:
    key, net_shelf = IdentityKey.generate(), MemoryShelf()
    config = NodeConfig(
        home=tmp_path, model="demo", blocks="0:3", threads=1, drain_s=1.0, offline=True
    )
    torch.manual_seed(3)
    async with trio.open_nursery() as nursery:
        net = MemoryNet(nursery)
        host: MemoryHost = net.host(key.peer_id)
        member = Member(host, MemoryDirectory(key, net_shelf), None, key)  # type: ignore[arg-type]
        model = await trio.to_thread.run_sync(open_model, config)
        holder = Holder(config, member, model, nursery, Random(1))
        await holder.take()
        host.handle(
            TRAINING_PROTOCOL, lambda stream: serve_stream(stream, Train, holder.choose_training)
        )
        assert holder.current is not None
        width = model.checkpoint.spec.hidden
        hidden, above = torch.randn(2 * 9, width), torch.randn(2 * 9, width)
        client = net.host(IdentityKey.generate().peer_id)

        async def asked(kind: Any, *payload: memoryview) -> bytes:
            told = Train(kind, model.digest, 0, 3, 2, 9, "f32", 60.0)
            stream = await client.open_stream(key.peer_id, TRAINING_PROTOCOL)
            return bytes(await ask(stream, told, payload, None, len(payload[0])))  # type: ignore[arg-type]

        out = await asked("forward", pack(hidden))
        grad = await asked("backward", pack(hidden), pack(above))
        beside = Gradients.load(model.checkpoint, BlockRange(0, 3))
        shape = Shape(2, 9, 0, "f32")
        for found, lesson in (
            (out, beside.forward(pack(hidden), shape, BlockRange(0, 3), None)),
            (grad, beside.backward(pack(torch.cat([hidden, above])), shape, beside.blocks, None)),
        ):
            assert len(list(lesson.slices())) in (3, 6)
            wanted = torch.frombuffer(bytearray(lesson.answer[0]), dtype=torch.float32)
            numbers = torch.frombuffer(bytearray(found), dtype=torch.float32)
            assert torch.allclose(numbers, wanted, rtol=1e-5, atol=1e-6)
        counts = holder.counts()
        assert counts["batches"] == counts["leases"] == 0
        with pytest.raises(RemoteError, match="another model"):
            await _refused(client, key.peer_id, MODEL)
        await holder.leave(0.0)
        with pytest.raises((Refused, TransportError)):
            await asked("forward", pack(hidden))
        nursery.cancel_scope.cancel()


async def _refused(client: MemoryHost, peer: str, model: str) -> None:
    stream = await client.open_stream(peer, TRAINING_PROTOCOL)
    told = Train("forward", model, 0, 3, 1, 1, "f32", 60.0)
    await ask(stream, told, [memoryview(bytes(8))], None, 8)  # type: ignore[arg-type]


@dataclass
class Echo:
    """Says what it was told."""

    payload: memoryview
    answer: list[memoryview] = field(default_factory=list)
    spent_s: float = 0.0
    name: bytes = b""
    kept: None = None

    def slices(self) -> Iterator[None]:
        yield
        self.answer = [self.payload]


class Teacher:
    def dress(self, name: str, parts: Mapping[int, bytes]) -> Any:
        raise AssertionError("nobody wears anything")

    def bytes_of(self, asked: Train) -> int:
        return 0

    def payload_bytes(self, asked: Train) -> int:
        return asked.batch * asked.tokens * 4

    def kept_bytes(self, asked: Train) -> int:
        return 0

    def begin(self, payload: memoryview, asked: Train, worn: Any, *, keeps: bool) -> Echo:
        return Echo(payload)


async def test_over_real_streams_large_batches_come_through_and_refusals_come_at_once() -> None:
    """8 MiB: more than any window of a stream holds, so whoever refuses must not be sent it all."""
    admission = Admission(AdmissionConfig(64 << 10))
    wardrobe = Wardrobe(Teacher(), admission, MODEL, token_bytes=1024)  # type: ignore[arg-type]
    training = Training(
        Teacher, Eager(), admission, wardrobe, blocks=ONE, model=MODEL, context=1 << 20,
        token_bytes=1024, release=lambda one: admission.release(one, trio.current_time()),
    )  # fmt: skip
    batch = memoryview(bytes(range(256)) * (8 << 12))
    async with open_host(seeded("a")) as server, open_host(seeded("b")) as client:
        server.handle(
            TRAINING_PROTOCOL, lambda stream: serve_stream(stream, Train, lambda asked: training)
        )
        client.learn(server.peer_id, server.addresses())

        async def send(model: str = MODEL) -> memoryview:
            told = Train("forward", model, 0, 1, 8, len(batch) // 32, "f32", 60.0)
            stream = await client.open_stream(server.peer_id, TRAINING_PROTOCOL)
            return await ask(stream, told, [batch], None, len(batch))

        with trio.fail_after(60):
            assert bytes(await send()) == batch
            taken = object()
            admission.admit(taken, "other", ONE, 60 << 10, trio.current_time())
            with pytest.raises(Refused, match="cache is full"):
                await send()
            with pytest.raises(RemoteError, match="another model"):
                await send("cd" * 32)
            admission.release(taken, trio.current_time())
            assert bytes(await send()) == batch
        assert training.requests == admission.sessions == 0
