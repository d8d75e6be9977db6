"""Files that clients upload, for batches and runs: each whole or not there at all, within bounds.

    home/files/<id>/content      the bytes, as they came
    home/files/<id>/about        name, purpose, size, time, as JSON
    home/files/.<id>.<pid>/      the same on its way; what a killed process left is swept

A folder is brought to the disk and takes its place by one rename, so that whoever lists them sees
none by half. Everything here blocks for files.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final

from ...errors import PotluckError, UserError
from ..home import prepare_home, sync_folder
from .database import DiskTrouble

FOLDER: Final = "files"
CONTENT: Final = "content"
ABOUT: Final = "about"
FILE_BYTES_MAX: Final = 512 << 20  # OpenAI's
TOTAL_BYTES_MAX: Final = 8 << 30  # guess: sixteen of the largest
FILES_MAX: Final = 4096  # guess: a listing reads each
NAME_CHARS_MAX: Final = 255
STALE_S: Final = 3600.0  # guess: no upload takes as long, for each piece of it has a deadline
_ID: Final = re.compile("file-[0-9a-f]{24}")


class TooMuch(PotluckError):
    """A file, or all of them together, would be above what may be kept."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One file. made_s: unix seconds."""

    id: str
    name: str
    purpose: str
    size: int
    made_s: float


class Upload:
    """A file on its way. Made by `Files.upload`."""

    def __init__(self, content: BinaryIO, room: int) -> None:
        self._content = content
        self._room = room
        self.size = 0

    def write(self, piece: bytes) -> None:
        """Raises TooMuch, or DiskTrouble."""
        self.size += len(piece)
        if self.size > self._room:
            raise TooMuch(
                f"the file is above {FILE_BYTES_MAX >> 20} MiB"
                if self._room == FILE_BYTES_MAX
                else f"with it all files would be above {TOTAL_BYTES_MAX >> 30} GiB: delete some"
            )
        with _told():
            self._content.write(piece)


class Files:
    """Those of one home."""

    def __init__(self, home: Path) -> None:
        self._folder = home / FOLDER

    def all(self) -> list[Kept]:
        """The oldest first."""
        found = [self._read(one.name) for one in self._places()]
        kept = [one for one in found if one is not None]
        return sorted(kept, key=lambda one: (one.made_s, one.id))

    def get(self, file: str) -> Kept | None:
        return self._read(file) if _ID.fullmatch(file) else None

    def path(self, file: str) -> Path:
        """Where the content of one that is here stands."""
        assert _ID.fullmatch(file)
        return self._folder / file / CONTENT

    def delete(self, file: str) -> bool:
        """Whether it was there. Raises DiskTrouble."""
        if not _ID.fullmatch(file):
            return False
        gone = self._beside(file)
        with _told():
            try:
                (self._folder / file).rename(gone)
            except FileNotFoundError:
                return False
            shutil.rmtree(gone, ignore_errors=True)
        return True

    def put(self, name: str, purpose: str, content: bytes, now: float) -> Kept:
        """A small file, in one call. Raises TooMuch or DiskTrouble."""
        upload, place, file = self.begin()
        try:
            upload.write(content)
            return self.finish(upload, place, file, name=name, purpose=purpose, now=now)
        finally:
            self.drop(upload, place)

    def begin(self) -> tuple[Upload, Path, str]:
        """Make room for a file: what to write to, its folder, its id. Raises TooMuch or
        DiskTrouble; `finish` or `drop` must follow."""
        kept = self.all()
        room = min(FILE_BYTES_MAX, TOTAL_BYTES_MAX - sum(one.size for one in kept))
        if len(kept) >= FILES_MAX or room <= 0:
            raise TooMuch(f"{len(kept)} files are kept, which is the most: delete some")
        file = f"file-{secrets.token_hex(12)}"
        place = self._beside(file)
        with _told():
            prepare_home(self._folder)
            place.mkdir(mode=0o700)
            return Upload((place / CONTENT).open("xb"), room), place, file

    def finish(
        self, upload: Upload, place: Path, file: str, *, name: str, purpose: str, now: float
    ) -> Kept:
        """It is kept from now on. Raises DiskTrouble."""
        kept = Kept(file, name[:NAME_CHARS_MAX], purpose, upload.size, now)
        with _told():
            _close(upload._content)
            with (place / ABOUT).open("xb") as about:
                about.write(json.dumps(asdict(kept)).encode())
                about.flush()
                os.fsync(about.fileno())
            place.rename(self._folder / file)
            sync_folder(self._folder)
        return kept

    def drop(self, upload: Upload, place: Path) -> None:
        """Forget what was not finished."""
        with suppress(OSError):
            upload._content.close()
        shutil.rmtree(place, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what uploads of killed processes left."""
        stale_s = time.time() - STALE_S
        with suppress(OSError):
            for place in self._folder.iterdir():
                if place.name.startswith(".") and place.stat().st_mtime < stale_s:
                    shutil.rmtree(place, ignore_errors=True)

    def _places(self) -> list[Path]:
        try:
            return [one for one in self._folder.iterdir() if _ID.fullmatch(one.name)]
        except OSError:
            return []

    def _read(self, file: str) -> Kept | None:
        """None for what was deleted meanwhile, or damaged."""
        try:
            told = json.loads((self._folder / file / ABOUT).read_bytes())
            return Kept(
                file, str(told["name"]), str(told["purpose"]), int(told["size"]),
                float(told["made_s"]),
            )  # fmt: skip
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _beside(self, file: str) -> Path:
        return self._folder / f".{file}.{os.getpid()}"


def _close(content: BinaryIO) -> None:
    """On the disk, and closed. Raises OSError."""
    content.flush()
    os.fsync(content.fileno())
    content.close()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise DiskTrouble(str(error)) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else error.strerror or str(error)
        raise DiskTrouble(f"the file cannot be kept ({why})") from error
