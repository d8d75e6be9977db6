"""A job's answers, in the order of its lines: as they are there, or as a file that is whole.

The file is written beside its place, brought to the disk, and put there in one go: whoever opens it
finds all of it or nothing. One that is there already stays, unless it is the same: a worker that
was killed between the file and its word that all is done writes it once more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from ...errors import UserError
from .store import Jobs

READ_BYTES: Final = 1 << 20


def answers(jobs: Jobs, job: int) -> Iterator[str]:
    """All that are there."""
    past = 0
    while page := jobs.answers(job, past=past):
        yield from (text for _, text in page)
        past = page[-1][0]


def check_out(out: Path, *, replace: bool) -> None:
    """Raises UserError where no result can be written, before there is any."""
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is no folder: make it, or choose another --out")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"{out.parent} cannot be written: choose another --out")
    if out.is_dir():
        raise UserError(f"{out} is a folder: name a file in it")
    if out.exists() and not replace:
        raise UserError(f"{out} exists: choose another --out, or give --force to replace it")


def write_answers(jobs: Jobs, job: int, out: Path, *, replace: bool, beside: str) -> None:
    """beside: ends the name of the file while it is written; what a killed writer left under the
    same one is written over. Raises UserError: what is at `out` already is left as it is."""
    made = out.with_name(f".{out.name}.{beside}")
    try:
        with made.open("wb") as file:
            for line in answers(jobs, job):
                file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        _put(made, out, job, replace=replace)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); nothing is lost: "
            f"potluck job result {job} --out ANOTHER has all answers"
        ) from error
    finally:
        with suppress(OSError):
            made.unlink(missing_ok=True)


def _put(made: Path, out: Path, job: int, *, replace: bool) -> None:
    if replace:
        made.replace(out)
        return
    try:
        os.link(made, out)  # unlike rename, link refuses to replace
    except OSError:
        if not os.path.lexists(out):  # a file system that knows no links
            made.replace(out)
        elif not _same(made, out):
            raise UserError(
                f"{out} is another file by now, and stays: "
                f"potluck job result {job} --out ANOTHER has all answers"
            ) from None


def _same(one: Path, other: Path) -> bool:
    if not other.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as left, other.open("rb") as right:
        while (piece := left.read(READ_BYTES)) == right.read(READ_BYTES):
            if not piece:
                return True
    return False
