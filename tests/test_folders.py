"""A folder that is replaced: a kill at any moment leaves the old one or the new one, all of it."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potluck.crypto.keys import IdentityKey
from potluck.errors import UserError
from potluck.node.compute import folders
from potluck.node.compute.adapter import CONFIG, TENSORS
from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.folders import exchange, replaced, standing
from potluck.node.compute.parts import SIGNED, read_bundle, write_peft
from potluck.node.runs.finetune import save_adapter
from potluck.swarm.adapter import Bundle

from .adapters import save_adapter as random_adapter
from .checkpoints import save_random

MODEL = "ab" * 32
STEPS_MAX = 500
DIED = 9


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("model")
    save_random(folder, "llama")
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def both(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Of another rank and another scale each: weights of one are none with the other's config."""
    found = []
    for rank, alpha in ((4, 8), (5, 11)):
        folder = tmp_path_factory.mktemp("adapter")
        random_adapter(folder, checkpoint.spec, rank=rank, alpha=alpha)
        found.append(read_bundle(folder, checkpoint.spec, MODEL))
    return found


class Tuned:
    """What `save_adapter` needs of a Tuner."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def save(self, folder: Path) -> None:
        write_peft(self._bundle, folder)


def dies_at(step: int, within: Path, work: Callable[[], None]) -> bool:
    """Whether a child of ours was killed at this step of what it does to files, or was done."""
    child = os.fork()
    if child == 0:
        done = 0

        def count(event: str, args: tuple[object, ...]) -> None:
            nonlocal done
            if event.startswith("ctypes.dlsym") or any(str(within) in str(one) for one in args):
                done += 1
                if done == step:
                    os._exit(DIED)

        sys.addaudithook(count)
        try:
            work()
        except BaseException:  # of any kind: this child must not go on as a second pytest
            traceback.print_exc()
            os._exit(1)  # which its parent takes for a failure
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, DIED)
    return bool(status)


def by_run(bundle: Bundle, out: Path) -> None:
    tuned: Any = Tuned(bundle)
    save_adapter(tuned, out)


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("save", [write_peft, by_run])
def test_whoever_is_killed_at_any_step_leaves_the_old_adapter_or_the_new_one(
    tmp_path: Path,
    checkpoint: Checkpoint,
    both: list[Bundle],
    save: Callable[[Bundle, Path], None],
    exchanges: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = both
    if not exchanges:
        monkeypatch.setattr(folders, "exchange", lambda one, other: False)
    elif not exchange(*(_folder(tmp_path / name) for name in ("a", "b"))):
        pytest.skip("this file system exchanges no names")
    found: list[bytes] = []
    for step in range(1, STEPS_MAX):
        home = tmp_path / str(step)
        home.mkdir()
        out = home / "tales"
        write_peft(old, out)
        (out / "README.md").write_text("of its owner")
        killed = dies_at(step, home, lambda: save(new, out))  # noqa: B023
        if exchanges:
            assert out.is_dir(), "PEFT finds it"
        found.append(read_bundle(out, checkpoint.spec, MODEL).name)
        if save is write_peft:
            assert (standing(out) / "README.md").read_text() == "of its owner"
        save(old, out)
        assert read_bundle(out, checkpoint.spec, MODEL) == old, "the next one is not in its way"
        shutil.rmtree(home)
        if not killed:
            break
    assert len(found) > 15 and found[-1] == new.name
    turned = found.index(new.name)
    assert found == [old.name] * turned + [new.name] * (len(found) - turned)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_first_one_is_there_as_a_whole_or_not_at_all(
    tmp_path: Path, checkpoint: Checkpoint, both: list[Bundle]
) -> None:
    for step in range(1, STEPS_MAX):
        home = tmp_path / str(step)
        out = home / "new" / "tales"
        killed = dies_at(step, home, lambda: write_peft(both[0], out))  # noqa: B023
        assert not out.exists() or read_bundle(out, checkpoint.spec, MODEL) == both[0]
        if not killed:
            assert out.is_dir()
            return
    raise AssertionError("it never ends")


def test_what_the_body_raises_leaves_all_as_it_was(tmp_path: Path, both: list[Bundle]) -> None:
    out = tmp_path / "tales"
    write_peft(both[0], out)
    before = (out / TENSORS).read_bytes()
    with pytest.raises(UserError), replaced(out) as made:
        (made / TENSORS).write_bytes(b"half")
        raise UserError("the disk is full")
    assert (out / TENSORS).read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["tales"]


def test_what_else_is_in_the_folder_stays_but_for_a_signature_of_other_files(
    tmp_path: Path, checkpoint: Checkpoint, both: list[Bundle]
) -> None:
    out = tmp_path / "tales"
    write_peft(both[0], out, IdentityKey.generate())
    (out / "runs" / "1").mkdir(parents=True)
    (out / "runs" / "1" / "loss").write_text("1.0")
    (out / "link").symlink_to("nowhere")
    assert (out / SIGNED).exists()
    write_peft(both[1], out)
    assert sorted(one.name for one in out.iterdir()) == [CONFIG, TENSORS, "link", "runs"]
    assert (out / "runs" / "1" / "loss").read_text() == "1.0"
    assert os.readlink(out / "link") == "nowhere"
    assert read_bundle(out, checkpoint.spec, MODEL) == both[1]


def test_a_link_goes_on_leading_to_the_folder(
    tmp_path: Path, checkpoint: Checkpoint, both: list[Bundle]
) -> None:
    link, folder = tmp_path / "latest", tmp_path / "one"
    folder.mkdir()
    link.symlink_to(folder)
    write_peft(both[0], link)
    write_peft(both[1], link)
    assert link.is_symlink() and read_bundle(folder, checkpoint.spec, MODEL) == both[1]


def test_a_folder_that_cannot_be_renamed_gets_its_files_one_by_one(
    tmp_path: Path,
    checkpoint: Checkpoint,
    both: list[Bundle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "mounted"
    write_peft(both[0], out, IdentityKey.generate())
    (out / "README.md").write_text("of its owner")
    inode = out.stat().st_ino
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    write_peft(both[1], out)
    assert out.stat().st_ino == inode
    assert sorted(one.name for one in out.iterdir()) == ["README.md", CONFIG, TENSORS]
    assert read_bundle(out, checkpoint.spec, MODEL) == both[1]


def test_what_the_killed_left_is_removed_once_it_is_old(tmp_path: Path, both: list[Bundle]) -> None:
    out = tmp_path / "tales"
    write_peft(both[0], out)
    for name in (".tales.1", ".tales.2.old", ".tales.3", ".tales.x", ".tales2.4"):
        (tmp_path / name).mkdir()
        if name != ".tales.3":
            os.utime(tmp_path / name, (1e9, 1e9))
    write_peft(both[1], out)
    left = sorted(one.name for one in tmp_path.iterdir())
    assert left == [".tales.3", ".tales.x", ".tales2.4", "tales"]
