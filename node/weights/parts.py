"""One weight file as far as it is here: its checked pieces in their places, and a journal of them.

    home/weights/<sha256>/data       as long as the whole file, holes where no piece is yet
                          pieces     a record a piece: index │ vouched │ digest │ sum; only appended
                          about      what it is; and where it lies, if it is not ours

A piece is checked, written, and on the disk before its record is, so that after kill -9, or a power
cut, whatever the journal names is there, and nothing that was checked is fetched again. A record
that was cut off is dropped with what follows. A file that lies elsewhere, in the hub's cache or a
folder of its owner's, is never copied: it is read where it is. Everything here blocks for files.
"""

from __future__ import annotations

import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from ...errors import RemoteError, UserError
from ...swarm.chunk import CHUNK_BYTES, Chunk, check, digest_of
from ...swarm.weights import Table, piece_bytes, pieces_of, table_of
from ..chunks.store import replace_durably
from ..compute.hub import ABOUT as ABOUT
from ..compute.hub import DATA as DATA
from ..home import replace_file

PIECES: Final = "pieces"
_RECORD_BYTES: Final = 4 + 1 + 32 + 4


@dataclass(frozen=True, slots=True)
class About:
    """sha256: hex. model, name: as people call it. elsewhere: its path when it is not ours, and
    then its stamp. whole: its sha256 was checked. used_s: last opened, unix seconds."""

    sha256: str
    size: int
    model: str
    name: str
    elsewhere: str = ""
    stamp: tuple[int, int, int] = (0, 0, 0)
    whole: bool = False
    used_s: float = 0.0


Changed = Callable[["PieceFile", int, bytes], None]  # a piece has come


class PieceFile:
    """Usable from several threads at once; one process writes (library.py)."""

    def __init__(self, folder: Path, about: About) -> None:
        """Raises UserError."""
        self.folder = folder
        self.about = about
        self.sha256 = bytes.fromhex(about.sha256)
        self.size = about.size
        self.came: Changed = lambda file, index, name: None
        self._lock = threading.RLock()
        self._had: dict[int, tuple[bytes, bool]] = {}
        try:
            self._read_journal()
        except OSError as error:
            raise _refused(folder, error) from error

    @property
    def path(self) -> Path:
        """Where its bytes are."""
        return Path(self.about.elsewhere) if self.about.elsewhere else self.folder / DATA

    @property
    def count(self) -> int:
        return pieces_of(self.size)

    def had(self) -> dict[int, bytes]:
        """The pieces that are here, by index."""
        with self._lock:
            return {index: name for index, (name, _) in self._had.items()}

    def vouched(self) -> dict[int, bytes]:
        """Those that were checked against the root."""
        with self._lock:
            return {index: name for index, (name, ours) in self._had.items() if ours}

    def lacks(self, wanted: Iterable[int]) -> list[int]:
        with self._lock:
            return [index for index in wanted if index not in self._had]

    def bytes_here(self) -> int:
        """Of its pieces on this disk, that are ours to remove."""
        if self.about.elsewhere:
            return 0
        with self._lock:
            return sum(piece_bytes(self.size, index) for index in self._had)

    def table(self) -> Table:
        """What to tell others of it."""
        with self._lock:
            return table_of(self.sha256, self.size, self._had)

    def open(self) -> Path:
        """Its path; the file is as long as it will be. Raises UserError."""
        if not self.about.elsewhere:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab") as file:
                    if file.tell() != self.size:
                        file.truncate(self.size)
            except OSError as error:
                raise _refused(self.path, error) from error
        self.note(replace(self.about, used_s=time.time()))
        return self.path

    def put(self, index: int, raw: bytes, *, vouched: bool) -> bytes:
        """Keep a piece that was checked; its digest. Raises UserError when the disk refuses, and
        then it is not here."""
        if len(raw) != piece_bytes(self.size, index):
            raise RemoteError(f"a piece of {len(raw)} bytes")
        if self.about.elsewhere:
            raise UserError(f"{self.path}: is damaged, and not ours to mend; download it again")
        name = digest_of(raw)
        try:
            with self._lock:
                if self._had.get(index) == (name, vouched):
                    return name
                with self.path.open("r+b") as file:
                    file.seek(index * CHUNK_BYTES)
                    file.write(raw)
                    file.flush()
                    os.fsync(file.fileno())
                with (self.folder / PIECES).open("ab") as journal:
                    journal.write(_record(index, name, vouched))
                self._had[index] = (name, vouched)
        except OSError as error:
            raise _refused(self.path, error) from error
        self.came(self, index, name)
        return name

    def piece(self, index: int) -> bytes | None:
        """Its bytes; None when it is not here, or damaged: then it is forgotten."""
        with self._lock:
            known = self._had.get(index)
        if known is None:
            return None
        try:
            with self.path.open("rb") as file:
                file.seek(index * CHUNK_BYTES)
                raw = file.read(piece_bytes(self.size, index))
        except OSError:
            raw = b""
        if raw and digest_of(raw) == known[0]:
            return raw
        self.forget([index])
        return None

    def forget(self, indices: Collection[int]) -> None:
        """These are not here any more, as far as anybody is told. Raises UserError."""
        with self._lock:
            gone = set(indices)
            self._rewrite({i: one for i, one in self._had.items() if i not in gone}, whole=False)

    def vouch_all(self) -> None:
        """Its sha256 was found right: every piece is what the root has. Raises UserError."""
        with self._lock:
            self._rewrite({i: (name, True) for i, (name, _) in self._had.items()}, whole=True)

    def adopt(self, names: Mapping[int, bytes], about: About) -> None:
        """All of it lies elsewhere, whole and checked. Our own pieces are given up. Raises
        UserError."""
        with self._lock:
            with suppress(OSError):
                (self.folder / DATA).unlink(missing_ok=True)
            self.about = about
            self._rewrite({index: (name, True) for index, name in names.items()}, whole=True)
        for index, name in names.items():
            self.came(self, index, name)

    def note(self, about: About) -> None:
        """Write down what it is, when that changed. Raises UserError."""
        if about == self.about and (self.folder / ABOUT).exists():
            return
        self.about = about
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(self.folder / ABOUT, json.dumps(asdict(about), indent=1).encode())
        except OSError as error:
            raise _refused(self.folder, error) from error

    def remove(self) -> int:
        """Take it off this disk, what is not ours excepted; how many bytes that frees."""
        freed = self.bytes_here()
        with self._lock, suppress(OSError):
            self._had.clear()
            for path in (self.folder / PIECES, self.folder / DATA, self.folder / ABOUT):
                path.unlink(missing_ok=True)  # the journal first: what it names is there
            self.folder.rmdir()
        return freed

    def _rewrite(self, had: dict[int, tuple[bytes, bool]], *, whole: bool) -> None:
        raw = b"".join(_record(index, name, ours) for index, (name, ours) in had.items())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_durably(self.folder / PIECES, raw)
        except OSError as error:
            raise _refused(self.folder, error) from error
        self._had = had
        self.note(replace(self.about, whole=whole))

    def _read_journal(self) -> None:
        path = self.folder / PIECES
        if not path.exists() or (not self.about.elsewhere and not self.path.exists()):
            return
        raw = path.read_bytes()
        good = 0
        for at in range(0, len(raw) - _RECORD_BYTES + 1, _RECORD_BYTES):
            record = raw[at : at + _RECORD_BYTES]
            index, ours = int.from_bytes(record[:4]), record[4]
            if zlib.crc32(record[:-4]) != int.from_bytes(record[-4:]) or index >= self.count:
                break
            self._had[index] = (record[5:-4], bool(ours))
            good = at + _RECORD_BYTES
        if good < len(raw) and not self.about.elsewhere:
            os.truncate(path, good)


def _record(index: int, name: bytes, vouched: bool) -> bytes:
    head = index.to_bytes(4) + bytes((vouched,)) + name
    return head + zlib.crc32(head).to_bytes(4)


class Into:
    """A fetch's chunks as pieces of one file (chunks/fetch.py, Store)."""

    def __init__(self, file: PieceFile, places: Mapping[bytes, Collection[int]]) -> None:
        """places: where each digest belongs; the same bytes may stand in several."""
        self.file = file
        self.folder = file.folder
        self.bytes_max = 1 << 62  # room was made before (library.py)
        self._places = places

    def lacks(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        return [one for one in dict.fromkeys(chunks) if self.file.lacks(self._places[one.digest])]

    def put(self, chunk: Chunk, raw: bytes) -> None:
        """Raises RemoteError unless these are its bytes, UserError when the disk refuses."""
        check(chunk, raw)
        for index in self.file.lacks(self._places[chunk.digest]):
            self.file.put(index, raw, vouched=False)

    def used_bytes(self) -> int:
        return 0


def _refused(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be used ({error.strerror}); free or mend the disk")
