"""What is free: never more than the machine, or a group around this process, still has."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from potluck.errors import UserError
from potluck.node.compute import memory
from potluck.node.compute.memory import free_bytes, processors, require_memory

CPU = torch.device("cpu")
MIB = 1 << 20


def group(folder: Path, limit: str, used: int, files: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\nactive_file 7\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups of which this process is in user/me."""
    membership = tmp_path / "cgroup"
    membership.write_text("0::/user/me\n")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "_MEMBERSHIP", membership)
    return tmp_path / "groups"


def test_the_narrowest_group_counts_and_files_can_be_given_up(groups: Path) -> None:
    group(groups / "user", str(50 * MIB), 20 * MIB)
    group(groups / "user" / "me", str(40 * MIB), 25 * MIB, files=5 * MIB)
    assert free_bytes(CPU) == 20 * MIB
    group(groups / "user", str(50 * MIB), 40 * MIB)
    assert free_bytes(CPU) == 10 * MIB
    group(groups / "user", str(50 * MIB), 60 * MIB)
    assert free_bytes(CPU) == 0


def test_without_limits_it_is_what_the_machine_has(groups: Path) -> None:
    group(groups / "user" / "me", "max", 25 * MIB)
    free = free_bytes(CPU)
    assert 0 < free <= psutil.virtual_memory().total


def test_a_refusal_has_figures(groups: Path) -> None:
    group(groups / "user" / "me", str(40 * MIB), 20 * MIB)
    require_memory(18 * MIB, CPU, "blocks 0:4")
    with pytest.raises(UserError, match=r"blocks 0:4 needs 20 MiB on cpu, but 20 MiB are free"):
        require_memory(20 * MIB, CPU, "blocks 0:4")


def test_there_is_a_processor() -> None:
    assert 1 <= processors() <= psutil.cpu_count()


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (("max 100000", "200000 100000"), 2),
        (("150000 100000", "max 100000"), 2),  # one and a half: both are of use
        (("50000 100000", "800000 100000"), 1),
        (("max 100000", "what?"), 8),
    ],
)
def test_a_containers_share_of_the_processors_is_not_exceeded(
    groups: Path, monkeypatch: pytest.MonkeyPatch, limits: tuple[str, str], expected: int
) -> None:
    monkeypatch.setattr(memory.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for folder, limit in zip((groups / "user", groups / "user" / "me"), limits, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(limit + "\n")
    assert processors() == expected
