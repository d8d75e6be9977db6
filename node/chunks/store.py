"""Chunks on disk, each in a file that bears its digest: whole or not there, and checked when read.

    folder/ab/ab3f...        written beside, to the disk, then renamed (node/home.py's way)

A file is only ever made of bytes that were checked, so after kill -9 all that is there need not be
fetched again; and since a disk may err, it is checked once more by whoever reads it. Everything
here blocks for files.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from ...errors import UserError
from ...swarm.chunk import CHUNK_BYTES_MAX, Chunk, check, digest_of

_UNFINISHED: Final = "."  # how the names of files begin that are being written


class ChunkStore:
    """One to a folder, of one process. Usable from several threads at once."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        """bytes_max: of all chunks together. Raises UserError."""
        self.folder = folder
        self.bytes_max = bytes_max
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in self._paths(unfinished=True):
                path.unlink(missing_ok=True)  # of a process that was killed
        except OSError as error:
            raise _refused(folder, error) from error

    def has(self, chunk: Chunk) -> bool:
        """Whether it is here, as far as its size tells."""
        try:
            return self._path(chunk.digest).stat().st_size == chunk.size
        except OSError:
            return False

    def lacks(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Those that are not here, each once."""
        return [one for one in dict.fromkeys(chunks) if not self.has(one)]

    def put(self, chunk: Chunk, raw: bytes | bytearray | memoryview) -> None:
        """Keep it. Raises RemoteError unless these are its bytes, UserError when the disk refuses;
        then nothing of it is left."""
        check(chunk, raw)
        if self.has(chunk):
            return
        path = self._path(chunk.digest)
        try:
            path.parent.mkdir(exist_ok=True)
            replace_durably(path, raw)
        except OSError as error:
            raise _refused(path, error) from error

    def get(self, name: bytes) -> bytes | None:
        """Its bytes; None when it is not here, or is damaged, and then it is gone."""
        path = self._path(name)
        try:
            with path.open("rb") as file:
                raw = file.read(CHUNK_BYTES_MAX + 1)
        except OSError:
            return None
        if digest_of(raw) == name:
            return raw
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None

    def used_bytes(self) -> int:
        """Of all chunks that are here."""
        return sum(_size(path) for path in self._paths())

    def keep_only(self, names: Collection[bytes]) -> int:
        """Remove all other chunks; how many bytes that frees."""
        freed, kept = 0, {name.hex() for name in names}
        for path in list(self._paths()):
            if path.name not in kept:
                freed += _size(path)
                with suppress(OSError):  # it is removed the next time
                    path.unlink(missing_ok=True)
        return freed

    def _path(self, name: bytes) -> Path:
        text = name.hex()
        return self.folder / text[:2] / text

    def _paths(self, *, unfinished: bool = False) -> Iterator[Path]:
        for path in self.folder.glob("??/*"):
            if path.name.startswith(_UNFINISHED) == unfinished:
                yield path


def replace_durably(path: Path, raw: bytes | bytearray | memoryview) -> None:
    """As node/home.py's `replace_file`, and on the disk when this returns. Raises OSError."""
    beside = path.with_name(f"{_UNFINISHED}{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _refused(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror}); free the disk")
