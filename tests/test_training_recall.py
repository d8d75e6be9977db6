"""What a server keeps of a forward for its backward, while nobody else needs the room."""

from __future__ import annotations

import pytest
import torch
import trio
from sim.training_swarm import Node, training_world
from trio.testing import MockClock

from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.tensor import pack
from potluck.swarm.blocks import BlockRange
from potluck.swarm.microbatch import Microbatch

from .checkpoints import save_random

WIDTH, BLOCKS = 48, 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("tiny")
    save_random(folder, "llama")
    return open_checkpoint(folder)


@pytest.fixture
def batch() -> Microbatch:
    torch.manual_seed(1)
    return Microbatch(pack(torch.randn(16, WIDTH)), 2, 8, WIDTH, "f32")


def above() -> memoryview:
    return pack(torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(2)))


def kept(node: Node) -> int:
    return node.training._recall.bytes


async def test_a_backward_where_its_forward_was_is_half_the_work_and_the_same_bits(
    autojump_clock: MockClock, checkpoint: Checkpoint, batch: Microbatch
) -> None:
    async with training_world(checkpoint, [(0, BLOCKS)]) as world:
        (node,), trainer = world.nodes, world.trainer()
        grads, slices = [], []
        for taken in (False, True):
            number, _ = await trainer.forward(batch)
            assert kept(node) > 0
            if taken:  # a session that has all of the room: what was kept is gone
                node.admission.admit("all", "a", BlockRange(0, BLOCKS), 33_333, 0.0)
                node.wardrobe.make_room()
                assert kept(node) == 0
                node.admission.release("all", trio.current_time())
            before = node.device.slices
            grads.append(bytes((await trainer.backward(number, above())).grad))
            slices.append(node.device.slices - before)
            assert kept(node) == 0
        assert grads[0] == grads[1] and slices == [BLOCKS, 2 * BLOCKS]


async def test_what_nobody_comes_back_for_makes_room_for_others(
    autojump_clock: MockClock, checkpoint: Checkpoint, batch: Microbatch
) -> None:
    async with training_world(checkpoint, [(0, BLOCKS)]) as world:
        (node,), trainer = world.nodes, world.trainer()
        number, _ = await trainer.forward(batch)
        trainer.drop(number)
        one = kept(node)
        node.training._recall_bytes = 2 * one
        for seed in range(5):
            torch.manual_seed(seed)
            other = Microbatch(pack(torch.randn(16, WIDTH)), 2, 8, WIDTH, "f32")
            trainer.drop((await trainer.forward(other))[0])
            assert kept(node) == 2 * one
        assert node.admission.sessions == 0  # none of it is anybody's room


async def test_what_one_peer_left_no_other_takes(
    autojump_clock: MockClock, checkpoint: Checkpoint, batch: Microbatch
) -> None:
    async with training_world(checkpoint, [(0, BLOCKS)]) as world:
        (node,) = world.nodes
        first, second = world.trainer(), world.trainer()
        mine, theirs = await first.forward(batch), await second.forward(batch)
        one = kept(node) // 2
        await first.backward(mine[0], above())
        assert kept(node) == one
        await second.backward(theirs[0], above())
        assert kept(node) == 0
