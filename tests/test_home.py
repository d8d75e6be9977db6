"""A home is held by one process, and its files are whole."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from potluck.errors import UserError
from potluck.node.home import LOCK, hold_home, replace_file, write_whole
from potluck.node.identity import KEY_FILE, load_or_create, next_boot
from potluck.node.invite import found, load_private, save_private
from potluck.node.jobs.files import Files
from potluck.node.peerstore import load_known


def test_a_home_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with hold_home(tmp_path):
        with pytest.raises(UserError, match="give this one a --home"), hold_home(tmp_path):
            pass
        code = (
            "import pathlib, sys; from potluck.node.home import hold_home; "
            "hold_home(pathlib.Path(sys.argv[1])).__enter__()"
        )
        command = [sys.executable, "-P", "-c", code, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert "UserError" in done.stderr and done.returncode == 1
    with hold_home(tmp_path):
        pass


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        hold_home(tmp_path).__enter__()
        os.write(writing, b"!")
        signal.pause()
    assert os.read(reading, 1) == b"!"
    os.close(reading)
    os.close(writing)
    os.kill(child, 9)
    os.waitpid(child, 0)
    with hold_home(tmp_path):
        assert (tmp_path / LOCK).stat().st_mode & 0o077 == 0


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="cannot be used"), hold_home(tmp_path):
        pass


def test_a_file_that_cannot_be_replaced_stays_and_leaves_nothing_beside(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        replace_file(tmp_path / "folder", b"x")
    with pytest.raises(UserError, match="free the disk"):
        write_whole(tmp_path / "folder", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_system_without_posix_flags_reads_and_keeps_all_that_a_home_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows is, as far as that can be pretended: it has no such flags and no user numbers, and
    opens no folders."""
    for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY", "geteuid", "getuid"):
        monkeypatch.delattr(os, name)
    opened = os.open

    def opens_no_folder(path: str | Path, *how: int, **more: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied")
        return opened(path, *how, **more)

    monkeypatch.setattr(os, "open", opens_no_folder)
    monkeypatch.setattr(sys, "platform", "win32")
    me = load_or_create(tmp_path).peer_id
    (tmp_path / KEY_FILE).chmod(0o666)  # all that Windows tells of a file's mode
    assert load_or_create(tmp_path).peer_id == me
    assert next_boot(tmp_path, 7.0) < next_boot(tmp_path, 7.0)
    private = found()
    save_private(tmp_path, private)
    assert load_private(tmp_path) == private
    assert load_known(tmp_path) == ()
    kept = Files(tmp_path).put("a", "batch", b"x", 1.0)
    assert Files(tmp_path).all() == [kept]
