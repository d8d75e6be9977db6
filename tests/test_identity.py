"""The identity on disk: made once, read by its owner only, and never half-written."""

import errno
import os
from pathlib import Path

import pytest

from potluck.errors import UserError
from potluck.node.identity import BOOT_FILE, KEY_FILE, load_or_create, next_boot


def left_over(home: Path) -> set[str]:
    return {path.name for path in home.iterdir()} - {KEY_FILE, BOOT_FILE}


def test_the_first_start_makes_a_key_and_the_next_finds_it(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    key = load_or_create(home)
    assert load_or_create(home).peer_id == key.peer_id
    assert (home / KEY_FILE).read_bytes() == key.seed()
    assert (home / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    assert not left_over(home)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o601])
def test_a_key_that_others_can_touch_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    load_or_create(tmp_path)
    (tmp_path / KEY_FILE).chmod(mode)
    with pytest.raises(UserError, match="chmod 600"):
        load_or_create(tmp_path)


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_corrupt_key_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / KEY_FILE
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UserError, match="corrupt"):
        load_or_create(tmp_path)
    assert path.read_bytes() == content


def test_a_link_or_a_folder_in_the_place_of_the_key_is_refused(tmp_path: Path) -> None:
    real = tmp_path / "real"
    load_or_create(real)
    for name, make in [("link", os.symlink), ("folder", lambda _, at: os.mkdir(at))]:
        home = tmp_path / name
        home.mkdir()
        make(real / KEY_FILE, home / KEY_FILE)
        with pytest.raises(UserError, match=KEY_FILE):
            load_or_create(home)


def test_of_two_first_starts_at_once_one_key_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link
    first = []

    def other_was_first(source: str, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        first.append(load_or_create(tmp_path))
        link(source, target)

    monkeypatch.setattr(os, "link", other_was_first)
    assert load_or_create(tmp_path).peer_id == first[0].peer_id
    assert not left_over(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_or_read_only_disk_is_said_in_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    for start in (lambda: load_or_create(tmp_path), lambda: next_boot(tmp_path, 5.0)):
        with pytest.raises(UserError, match=os.strerror(code)) as refused:
            start()
        assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(UserError):
        load_or_create(tmp_path / "home")
    with pytest.raises(UserError):
        next_boot(tmp_path / "home", 5.0)


def test_a_boot_number_only_grows_whatever_the_clock_does(tmp_path: Path) -> None:
    clock = [1000.9, 1000.0, 500.0, 2000.0, 2000.5, -7.0]
    assert [next_boot(tmp_path, now) for now in clock] == [1000, 1001, 1002, 2000, 2001, 2002]
    assert not left_over(tmp_path)


def test_a_boot_number_survives_a_disk_restored_from_an_old_copy(tmp_path: Path) -> None:
    """The clock carries on where the disk went back: no number is used twice."""
    old = next_boot(tmp_path, 1000.0)
    copy = (tmp_path / BOOT_FILE).read_bytes()
    used = next_boot(tmp_path, 1050.0)
    (tmp_path / BOOT_FILE).write_bytes(copy)
    assert old < used < next_boot(tmp_path, 1060.0)


@pytest.mark.parametrize("content", [b"", b"soon", b"1.5", b"9" * 20, b"\xff"])
def test_a_corrupt_boot_number_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / BOOT_FILE).write_bytes(content)
    with pytest.raises(UserError, match="remove it"):
        next_boot(tmp_path, 1000.0)
    assert (tmp_path / BOOT_FILE).read_bytes() == content
