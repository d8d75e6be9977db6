"""generate --receipt FILE: a file that cannot be written is told of before anything is asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from potluck.cli import answer as command
from potluck.cli.main import main
from potluck.cli.receipt import check_place, write_receipt
from potluck.errors import UserError


@pytest.mark.parametrize("where", ["none/answer.receipt", "", "file/answer.receipt", "a" * 300])
def test_an_unwritable_file_is_one_line_before_the_answer_begins(
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A folder that is not there, a folder itself, what is no folder, and too long a name."""

    def asked(*args: object) -> None:
        raise AssertionError("the swarm was asked")

    (tmp_path / "file").touch()
    monkeypatch.setattr(command.trio, "run", asked)
    file = tmp_path / where
    code = main(
        ["generate", "Hello", "-m", "demo", "--home", str(tmp_path), "--receipt", str(file)]
    )
    said = capsys.readouterr()
    assert code == 2 and said.out == ""
    (line,) = said.err.splitlines()
    assert str(file) in line and "--receipt" in line


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_ours_is_told_of(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        check_place(tmp_path / "answer.receipt")
    tmp_path.chmod(0o700)


def test_a_receipt_replaces_another_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    file = tmp_path / "answer.receipt"
    file.write_bytes(b"old")
    check_place(file)
    assert file.read_bytes() == b"old"
    write_receipt(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_disk_that_fills_up_meanwhile_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "answer.receipt"
    file.write_bytes(b"old")

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        write_receipt(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
