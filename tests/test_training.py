"""Batches over a swarm in memory: what is refused, resent, waited for; and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import trio
from sim.training_swarm import Fuse, Node, TrainingWorld, training_world
from trio.testing import MockClock

from potluck.errors import MissingBlocks, PotluckError, Refused, RemoteError
from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.lora import LoRA, LowRank
from potluck.node.compute.tensor import pack
from potluck.node.frames import FrameStream
from potluck.node.pieces import send_pieces
from potluck.node.training import WAIT_S
from potluck.node.training_call import ask
from potluck.swarm.blocks import BlockRange
from potluck.swarm.microbatch import Microbatch
from potluck.swarm.wire import TRAINING_PROTOCOL, Busy, Fault, Piece, Train, Trained

from .checkpoints import save_random

ROWS = (2, 8)  # sequences, tokens
WIDTH = 48
WHOLE = BlockRange(0, 3)
STAGES = ((0, 1), (1, 2), (2, 3))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("tiny")
    save_random(folder, "llama")
    return open_checkpoint(folder)


@pytest.fixture
def batch(checkpoint: Checkpoint) -> Microbatch:
    torch.manual_seed(1)
    low = LowRank.new(checkpoint.spec, LoRA(rank=2))
    return Microbatch(
        pack(torch.randn(ROWS[0] * ROWS[1], WIDTH)), *ROWS, WIDTH, "f32",
        worn=low.bundle(checkpoint.digest(), list(low.halves)), trained=low.trained(),
    )  # fmt: skip


def grad(seed: int = 2) -> memoryview:
    dice = torch.Generator().manual_seed(seed)
    return pack(torch.randn(ROWS[0] * ROWS[1], WIDTH, generator=dice))


async def there_and_back(world: TrainingWorld, batch: Microbatch, **how: Any) -> list[bytes]:
    """Hidden states, their gradient, and those of each block's matrices."""
    trainer = world.trainer(**how)
    number, out = await trainer.forward(batch)
    brought = await trainer.backward(number, grad())
    assert not trainer._flights
    whole = b"".join(bytes(raw) for _, raw in sorted(brought.pieces, key=lambda one: one[0].start))
    return [bytes(out), bytes(brought.grad), whole]


async def undisturbed(checkpoint: Checkpoint, batch: Microbatch) -> list[bytes]:
    async with training_world(checkpoint, STAGES) as world:
        return await there_and_back(world, batch)


def idle(node: Node) -> bool:
    return node.training.requests == node.admission.sessions == node.training._taken_bytes == 0


async def test_any_cut_of_the_blocks_gives_the_same(
    autojump_clock: MockClock, checkpoint: Checkpoint, batch: Microbatch
) -> None:
    expected = await undisturbed(checkpoint, batch)
    for spans in (((0, 3),), ((0, 2), (1, 3)), ((0, 2), (2, 3), (1, 3))):
        async with training_world(checkpoint, spans) as world:
            assert await there_and_back(world, batch) == expected
            assert all(idle(node) for node in world.nodes)


@pytest.mark.parametrize("kills", [[0], [1], [2], [0, 1, 2]])
async def test_who_dies_at_work_costs_one_resend_each_and_no_number(
    autojump_clock: MockClock, checkpoint: Checkpoint, batch: Microbatch, kills: list[int]
) -> None:
    expected = await undisturbed(checkpoint, batch)
    for at in ("forward", "backward"):
        async with training_world(checkpoint, (*STAGES, *STAGES)) as world:
            trainer = world.trainer()

            async def kill(stage: int) -> None:
                fuse = Fuse()
                for node in world.nodes:
                    if node.blocks.start == stage:
                        node.device.fuse = fuse
                await fuse.blown.wait()
                (dying,) = (node for node in world.nodes if node.device is fuse.by)
                await dying.host.die()

            def doom() -> None:
                for stage in kills:
                    world.nursery.start_soon(kill, stage)

            if at == "forward":
                doom()
                await trio.testing.wait_all_tasks_blocked()
            number, out = await trainer.forward(batch)
            if at == "backward":
                doom()
                await trio.testing.wait_all_tasks_blocked()
            brought = await trainer.backward(number, grad())
            found = b"".join(
                bytes(raw) for _, raw in sorted(brought.pieces, key=lambda one: one[0].start)
            )
            assert [bytes(out), bytes(brought.grad), found] == expected
            assert trainer.resent == len(kills)
            assert sum(node.host.dead for node in world.nodes) == len(kills)


async def test_who_says_nothing_is_left_for_another_and_not_banned(
    autojump_clock: MockClock, checkpoint: Checkpoint, batch: Microbatch
) -> None:
    expected = await undisturbed(checkpoint, batch)
    async with training_world(checkpoint, [(0, 3), (0, 3)]) as world:
        fuse = Fuse()  # whoever is first computes for ever
        for node in world.nodes:
            node.device.fuse = fuse
        trainer = world.trainer()
        number, out = await trainer.forward(batch)
        assert bytes(out) == expected[0] and trainer.resent == 1
        assert len(trainer._wheels.serving()) == 2
        trainer.drop(number)


class Liar:
    """Computes rightly, and says something else."""

    def __init__(self, teacher: Any) -> None:
        self._teacher = teacher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)

    def begin(self, *args: Any, **how: Any) -> Any:
        lesson = self._teacher.begin(*args, **how)
        run = lesson._run

        def lie(one: Any) -> Iterator[None]:
            yield from run(one)
            one.answer[-1] = memoryview(b"\xff" * len(one.answer[-1]))

        lesson._run = lie
        return lesson


async def test_numbers_that_are_none_are_taken_from_nobody(
    autojump_clock: MockClock, checkpoint: Checkpoint, batch: Microbatch
) -> None:
    expected = await undisturbed(checkpoint, batch)
    async with training_world(checkpoint, [(0, 3), (0, 3)]) as world:
        for node in world.nodes[:1]:
            teacher = node.training._load()
            node.training._load = lambda: Liar(teacher)  # noqa: B023
        for _ in range(3):
            assert await there_and_back(world, batch) == expected
        liar = world.nodes[0].training
        assert liar.requests_served <= 3  # each client asks it once at most


async def test_blocks_that_nobody_serves_are_waited_for_and_then_named(
    autojump_clock: MockClock, checkpoint: Checkpoint, batch: Microbatch
) -> None:
    async with training_world(checkpoint, [(0, 1), (2, 3)]) as world:
        trainer = world.trainer(wait_s=20)
        began_s = trio.current_time()
        with pytest.raises(MissingBlocks) as missing:
            await trainer.forward(batch)
        assert missing.value.missing == ((1, 2),)
        assert 20 <= trio.current_time() - began_s <= 30
        assert not trainer._flights

        async def come() -> None:
            await trio.sleep(8)
            await world.add(1, 2)

        world.nursery.start_soon(come)
        number, _ = await trainer.forward(batch)
        trainer.drop(number)


async def test_whoever_leaves_lets_go_of_batches_and_they_go_elsewhere(
    autojump_clock: MockClock, checkpoint: Checkpoint, batch: Microbatch
) -> None:
    expected = await undisturbed(checkpoint, batch)
    async with training_world(checkpoint, [(0, 3), (0, 3)]) as world:
        fuse = Fuse()
        for node in world.nodes:
            node.device.fuse = fuse
        trainer, found = world.trainer(), []

        async def go() -> None:
            found.append(await trainer.forward(batch))

        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(go)
            await fuse.blown.wait()
            (leaving,) = (node for node in world.nodes if node.device is fuse.by)
            leaving.training.leave()
        assert bytes(found[0][1]) == expected[0] and trio.current_time() - began_s < 1
        assert idle(leaving)


async def test_a_client_that_goes_leaves_nothing(
    autojump_clock: MockClock, checkpoint: Checkpoint, batch: Microbatch
) -> None:
    async with training_world(checkpoint, [(0, 3)]) as world:
        (node,) = world.nodes
        node.device.fuse = Fuse()
        trainer = world.trainer()
        with trio.move_on_after(1):
            await trainer.forward(batch)
        assert not trainer._flights and node.device.fuse.by is node.device
        await trio.testing.wait_all_tasks_blocked()
        assert idle(node) and not node.training._given
        node.device.fuse = None
        number, _ = await trainer.forward(batch)  # the next one is served
        trainer.drop(number)


async def test_who_is_full_says_so_and_is_asked_again_in_time(
    autojump_clock: MockClock, checkpoint: Checkpoint, batch: Microbatch
) -> None:
    async with training_world(checkpoint, [(0, 3)]) as world:
        (node,) = world.nodes
        taken = object()
        node.admission.admit(taken, "other", WHOLE, 33_300, trio.current_time())
        trainer = world.trainer(wait_s=20)
        began_s = trio.current_time()
        with pytest.raises(Refused, match="the cache is full"):
            await trainer.forward(batch)
        assert 20 <= trio.current_time() - began_s <= 60

        async def free() -> None:
            await trio.sleep(10)
            node.admission.release(taken, trio.current_time())

        world.nursery.start_soon(free)
        began_s = trio.current_time()
        number, _ = await trainer.forward(batch)
        assert 10 <= trio.current_time() - began_s <= 45
        assert len(trainer._wheels.serving()) == 1  # to be full is no fault
        trainer.drop(number)


async def test_a_batch_that_nobody_can_take_is_one_clear_line(
    autojump_clock: MockClock, checkpoint: Checkpoint, batch: Microbatch
) -> None:
    async with training_world(checkpoint, []) as world:
        await world.add(0, 3, cache_tokens=100)
        with pytest.raises(RemoteError, match="fewer sequences at once"):
            await world.trainer().forward(batch)
        assert not world.net.faults  # a mistake, for which nobody is banned


def asking(checkpoint: Checkpoint, **changes: Any) -> Train:
    asked = Train("forward", checkpoint.digest(), 0, 3, *ROWS, "f32", 30.0)
    return replace(asked, **changes)


async def dial(world: TrainingWorld) -> FrameStream:
    host, _ = world.client()
    stream = await host.open_stream(world.nodes[0].host.peer_id, TRAINING_PROTOCOL)
    return FrameStream(stream)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"model": "cd" * 32}, "another model"),
        ({"stop": 4}, "are not in 0:3"),
        ({"start": 2, "stop": 2}, "are not in 0:3"),
        ({"tokens": 129}, "this model has 128"),
        ({"prompts": 9}, "9 prompts in 8"),
        ({"dtype": "f64"}, "unknown dtype"),
        ({"adapter": b"short"}, "digest"),
        ({"batch": 4096, "tokens": 128, "dtype": "f16"}, "fewer sequences"),
    ],
)
async def test_what_no_honest_client_asks_is_refused_before_a_byte_is_read(
    autojump_clock: MockClock, checkpoint: Checkpoint, changes: dict[str, Any], why: str
) -> None:
    async with training_world(checkpoint, []) as world:
        await world.add(0, 3, cache_tokens=2000)
        frames = await dial(world)
        await frames.send(asking(checkpoint, **changes))
        received = await frames.receive()
        assert received is not None and isinstance(received[0], Fault)
        assert why in received[0].reason
        assert idle(world.nodes[0])


async def test_pieces_that_are_not_what_was_told_end_that_request_alone(
    autojump_clock: MockClock, checkpoint: Checkpoint, batch: Microbatch
) -> None:
    async with training_world(checkpoint, [(0, 3)]) as world:
        whole = len(batch.hidden)
        for pieces, why in (
            ([bytes(whole), b"more"], None),  # what comes after is not read
            ([bytes(whole - 1), b"xx"], "another size"),
            ([b"\xff" * whole], "not finite"),
        ):
            frames = await dial(world)
            await frames.send(asking(checkpoint))
            await send_pieces(frames, pieces)
            received = await frames.receive()
            assert received is not None
            if why is None:
                assert isinstance(received[0], Trained)
            else:
                assert isinstance(received[0], Fault) and why in received[0].reason
        frames = await dial(world)
        await frames.send(asking(checkpoint))
        await frames.send(Piece(), bytes(8))  # and nothing more
        began_s = trio.current_time()
        with pytest.raises(PotluckError):
            while await frames.receive() is not None:
                pass
        assert trio.current_time() - began_s <= WAIT_S + 1
        assert idle(world.nodes[0])
        await there_and_back(world, batch)


async def test_what_has_waited_too_long_is_not_computed(
    autojump_clock: MockClock, checkpoint: Checkpoint, batch: Microbatch
) -> None:
    async with training_world(checkpoint, [(0, 3)]) as world:
        (node,) = world.nodes
        node.device.fuse = Fuse()
        first = world.trainer()
        world.nursery.start_soon(first.forward, batch)
        await node.device.fuse.blown.wait()
        frames = await dial(world)
        await frames.send(asking(checkpoint, within_s=3.0))
        await send_pieces(frames, [batch.hidden])
        received = await frames.receive()
        assert received is not None and isinstance(received[0], Busy)
        assert received[0].reason == "the batch waited too long"
        assert node.training.requests == 1 and node.device.slices == 1


async def test_of_microbatches_that_come_together_one_brings_the_adapter(
    autojump_clock: MockClock, checkpoint: Checkpoint, batch: Microbatch
) -> None:
    async with training_world(checkpoint, [(0, 3)]) as world:
        (node,) = world.nodes
        trainer = world.trainer()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(trainer.forward, batch)
        assert batch.worn is not None
        assert node.wardrobe.brought_bytes == batch.worn.manifest.size(WHOLE)
        assert node.training.requests_served == 5 and not node.training._bringing


async def test_each_step_of_an_optimizer_is_an_adapter_that_is_brought_once(
    autojump_clock: MockClock, checkpoint: Checkpoint, batch: Microbatch
) -> None:
    async with training_world(checkpoint, [(0, 3)]) as world:
        (node,) = world.nodes
        host, _ = world.client()
        sizes, answers = [], []
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            low = LowRank.new(checkpoint.spec, LoRA(rank=2))
            with torch.no_grad():
                for half in low.halves:
                    half += torch.randn(half.shape)
            bundle = low.bundle(checkpoint.digest(), list(low.halves))
            asked = asking(
                checkpoint, adapter=bundle.name, size=bundle.manifest.size(WHOLE), within_s=60.0
            )
            for _ in range(2):
                stream = await host.open_stream(node.host.peer_id, TRAINING_PROTOCOL)
                raw = await ask(stream, asked, [batch.hidden], bundle, len(batch.hidden))  # type: ignore[arg-type]
                answers.append(bytes(raw))
            sizes.append(node.wardrobe.brought_bytes)
        assert sizes == [sizes[0], 2 * sizes[0], 2 * sizes[0]]
        assert answers[0] == answers[1] == answers[4] != answers[2] == answers[3]
        assert node.wardrobe.idle_bytes > 0 and idle(node)
        node.admission.admit(object(), "a", WHOLE, 33_333, trio.current_time())
        node.wardrobe.make_room()
        assert node.wardrobe.idle_bytes == 0  # whoever comes for a session has its room
