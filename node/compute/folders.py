"""A folder that is replaced as a whole: at every moment it is what it was, or what it is to be.

    a folder beside, filled and synced ─▶ exchanged with the one that is there ─▶ that one removed

Linux and macOS exchange two names in one step (renameat2, renamex_np). Where they cannot, the old
one steps aside first, under a name by which `standing` finds it, for whoever is killed between two
renames. A folder that cannot be renamed, such as one that is mounted, gets its files one by one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Final

from ..home import sync_folder

_ASIDE: Final = ".old"
_LEFT_S: Final = 3600.0  # guess: then whoever was writing it is no more
_EXCHANGE: Final = 2  # RENAME_EXCHANGE and RENAME_SWAP alike
_HERE: Final = -100  # AT_FDCWD
_CANNOT: Final = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)


@contextmanager
def replaced(folder: Path, keeping: Collection[str] | None = None) -> Iterator[Path]:
    """One that is empty, for the body to fill; then it takes the place of `folder`, as a whole.

    keeping: the names that the body writes, of files; all else that is there stays. None: nothing
    does. Raises OSError; then, and after whatever the body raises, all is as it was.
    """
    folder = Path(os.path.realpath(folder))  # a link goes on leading there
    folder.parent.mkdir(parents=True, exist_ok=True)
    fixed = folder.is_dir() and (os.path.ismount(folder) or not os.access(folder.parent, os.W_OK))
    place = folder / folder.name if fixed else folder
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    _sweep(place)
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        yield beside
        before = standing(folder)
        if keeping is not None and not fixed and before.is_dir():
            _link_all(before, beside, besides=keeping)
        _sync(beside)
        if fixed:
            _move_all(beside, folder, keeping or ())
        else:
            _put(beside, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def standing(folder: Path) -> Path:
    """Where what `folder` was is to be read, after a kill between two renames."""
    if folder.exists():
        return folder
    return max(folder.parent.glob(f".{escape(folder.name)}.*{_ASIDE}"), default=folder)


def exchange(one: Path, other: Path) -> bool:
    """Both names change places in one step; whether this system can. Raises OSError."""
    if sys.platform not in ("linux", "darwin"):
        return False
    system = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "linux":
            failed = system.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE)
        else:
            failed = system.renamex_np(*names, _EXCHANGE)
    except AttributeError:  # an old C library
        return False
    if not failed:
        return True
    why = ctypes.get_errno()
    if why in _CANNOT:
        return False
    raise OSError(why, os.strerror(why), str(other))


def _put(beside: Path, folder: Path) -> None:
    """Behind it, `beside` is what `folder` was, or is not there."""
    if not os.path.lexists(folder):
        beside.rename(folder)
        return
    shutil.copymode(folder, beside)
    if exchange(beside, folder):
        return
    aside = beside.with_name(beside.name + _ASIDE)
    folder.rename(aside)
    try:
        beside.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    aside.rename(beside)


def _move_all(beside: Path, folder: Path, names: Collection[str]) -> None:
    written = sorted(path.name for path in beside.iterdir())
    for name in written:
        (beside / name).replace(folder / name)
    for name in {*names} - {*written}:
        (folder / name).unlink(missing_ok=True)


def _link_all(folder: Path, beside: Path, besides: Collection[str]) -> None:
    """What the body did not write: as links where the disk has them, so that it costs nothing."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            shutil.copy2(source, target, follow_symlinks=False)

    for path in folder.iterdir():
        if path.name in besides:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, beside / path.name, symlinks=True, copy_function=link)
        else:
            link(str(path), str(beside / path.name))


def _sweep(folder: Path) -> None:
    """Remove what others left that were killed."""
    if not folder.exists():
        return  # one of them may be all that there is
    for path in folder.parent.glob(f".{escape(folder.name)}.*"):
        number = path.name.removeprefix(f".{folder.name}.").removesuffix(_ASIDE)
        with suppress(OSError):
            if number.isdecimal() and time.time() - path.stat().st_mtime > _LEFT_S:
                shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
