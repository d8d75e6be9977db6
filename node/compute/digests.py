"""The sha256 of large files, remembered between runs.

A file is recognised by path, size, time of change and inode: hashing 16 GiB takes 10 s and more,
and a node starts often. What is remembered can be deleted at any time.
"""

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError

_MEMORY = "digests.json"
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileFact:
    """What a weight file is, wherever it lies."""

    name: str
    size: int  # bytes
    sha256: str


def hash_files(paths: list[Path], home: Path | None) -> list[FileFact]:
    """The facts of these files, from memory where nothing changed. Raises UserError."""
    known = recall(home)
    facts = []
    learned = False
    for path in paths:
        try:
            real = path.resolve()
            stat = real.stat()
            key = f"{real}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}"
            sha256 = known.get(key)
            if not isinstance(sha256, str):
                sha256 = known[key] = _sha256(real)
                learned = True
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check it") from error
        facts.append(FileFact(path.name, stat.st_size, sha256))
    if learned:
        remember(home, known)
    return facts


def recall(home: Path | None) -> dict[str, Any]:
    """What is remembered; nothing, when there is nothing or it is damaged."""
    if home is None:
        return {}
    try:
        known = json.loads((home / _MEMORY).read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def remember(home: Path | None, known: dict[str, Any]) -> None:
    """Write all of it anew, in one step: a reader sees the old or the new file.

    Where that cannot be (a full disk, one that may only be read), the next run hashes again.
    """
    if home is None:
        return
    with suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_MEMORY, dir=home)
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(known, file, indent=1, sort_keys=True)
            os.replace(name, home / _MEMORY)
        except BaseException:
            os.unlink(name)
            raise


def _sha256(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_READ_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()
