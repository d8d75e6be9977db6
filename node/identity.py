"""Who this node is, on disk: its key, and how often it has started.

    home/identity.key    32 secret bytes, mode 0600, written once
    home/boot            the last boot number, decimal

The key never changes, so it is created exclusively and never replaced. The boot number only grows:
max(unix seconds, last + 1), written and synced before it is used, so that no two runs of a node
ever sign under the same one, even when the clock or the disk was set back.
"""

import os
import stat
import sys
import tempfile
from pathlib import Path

from ..crypto.keys import SEED_BYTES, IdentityKey
from ..errors import UserError
from .home import open_file, sync_folder

KEY_FILE = "identity.key"
BOOT_FILE = "boot"
BOOT_MAX = 2**32 - 1  # u32 on the wire (dht/record.py)


def load_or_create(home: Path) -> IdentityKey:
    """The identity of this home, made on the first start.

    Raises UserError when the key can be read by others, is corrupt, or the home cannot be written.
    """
    path = home / KEY_FILE
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _load(path) if os.path.lexists(path) else _create(path)
    except OSError as broken:
        raise UserError(_disk_fault(broken, path)) from None


def load_if_any(home: Path) -> IdentityKey | None:
    """The identity of this home; None when no node has run there. Raises UserError."""
    path = home / KEY_FILE
    try:
        return _load(path) if os.path.lexists(path) else None
    except OSError as broken:
        raise UserError(_disk_fault(broken, path)) from None


def next_boot(home: Path, now: float) -> int:
    """The number of this run, greater than every one before; `now` in unix seconds.

    Raises UserError when it cannot be kept, because a number that is used twice would make this
    peer look like a forger of its own records.
    """
    path = home / BOOT_FILE
    try:
        last = int(path.read_bytes()[:20]) if path.exists() else 0
    except ValueError:
        raise UserError(f"{path} is not a number: remove it to start afresh") from None
    except OSError as broken:
        raise UserError(_disk_fault(broken, path)) from None
    boot = max(int(now), last + 1)
    if not 0 < boot <= BOOT_MAX:
        raise UserError(f"{path} says {last}, which is impossible: remove it to start afresh")
    try:
        _write_synced(path, b"%d\n" % boot, exclusive=False)
    except OSError as broken:
        raise UserError(_disk_fault(broken, path)) from None
    return boot


def _load(path: Path) -> IdentityKey:
    descriptor = open_file(path, follow=False)
    try:
        status = os.fstat(descriptor)
        seed = os.read(descriptor, SEED_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a file: remove it, and a new identity is made")
    if sys.platform != "win32" and status.st_uid != os.geteuid():
        raise UserError(f"{path} belongs to another user: run as that user, or chown it")
    if sys.platform != "win32" and status.st_mode & 0o077:
        raise UserError(f"{path} can be read by others: chmod 600 {path}")
    if len(seed) != SEED_BYTES:
        raise UserError(f"{path} is corrupt: restore it, or remove it to become a new peer")
    return IdentityKey.from_bytes(seed)


def _create(path: Path) -> IdentityKey:
    key = IdentityKey.generate()
    try:
        _write_synced(path, key.seed(), exclusive=True)
    except FileExistsError:  # another process of this home was first: its key is the one
        return _load(path)
    return key


def _write_synced(path: Path, content: bytes, *, exclusive: bool) -> None:
    """Put `content` at `path` whole or not at all, mode 0600, on the disk when this returns.

    exclusive: FileExistsError when something is there already. Nothing half-written is left.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # O_EXCL, 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            os.link(name, path)  # unlike rename, link refuses to replace
        else:
            os.replace(name, path)
    finally:
        if os.path.lexists(name):
            os.unlink(name)
    sync_folder(path.parent)


def _disk_fault(broken: OSError, path: Path) -> str:
    reason = broken.strerror or str(broken)
    return f"cannot use {path} ({reason}): free or repair that disk, or choose another --home"
