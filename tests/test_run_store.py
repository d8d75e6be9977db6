"""A run's checkpoints on disk: bit for bit, bounded, and the last one is never lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from potluck.errors import RemoteError, UserError
from potluck.node.chunks import store as stores
from potluck.node.compute.snapshot import (
    Snapshot,
    Trained,
    cut_up,
    put_back,
    put_together,
    take,
)
from potluck.node.runs.store import Checkpoints
from potluck.swarm.blocks import BlockRange
from potluck.swarm.run.checkpoint import Entry, joined, write_manifest

RUN = bytes(range(32))


class Small(nn.Module):
    """Two blocks and what belongs to none."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.head = nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.second(self.first(x).tanh()).tanh())
        return out

    @property
    def trained(self) -> Trained:
        own = dict(self.named_parameters())
        blocks = {name: int(name.startswith("second")) for name in own if "head" not in name}
        return Trained(own, blocks)


def adamw(model: Small) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.05)


def steps(model: Small, optimizer: torch.optim.Optimizer, first: int, count: int) -> list[float]:
    found = []
    for number in range(first, first + count):
        x = torch.randn(16, 5, generator=torch.Generator().manual_seed(number))
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def snapshot(epoch: int = 1, seed: int = 0, **more: Tensor) -> Snapshot:
    model = Small(seed)
    optimizer = adamw(model)
    steps(model, optimizer, 0, 3)
    return take(
        RUN,
        epoch,
        3,
        model.trained,
        optimizer,
        outer=more,
        counters={"own/batches": 3, "tokens": 9},
    )


def same(one: Snapshot | None, other: Snapshot) -> bool:
    assert one is not None
    bits = all(
        one.tensors[name].dtype == wanted.dtype
        and one.tensors[name].shape == wanted.shape
        and bool((one.tensors[name] == wanted).all())
        for name, wanted in other.tensors.items()
    )
    return (
        bits
        and one.tensors.keys() == other.tensors.keys()
        and (one.epoch, one.step, one.counters, one.blocks)
        == (other.epoch, other.step, other.counters, other.blocks)
    )


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_training_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    model = Small()
    optimizer = adamw(model)
    steps(model, optimizer, 0, 5)
    Checkpoints(tmp_path, RUN).save(take(RUN, 0, 5, model.trained, optimizer))
    expected = steps(model, optimizer, 5, 10)

    again = Small(seed=8)
    other = adamw(again)
    found = Checkpoints(tmp_path, RUN).latest()
    assert found is not None and (found.epoch, found.step) == (0, 5)
    put_back(found, again.trained, other)
    assert steps(again, other, 5, 10) == expected


def test_what_is_taken_does_not_change_while_training_goes_on() -> None:
    model = Small()
    optimizer = adamw(model)
    steps(model, optimizer, 0, 1)
    taken = take(RUN, 0, 1, model.trained, optimizer)
    before = write_manifest(cut_up(taken)[0])
    steps(model, optimizer, 1, 3)
    assert write_manifest(cut_up(taken)[0]) == before


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4).t(),  # not one row after another
        torch.randn(2, 3).bfloat16(),
        torch.randn(5).half(),
        torch.randn(2, 2).double(),
        torch.tensor(-0.0),
        torch.tensor(7),
        torch.empty(0, 4),
        torch.arange(9, dtype=torch.uint8),
        torch.tensor([1e-45, -1e-45, 3.4e38]),
    ],
)
def test_every_tensor_comes_back_to_the_bit(tmp_path: Path, tensor: Tensor) -> None:
    kept = Checkpoints(tmp_path, RUN)
    kept.save(Snapshot(RUN, 1, 2, {"x": tensor}))
    found = kept.latest()
    assert found is not None
    got = found.tensors["x"]
    assert got.dtype == tensor.dtype and got.shape == tensor.shape
    assert got.contiguous().view(-1).view(torch.uint8).tolist() == (
        tensor.contiguous().view(-1).view(torch.uint8).tolist()
    )


def test_numbers_that_are_not_finite_are_refused() -> None:
    manifest, parts = cut_up(Snapshot(RUN, 0, 0, {"x": torch.tensor([1.0, float("nan")])}))
    (entry,) = manifest.entries
    with pytest.raises(RemoteError, match="not finite, in x"):
        put_together(manifest, [(entry, [bytes(one) for one in parts.values()])])


def test_a_tensor_of_a_wrong_size_is_refused() -> None:
    manifest, _ = cut_up(Snapshot(RUN, 0, 0, {"x": torch.ones(4)}))
    with pytest.raises(RemoteError, match="15 bytes for x"):
        put_together(manifest, [(manifest.entries[0], [bytes(15)])])


def test_a_state_cut_into_chunks_of_any_size_is_the_same() -> None:
    taken = snapshot()
    for chunk_bytes in (1, 7, 64, 1 << 20):
        manifest, parts = cut_up(taken, chunk_bytes)
        by_name = {one.digest: bytes(raw) for one, raw in parts.items()}

        def chunks(entry: Entry, by_name: dict[bytes, bytes] = by_name) -> list[bytes]:
            return [by_name[name] for name in entry.chunks]

        assert same(put_together(manifest, [(e, chunks(e)) for e in manifest.entries]), taken)


def test_a_stage_loads_only_its_blocks_and_stages_together_save_the_same(tmp_path: Path) -> None:
    taken = snapshot()
    kept = Checkpoints(tmp_path, RUN)
    mark = kept.save(taken)
    parts = []
    for block in (0, 1):
        found = kept.latest(BlockRange(block, block + 1))
        assert found is not None
        assert {found.blocks[name] for name in found.blocks} == {block}
        assert any("head" in name for name in found.tensors)
        parts.append(cut_up(found)[0])
    whole = kept.manifest(mark.manifest)
    assert whole is not None and joined(parts) == whole


def test_only_the_last_few_are_kept_and_what_they_share_once(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, RUN, keep=2)
    frozen = torch.randn(1000)
    sizes = []
    for epoch in range(6):
        kept.save(snapshot(epoch, seed=epoch, frozen=frozen))
        sizes.append(kept.chunks.used_bytes())
    assert [mark.epoch for mark in kept.marks()] == [5, 4]
    assert sizes[-1] == sizes[1] < 2 * sizes[0], "4000 bytes stand there once"
    assert same(kept.latest(), snapshot(5, seed=5, frozen=frozen))


def test_the_bound_in_bytes_holds_at_every_moment_and_the_newest_stays(tmp_path: Path) -> None:
    size = Checkpoints(tmp_path / "probe", RUN)
    size.save(snapshot(0))
    one = size.chunks.used_bytes()
    kept = Checkpoints(tmp_path / "run", RUN, bytes_max=int(2.5 * one), keep=9)
    for epoch in range(5):
        kept.save(snapshot(epoch, seed=epoch))
        assert kept.chunks.used_bytes() <= 2.5 * one
        assert kept.marks()[0].epoch == epoch and len(kept.marks()) <= 2
    tight = Checkpoints(tmp_path / "tight", RUN, bytes_max=int(1.5 * one))
    tight.save(snapshot(0))
    with pytest.raises(UserError, match="beside the last one"):
        tight.save(snapshot(1, seed=1))
    assert same(tight.latest(), snapshot(0))


@pytest.mark.parametrize("writes", [0, 1, 9, 17, 19, 20])  # 18 chunks, two manifests, the mark
def test_a_disk_that_fills_up_at_any_moment_leaves_the_last_checkpoint_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    kept = Checkpoints(tmp_path, RUN)
    kept.save(snapshot(1))
    before, sync, left = used(tmp_path), os.fsync, iter(range(writes))

    def fsync(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(stores.os, "fsync", fsync)
    with pytest.raises(UserError, match="No space left on device") as told:
        kept.save(snapshot(2, seed=2))
    assert "\n" not in str(told.value) and "those before it are kept" in str(told.value)
    monkeypatch.undo()
    again = Checkpoints(tmp_path, RUN)
    assert same(again.latest(), snapshot(1)) and used(tmp_path) == before
    again.save(snapshot(2, seed=2))
    assert same(again.latest(), snapshot(2, seed=2))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, RUN)
    kept.save(snapshot(1))
    first = set(tmp_path.glob("chunks/*/*"))
    kept.save(snapshot(2, seed=2))
    new = min(set(tmp_path.glob("chunks/*/*")) - first)
    new.write_bytes(bytes(new.stat().st_size))
    assert same(kept.latest(), snapshot(1))
    (tmp_path / "marks" / kept.marks()[0].file).write_bytes(b"junk")
    assert same(Checkpoints(tmp_path, RUN).latest(), snapshot(1))


def test_another_runs_checkpoint_is_none_of_ours(tmp_path: Path) -> None:
    Checkpoints(tmp_path, RUN).save(snapshot())
    assert Checkpoints(tmp_path, bytes(32)).latest() is None


def test_a_checkpoint_of_other_tensors_changes_nothing(tmp_path: Path) -> None:
    model = Small()
    before = [one.clone() for one in model.parameters()]
    with pytest.raises(UserError, match="other tensors"):
        put_back(Snapshot(RUN, 0, 0, {"weights/head.bias": torch.ones(1)}), model.trained)
    assert all(
        bool((one == was).all()) for one, was in zip(model.parameters(), before, strict=True)
    )


def test_what_is_not_there_in_full_is_not_adopted(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, RUN)
    mark = kept.save(snapshot())
    manifest = kept.manifest(mark.manifest)
    assert manifest is not None
    kept.chunks.keep_only([mark.manifest.digest])
    with pytest.raises(UserError, match="a part is not here"):
        kept.adopt(mark.manifest)
    assert kept.latest() is None


def test_nonsense_settings_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose 1 or more"):
        Checkpoints(tmp_path, RUN, keep=0)
