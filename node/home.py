"""A node's home on disk: made for its owner alone, held by one process, written in one go.

home/lock    held for as long as a process runs under this key: the system lets go of it however
             the process ends, so nothing is left to clean up
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from ..errors import UserError

LOCK = "lock"


def prepare_home(home: Path) -> None:
    """Make the home, for its owner alone. Raises UserError."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{home}: cannot be made ({error.strerror}); give another --home"
        ) from error


@contextmanager
def hold_home(home: Path) -> Iterator[None]:
    """Be the only one to run under this home. Raises UserError when another process does."""
    path = home / LOCK
    lock = filelock.FileLock(path, timeout=0, mode=0o600)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(
            f"another process runs under {home} already: give this one a --home of its own"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be used ({error.strerror}); mend or remove it") from error
    except NotImplementedError as error:
        raise UserError(f"{path}: cannot be locked; choose a --home on a local disk") from error
    try:
        yield
    finally:
        lock.release()


def open_file(path: Path, *, follow: bool = True) -> int:
    """A descriptor to read from. A pipe of this name is not waited for, no child inherits it, and
    without `follow` a link is none; a system that has none of these flags needs none. Raises
    OSError."""
    names = ["O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOINHERIT"]
    flags = os.O_RDONLY
    for name in names if follow else (*names, "O_NOFOLLOW"):
        flags |= getattr(os, name, 0)
    return os.open(path, flags)


def sync_folder(folder: Path) -> None:
    """What was made or renamed in it is on the disk. Windows opens no folder, and its journal does
    that by itself. Raises OSError."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one go. Raises UserError when the disk refuses."""
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free the disk") from error


def replace_file(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """The file has its old content or the new one, never a part. Raises OSError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.touch(mode)
        beside.write_bytes(content)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
