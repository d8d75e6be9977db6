"""One SQLite file that several processes write: opened, read and written whole or not at all.

WAL, so that who looks never waits for who writes; synchronous FULL, so that what was answered is on
the disk before anybody is told. Every call blocks, for a few milliseconds as a rule.

Source: sqlite.org, "Write-Ahead Logging" (2.2, 3) and "PRAGMA synchronous".
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ...errors import UserError

WAIT_S: Final = 10.0  # for another process that writes


class DiskTrouble(UserError):
    """The disk, or another process, is in the way: what was to be written is not, and may be
    written again later."""


class Database:
    """One for a process, used by any of its threads, one at a time. Made by `open_database`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._turn = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """All that is read is of one moment."""
        with self._begun("BEGIN") as db:
            yield db

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All of it, or nothing; alone. It is on the disk when this is left."""
        with self._begun("BEGIN IMMEDIATE") as db:
            yield db

    @contextmanager
    def _begun(self, how: str) -> Iterator[sqlite3.Connection]:
        with self._turn, _told(self.path):
            self._connection.execute(how)
            with self._connection as db:
                yield db


@contextmanager
def open_database(path: Path, tables: str) -> Iterator[Database]:
    """The file with these tables, made if it is not there. Raises UserError."""
    with _told(path):
        new = not path.exists()
        try:
            db = _connect(path, tables)
        except sqlite3.OperationalError:
            for half in _files(path) if new else ():  # one of before is as good as it was
                half.unlink(missing_ok=True)
            raise
    try:
        yield Database(path, db)
    finally:
        db.close()


def _connect(path: Path, tables: str) -> sqlite3.Connection:
    # the lock of Database keeps its threads apart
    db = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
    try:
        path.chmod(0o600)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        db.executescript(tables)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _files(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise UserError(
                f"{path} is damaged ({error}): restore it, or move it aside to begin anew"
            ) from error
        if code == sqlite3.SQLITE_BUSY:
            raise DiskTrouble(
                f"{path}: another process has been writing for {WAIT_S:.0f} s; try again"
            ) from error
        why = os.strerror(errno.ENOSPC) if code == sqlite3.SQLITE_FULL else error
        raise DiskTrouble(f"{path}: cannot be used ({why}); free or mend that disk") from error
