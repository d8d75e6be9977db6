"""What this peer itself has said, on disk before anybody hears it: it must never say otherwise.

    folder/said      pages, each with its length before it; a torn end was never sent

A peer that was killed and began a round anew would sign two pages of one round, which convicts it;
so would one whose home was copied, or restored from a backup.
Everything here blocks for files.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ...errors import UserError
from ..chunks.store import replace_durably
from ..home import sync_folder

SAID: Final = "said"
_LENGTH_BYTES: Final = 4


class Journal:
    """Of one run, in one folder, of one process."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SAID

    def read(self) -> list[bytes]:
        """All that was said and not forgotten, in order. Raises UserError."""
        return self._whole()[0]

    def append(self, page: bytes) -> None:
        """On the disk when it returns. Raises UserError; then it must not be sent."""
        found, size = self._whole()
        raw = _framed(page)
        try:
            with self._path.open("ab", buffering=0) as file:
                file.truncate(size)  # a torn end would swallow what comes behind it
                if file.write(raw) < len(raw):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            if not found:
                sync_folder(self._path.parent)
        except OSError as error:
            raise self._refused(error) from error

    def _whole(self) -> tuple[list[bytes], int]:
        """The pages that are whole, and where the last of them ends. Raises UserError."""
        try:
            raw = self._path.read_bytes() if self._path.exists() else b""
        except OSError as error:
            raise self._refused(error) from error
        found, at = [], 0
        while at + _LENGTH_BYTES <= len(raw):
            end = at + _LENGTH_BYTES + int.from_bytes(raw[at : at + _LENGTH_BYTES])
            if end > len(raw) or end == at + _LENGTH_BYTES:
                break  # torn; or zeros, which a disk without power leaves
            found.append(raw[at + _LENGTH_BYTES : end])
            at = end
        return found, at

    def rewrite(self, pages: Iterable[bytes]) -> None:
        """Keep these alone. Raises UserError; then all are kept."""
        try:
            replace_durably(self._path, b"".join(map(_framed, pages)))
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> UserError:
        return UserError(f"{self._path}: cannot be written ({error.strerror}); free the disk")


def _framed(page: bytes) -> bytes:
    return len(page).to_bytes(_LENGTH_BYTES) + page
