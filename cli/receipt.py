"""Where an answer's receipt goes: a file that is written whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError
from ..node.home import replace_file


def check_place(path: Path) -> None:
    """Raises UserError, before anything is asked, when no file can be written there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not path.is_file():
            raise _unwritable(path, "it is no file")
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise _unwritable(path, error.strerror) from error


def write_receipt(path: Path, content: bytes) -> None:
    """Raises UserError when the disk refuses; what was there before is there still."""
    try:
        replace_file(path, content)
    except OSError as error:
        raise _unwritable(path, error.strerror) from error


def _unwritable(path: Path, why: str | None) -> UserError:
    return UserError(f"{path}: the receipt cannot be written ({why}); give another --receipt FILE")
