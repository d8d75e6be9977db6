"""A remote model against transformers in one process: every gradient, and a training under fire."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import trio
from sim.training_swarm import Fuse, TrainingWorld, training_world
from torch import Tensor

from potluck.errors import UserError
from potluck.node.blocking import BlockingTrainer
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.head import Ends
from potluck.node.compute.lora import LoRA, LowRank
from potluck.node.compute.remote import RemoteModel
from potluck.node.compute.voice import Voice

from .checkpoints import save_random
from .trained import Local, batch, loss_of

T = TypeVar("T")

TOLERANCE = 1e-4  # issue F, bar 1
PROMPTS = 3
STAGES = ((0, 1), (1, 2), (2, 3))
TWICE = (*STAGES, *STAGES)
WANTED = LoRA(rank=4, alpha=8, targets=("q_proj", "v_proj", "down_proj"))


class Connected:
    """A client, as remote models have it."""

    def __init__(self, world: TrainingWorld) -> None:
        self.trainer = world.trainer()
        self._voice = Voice("tiny", world.model, Ends.load(world.checkpoint), None)  # type: ignore[arg-type]
        self._token = trio.lowlevel.current_trio_token()

    def voice(self, model: str) -> Voice:
        return self._voice

    def training(self, model: str) -> BlockingTrainer:
        return BlockingTrainer(self.trainer, self._token)


def number(loss: Tensor) -> float:
    return float(loss.detach())


async def beside(function: Callable[[], T]) -> T:
    """Plain PyTorch has a thread of its own, and the swarm an event loop."""
    return await trio.to_thread.run_sync(function)


def shake(model: RemoteModel) -> None:
    """No matrix at zero, where a gradient could be right by chance."""
    with torch.no_grad():
        for one in model.parameters():
            one += 0.05 * torch.randn(one.shape)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
@pytest.mark.parametrize("wide", [False, True])
async def test_gradients_of_all_that_can_be_trained_are_those_of_one_process(
    family: str, wide: bool, tmp_path: Path
) -> None:
    """Over three stages; in microbatches of one sequence, and of all."""
    torch.manual_seed(5)
    oracle = save_random(tmp_path, family)
    async with training_world(open_checkpoint(tmp_path), STAGES) as world:
        lora = WANTED if family != "phi3" else LoRA(rank=4, targets=("qkv_proj", "o_proj"))
        connected = Connected(world)

        def run() -> None:
            remote = RemoteModel(
                connected, "tiny", prompts=PROMPTS, deep=True, lora=lora,
                head=family == "llama", microbatch=4 if wide else 1,
            )  # fmt: skip
            shake(remote)
            local = Local(oracle, remote)
            found, expected = loss_of(remote, batch(1)), loss_of(local, batch(1))
            assert abs(number(found) - number(expected)) <= TOLERANCE * number(expected)
            found.backward()
            expected.backward()
            for name, one in remote.named_parameters():
                wanted = getattr(local, name.replace(".", "_"))
                assert one.grad is not None, name
                apart = (one.grad - wanted.grad).norm() / wanted.grad.norm()
                assert float(apart) <= TOLERANCE, name

        await beside(run)
        for node in world.nodes:
            assert node.training.requests == node.admission.sessions == 0
            assert node.wardrobe.brought_bytes > 0


async def test_a_training_goes_on_as_if_nobody_had_died(tmp_path: Path) -> None:
    """Six steps of AdamW; in the second forward's and the fourth backward's midst a stage dies."""
    torch.manual_seed(6)
    oracle = save_random(tmp_path, "llama")
    async with training_world(open_checkpoint(tmp_path), TWICE) as world:
        connected = Connected(world)

        dead: list[int] = []

        async def kill(stage: tuple[int, int]) -> None:
            """Whoever of this stage computes a slice next."""
            fuse = Fuse()
            for node in world.nodes:
                if (node.blocks.start, node.blocks.stop) == stage:
                    node.device.fuse = fuse
            await fuse.blown.wait()
            for number, node in enumerate(world.nodes):
                if node.device is fuse.by:
                    dead.append(number)
                    await node.host.die()

        def doom(stage: tuple[int, int]) -> None:
            world.nursery.start_soon(kill, stage)

        def run() -> list[tuple[float, float]]:
            remote = RemoteModel(connected, "tiny", prompts=PROMPTS, lora=WANTED)
            local = Local(oracle, remote)
            optimizers = [torch.optim.AdamW(one.parameters(), lr=5e-3) for one in (remote, local)]
            losses = []
            for step in range(6):
                if step == 1:
                    trio.from_thread.run_sync(doom, STAGES[1])
                pair = [loss_of(one, batch(step % 2)) for one in (remote, local)]
                if step == 3:
                    trio.from_thread.run_sync(doom, STAGES[2])
                for one, optimizer in zip(pair, optimizers, strict=True):
                    optimizer.zero_grad()
                    one.backward()
                    optimizer.step()
                losses.append((number(pair[0]), number(pair[1])))
            return losses

        losses = await beside(run)
        assert [number % 3 for number in dead] == [1, 2] and connected.trainer.resent >= 2
        for found, expected in losses:
            assert abs(found - expected) <= TOLERANCE * expected
        assert losses[-1][0] < losses[0][0]


async def test_what_never_goes_back_is_let_go(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    async with training_world(open_checkpoint(tmp_path), STAGES) as world:
        connected = Connected(world)

        def run() -> None:
            remote = RemoteModel(connected, "tiny", prompts=PROMPTS)
            with torch.no_grad():
                remote(batch(1))
            trio.from_thread.run_sync(lambda: None)  # what was sent before it has been done
            assert not connected.trainer._flights
            loss = loss_of(remote, batch(1))
            assert connected.trainer._flights
            del loss
            gc.collect()
            trio.from_thread.run_sync(lambda: None)
            assert not connected.trainer._flights

        await beside(run)


async def test_a_batch_goes_backward_once(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    async with training_world(open_checkpoint(tmp_path), STAGES) as world:
        connected = Connected(world)

        def run() -> None:
            remote = RemoteModel(connected, "tiny", prompts=PROMPTS)
            loss = loss_of(remote, batch(1))
            loss.backward(retain_graph=True)
            with pytest.raises(UserError, match="goes backward once"):
                loss.backward()

        await beside(run)


async def test_what_cannot_be_trained_is_one_clear_line_and_nothing_is_sent(
    tmp_path: Path,
) -> None:
    save_random(tmp_path, "llama")
    async with training_world(open_checkpoint(tmp_path), STAGES) as world:
        connected = Connected(world)

        def make(**how: Any) -> RemoteModel:
            return RemoteModel(connected, "tiny", **how)

        def run() -> None:
            with pytest.raises(UserError, match="no such module"):
                make(lora=LoRA(targets=("query",)))
            with pytest.raises(UserError, match="LoRA on blocks"):
                make(lora=LoRA(blocks=(3,)))
            with pytest.raises(UserError, match="rank 0"):
                make(lora=LoRA(rank=0))
            with pytest.raises(UserError, match="128 prompts"):
                make(prompts=128)
            with pytest.raises(UserError, match="at least one"):
                make(deep=True)
            remote = make(prompts=PROMPTS, lora=WANTED)
            for ids in (batch(1)[0], batch(1).float(), batch(1)[:, :0]):
                with pytest.raises(UserError, match="give"):
                    remote(ids)
            with pytest.raises(UserError, match="vocabulary"):
                remote(torch.full((1, 4), 160))
            with pytest.raises(UserError, match="128 positions"):
                remote(batch(1, 1, 126))
            loss = loss_of(remote, batch(1)) * torch.inf
            with pytest.raises(UserError, match="nothing was sent"):
                loss.backward()
            with torch.no_grad():
                next(iter(remote.lora.halves)).fill_(torch.nan)  # type: ignore[union-attr]
            with pytest.raises(UserError, match="diverged"):
                remote(batch(1))

        await beside(run)
        assert all(node.host.streams == [] for node in world.nodes)


async def test_an_adapter_that_was_saved_is_gone_on_from(tmp_path: Path) -> None:
    """In PEFT's own files, which test_adapter.py and integration/peft_oracle.py hold to PEFT."""
    save_random(tmp_path / "model", "llama")
    async with training_world(open_checkpoint(tmp_path / "model"), STAGES) as world:
        connected = Connected(world)

        def run() -> None:
            remote = RemoteModel(connected, "tiny", lora=WANTED)
            shake(remote)
            remote.save_adapter(tmp_path / "saved")
            again = RemoteModel(connected, "tiny", lora=tmp_path / "saved")
            assert isinstance(again.lora, LowRank) and remote.lora is not None
            assert again.lora.places == remote.lora.places
            for one, other in zip(remote.parameters(), again.parameters(), strict=True):
                assert torch.equal(one, other)

        await beside(run)
