"""All weight files that a home knows of: its own pieces, and whole files that lie elsewhere.

    home/weights/<sha256>/    one of each (parts.py)
    home/weights/lock         held by the one process that writes here

By digest any piece of any of them is found, for whoever asks (chunks/serve.py): by range out of the
file where it lies, and checked once more before it leaves. What is beyond the owner's budget goes
by swarm/eviction.py; what lies elsewhere counts nothing, and never goes. Everything here blocks.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import filelock

from ...errors import UserError
from ...swarm.chunk import CHUNK_BYTES, digest_of
from ...swarm.eviction import Kept, to_evict
from ...swarm.weights import PIECES_MAX, Table, pieces_of
from ..compute.hub import PULLED
from ..home import prepare_home
from ..log import get_logger
from .parts import ABOUT, About, PieceFile

WEIGHTS: Final = PULLED
LOCK: Final = "lock"
DISK_LEFT_BYTES: Final = 1 << 30  # compute/quant/larder.py's: a volunteer's disk is not for filling

log = get_logger()
Copies = Callable[[About], int]  # how many others have such a file


class Library:
    """Of one home. bytes_max: of pieces that are ours; 0: what the disk has."""

    def __init__(self, home: Path, bytes_max: int = 0) -> None:
        """Raises UserError."""
        self.root = home / WEIGHTS
        self.bytes_max = bytes_max
        self.copies: Copies = lambda about: 0
        self._files: dict[bytes, PieceFile] = {}
        self._places: dict[bytes, tuple[PieceFile, int]] = {}
        self._lock = threading.RLock()
        self._in_use: set[bytes] = set()
        for about in listed(home):
            file = PieceFile(self.root / about.sha256, about)
            if _is_gone(about):
                file.remove()
            else:
                self._add(file)

    def file(self, sha256: bytes) -> PieceFile | None:
        with self._lock:
            return self._files.get(sha256)

    def uses(self, sha256: bytes) -> bool:
        """Whether it is not to go while we run."""
        return sha256 in self._in_use

    def files(self) -> list[PieceFile]:
        with self._lock:
            return list(self._files.values())

    def have(self, about: About) -> PieceFile:
        """The file of this sha256, with whatever is here of it; it stays while we run. Raises
        UserError."""
        if about.size < 1 or pieces_of(about.size) > PIECES_MAX:
            raise UserError(f"{about.name}: {about.size} bytes, which is no weight file's size")
        with self._lock:
            sha256 = bytes.fromhex(about.sha256)
            file = self._files.get(sha256)
            if file is not None and _is_gone(file.about):
                self.remove(sha256)
                file = None
            if file is None:
                file = PieceFile(self.root / about.sha256, about)
                self._add(file)
            elif file.size != about.size:
                raise UserError(f"{about.name}: the hub tells two sizes of one sha256")
            old = file.about
            file.note(replace(
                about, elsewhere=old.elsewhere, stamp=old.stamp, whole=old.whole,
                used_s=old.used_s,
            ))  # fmt: skip
            self._in_use.add(file.sha256)
            file.open()
            return file

    def adopt(self, path: Path, about: About) -> PieceFile | None:
        """A whole file that lies elsewhere is ours to give. Read once, when it has changed since.
        None where it is not what its sha256 says."""
        real = path.resolve()
        sha256 = bytes.fromhex(about.sha256)
        with self._lock:
            known = self._files.get(sha256)
        stamp = _stamp(real)
        if known is not None and known.about.elsewhere == str(real) and known.about.stamp == stamp:
            self._in_use.add(sha256)
            return known
        found = _read_whole(real)
        if found is None or found[0] != about.sha256 or stamp != _stamp(real):
            log.warning("not given to others: not what its digest says", path=str(real))
            return None
        told = replace(about, elsewhere=str(real), stamp=stamp, used_s=time.time())
        with self._lock:
            file = self._files.get(sha256) or PieceFile(self.root / about.sha256, told)
            file.came = self._came
            self._files[sha256] = file
            self._in_use.add(sha256)
            file.adopt(found[1], told)
            return file

    def whole(self, file: PieceFile) -> bool:
        """Whether the file is here whole and its sha256 right; then we vouch for all of it. What is
        wrong is for the caller to find out. Raises UserError."""
        if file.lacks(range(file.count)):
            return False
        if file.about.whole:
            return True
        found = _read_whole(file.path)
        if found is None or found[0] != file.about.sha256:
            return False
        file.vouch_all()
        return True

    def get(self, name: bytes) -> bytes | None:
        """A piece, for whoever asks (chunks/serve.py)."""
        with self._lock:
            place = self._places.get(name)
        if place is None:
            return None
        raw = place[0].piece(place[1])
        return raw if raw is not None and digest_of(raw) == name else None

    def table(self, sha256: bytes) -> Table | None:
        file = self.file(sha256)
        return None if file is None or not file.had() else file.table()

    def used_bytes(self) -> int:
        return sum(file.bytes_here() for file in self.files())

    def fits(self, size: int) -> bool:
        """Whether so many bytes may come without that anything goes."""
        used = self.used_bytes()
        return used + size <= self._budget(used)

    def _budget(self, used: int) -> int:
        self.root.mkdir(parents=True, exist_ok=True)
        budget = used + shutil.disk_usage(self.root).free - DISK_LEFT_BYTES
        return min(budget, self.bytes_max) if self.bytes_max else budget

    def make_room(self, size: int, keep: Collection[bytes] = ()) -> list[About]:
        """Have so many bytes free, in the budget and on the disk; what had to go. keep: beside what
        is in use. Raises UserError when that cannot be."""
        with self._lock:
            kept = self._kept(keep)
            used = sum(one.size for one in kept)
            budget = self._budget(used)
            gone = to_evict(kept, size, budget)
            if gone is None:
                raise UserError(
                    f"{size} bytes of weights are to come to {self.root}, where {used} are and"
                    f" {max(0, budget)} may be: allow more by --max-weights, or free the disk"
                )
            return self._evict(gone)

    def prune(self, keep_bytes: int = 0) -> list[About]:
        """Remove what is not in use until no more than so many bytes are left, if that can be."""
        with self._lock:
            kept = self._kept(())
            least = sum(one.size for one in kept if one.in_use)
            return self._evict(to_evict(kept, 0, max(keep_bytes, least)) or [])

    def _kept(self, keep: Collection[bytes]) -> list[Kept]:
        found = []
        for file in self.files():
            used = file.sha256 in self._in_use or file.sha256 in keep
            about = file.about
            copies = self.copies(about)
            found.append(Kept(about.sha256, file.bytes_here(), copies, about.used_s, used))
        return found

    def _evict(self, gone: list[Kept]) -> list[About]:
        found = []
        for one in gone:
            about = self._files[bytes.fromhex(one.name)].about
            log.info("weights removed", file=about.name, copies=one.copies, bytes=one.size)
            self.remove(bytes.fromhex(one.name))
            found.append(about)
        return found

    def remove(self, sha256: bytes) -> int:
        """Have nothing of it any more, but what is not ours; how many bytes that frees."""
        with self._lock:
            file = self._files.pop(sha256, None)
            self._in_use.discard(sha256)
            self._places = {n: at for n, at in self._places.items() if at[0] is not file}
            return 0 if file is None else file.remove()

    def _add(self, file: PieceFile) -> None:
        file.came = self._came
        self._files[file.sha256] = file
        for index, name in file.had().items():
            self._places[name] = (file, index)

    def _came(self, file: PieceFile, index: int, name: bytes) -> None:
        with self._lock:
            self._places[name] = (file, index)


def listed(home: Path) -> Iterator[About]:
    """What is in a home, by what is written down there; no process is asked."""
    for path in sorted((home / WEIGHTS).glob(f"*/{ABOUT}")):
        try:
            told = json.loads(path.read_bytes())
            about = About(**(told | {"stamp": tuple(told["stamp"])}))
            if path.parent.name == about.sha256 and len(bytes.fromhex(about.sha256)) == 32:
                yield about
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("weights passed over", path=str(path), why=str(error)[:80])


@contextmanager
def hold_weights(home: Path) -> Iterator[None]:
    """Be the only one to write there. Raises UserError when another process does."""
    prepare_home(home)
    folder = home / WEIGHTS
    try:
        folder.mkdir(exist_ok=True)
        lock = filelock.FileLock(folder / LOCK, timeout=0, mode=0o600)
        lock.acquire()
    except filelock.Timeout:
        raise UserError(
            f"{folder}: a node, or another pull, works there: stop it first (a node fetches what it"
            " serves by itself)"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise UserError(f"{folder}: cannot be used ({error}); mend or remove it") from error
    try:
        yield
    finally:
        if [one.name for one in folder.iterdir()] == [LOCK]:  # nothing came: nothing is left
            with suppress(OSError):
                (folder / LOCK).unlink()
                folder.rmdir()
        lock.release()


def _read_whole(path: Path) -> tuple[str, dict[int, bytes]] | None:
    """(sha256 in hex, the digests of its pieces)."""
    whole, names = hashlib.sha256(), {}
    with suppress(OSError), path.open("rb", buffering=0) as file:
        with suppress(AttributeError, OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        index = 0
        while raw := _read_piece(file.read):
            whole.update(raw)
            names[index] = digest_of(raw)
            index += 1
        return whole.hexdigest(), names
    return None


def _read_piece(read: Callable[[int], bytes | None]) -> bytes:
    """As much as a piece has: a raw file may give less than it was asked for."""
    found = bytearray()
    while len(found) < CHUNK_BYTES and (part := read(CHUNK_BYTES - len(found))):
        found += part
    return bytes(found)


def _is_gone(about: About) -> bool:
    """Whether a file that lies elsewhere has changed, or is not there any more."""
    return bool(about.elsewhere) and _stamp(Path(about.elsewhere)) != about.stamp


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return found.st_size, found.st_mtime_ns, found.st_ino
