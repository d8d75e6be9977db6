"""What this home gave and took, on disk: tallies, and what credit is computed from.

    home/credit.db    sqlite: a node and any number of clients of one home write it at once

A tally is on the disk before our signature leaves it, so that whatever ends the process, nobody
holds a word of ours that we do not know of. What is older than what is there is passed over. A
file that is no database is put aside, and a new one begun: those who signed show their tallies.

Every call blocks, for a few milliseconds as a rule.
"""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Final

from ...errors import UserError
from ...swarm.credit import EDGES_MAX, Book, Edge, Spent
from ...swarm.tally import Tally, first_of, read_tally

FILE: Final = "credit.db"
BROKEN: Final = "credit.broken"
BOOT_LOTS: Final = 256  # a signature each 30 s, and 32 bits last for twenty years
WAIT_S: Final = 5.0  # for another process of this home
PAIRS_MAX: Final = 1 << 16  # peers that we have to do with; who had least to do with us goes first
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS pair (
    me TEXT, peer TEXT, raw BLOB, seq INTEGER, gave REAL, took REAL, at_s REAL, boot INTEGER,
    change INTEGER, PRIMARY KEY (me, peer)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS changed ON pair (me, change);
CREATE TABLE IF NOT EXISTS book (me TEXT PRIMARY KEY, at_s REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS edge (giver TEXT, taker TEXT, work REAL, total REAL);
CREATE TABLE IF NOT EXISTS spent (peer TEXT, through TEXT, work REAL);
CREATE TABLE IF NOT EXISTS network (name TEXT PRIMARY KEY, first_s REAL, last_s REAL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """What we and a peer did for each other, in all. raw: the tally that is shown; b"" for none.
    tally: the same, with the largest sums that both signed of any."""

    raw: bytes
    tally: Tally


class Tallies:
    """One for a process. Made by `open_tallies`."""

    def __init__(self, path: Path, me: str) -> None:
        self._path = path
        self.me = me

    def pair(self, peer: str) -> Pair:
        with self._reading() as db:
            return self._pair(db, peer)

    def next_boot(self, peer: str, now: float) -> int:
        """A number for one signature: later than every one before, from the clock, and kept. By
        some lots later: where a disk and a clock are both set back to one moment, as those of a
        machine that is restored whole, none is drawn twice but by chance."""
        with self._writing() as db:
            row = self._row(db, peer)
            boot = max(int(now), (row.boot if row else 0) + 1) + secrets.randbelow(BOOT_LOTS)
            if row is None:
                self._put(db, peer, _Row(boot=boot))
            else:
                db.execute(
                    "UPDATE pair SET boot = ? WHERE me = ? AND peer = ?", (boot, self.me, peer)
                )
            return boot

    def keep(self, raw: bytes, tally: Tally) -> bool:
        """A tally of ours that both signed. False when all of it was known."""
        (peer,) = set(tally.peers) - {self.me}
        with self._writing() as db:
            old = self._row(db, peer) or _Row()
            new = _Row(
                raw if tally.seq >= old.seq else old.raw,
                max(tally.seq, old.seq),
                max(tally.gave(self.me), old.gave),
                max(tally.gave(peer), old.took),
                max(tally.at_s, old.at_s),
                max(tally.boot(self.me), old.boot),
            )
            if (new.seq, new.gave, new.took) == (old.seq, old.gave, old.took):
                return False
            self._put(db, peer, new)
            return True

    def sums(self, *, after: int = 0) -> tuple[list[Tally], int]:
        """Of the pairs that have changed after this change, unsigned; and the last change."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT peer, gave, took, at_s, change FROM pair"
                " WHERE me = ? AND change > ? AND seq > 0 ORDER BY change",
                (self.me, after),
            ).fetchall()
        found = [self._summed(first_of(self.me, row[0]), *row[1:4]) for row in rows]
        return found, rows[-1][4] if rows else after

    def to_show(self, count: int, *, but: str) -> tuple[bytes, ...]:
        """Tallies of whom we gave most, for one who may have had to do with them."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT raw FROM pair WHERE me = ? AND peer != ? AND raw != x'' AND gave > took"
                " ORDER BY gave - took DESC LIMIT ?",
                (self.me, but, count),
            ).fetchall()
        return tuple(row[0] for row in rows)

    def book(self) -> Book | None:
        """What credit was computed from last."""
        with self._reading() as db:
            at = db.execute("SELECT at_s FROM book WHERE me = ?", (self.me,)).fetchone()
            if at is None:
                return None
            edges = tuple(Edge(*row) for row in db.execute("SELECT * FROM edge"))
            spent = tuple(Spent(*row) for row in db.execute("SELECT * FROM spent"))
            return Book(at[0], edges[:EDGES_MAX], spent[:EDGES_MAX])

    def keep_book(self, book: Book, networks: Mapping[str, tuple[float, float]]) -> None:
        edges = [(one.giver, one.taker, one.work, one.total) for one in book.edges]
        spent = [(one.peer, one.through, one.work) for one in book.spent]
        with self._writing() as db:
            for table in ("book", "edge", "spent", "network"):
                db.execute(f"DELETE FROM {table}")
            db.execute("INSERT INTO book VALUES (?, ?)", (self.me, book.at_s))
            db.executemany("INSERT INTO edge VALUES (?, ?, ?, ?)", edges)
            db.executemany("INSERT INTO spent VALUES (?, ?, ?)", spent)
            db.executemany(
                "INSERT INTO network VALUES (?, ?, ?)",
                [(name, *times) for name, times in networks.items()],
            )

    def networks(self) -> dict[str, tuple[float, float]]:
        """When each network was seen first and last, in unix seconds."""
        with self._reading() as db:
            return {
                name: (first, last) for name, first, last in db.execute("SELECT * FROM network")
            }

    # ---- rows

    def _pair(self, db: sqlite3.Connection, peer: str) -> Pair:
        row = self._row(db, peer)
        if row is None or not row.raw:
            return Pair(b"", first_of(self.me, peer))
        return Pair(row.raw, self._summed(read_tally(row.raw), row.gave, row.took, row.at_s))

    def _summed(self, tally: Tally, gave: float, took: float, at_s: float) -> Tally:
        low, high = (gave, took) if tally.peers[0] == self.me else (took, gave)
        return replace(tally, low_gave=low, high_gave=high, at_s=at_s)

    def _row(self, db: sqlite3.Connection, peer: str) -> _Row | None:
        row = db.execute(
            "SELECT raw, seq, gave, took, at_s, boot FROM pair WHERE me = ? AND peer = ?",
            (self.me, peer),
        ).fetchone()
        return _Row(*row) if row else None

    def _put(self, db: sqlite3.Connection, peer: str, row: _Row) -> None:
        db.execute(
            "INSERT OR REPLACE INTO pair VALUES (?, ?, ?, ?, ?, ?, ?, ?,"
            " (SELECT 1 + coalesce(max(change), 0) FROM pair WHERE me = ?))",
            (self.me, peer, *astuple(row), self.me),
        )
        (count,) = db.execute("SELECT count(*) FROM pair WHERE me = ?", (self.me,)).fetchone()
        if count > PAIRS_MAX:
            db.execute(
                "DELETE FROM pair WHERE me = ? AND peer IN (SELECT peer FROM pair"
                " WHERE me = ? AND peer != ? ORDER BY gave + took LIMIT ?)",
                (self.me, self.me, peer, PAIRS_MAX // 8),  # we are about to sign under its number
            )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """All that is read is of one moment."""
        with _told(self._path), closing(_connect(self._path)) as db:
            db.execute("BEGIN")
            yield db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """All of it, or nothing; alone. It is on the disk when this is left."""
        with _told(self._path), closing(_connect(self._path)) as db:
            db.execute("BEGIN IMMEDIATE")
            with db:
                yield db


@dataclass(frozen=True, slots=True)
class _Row:
    """Of the table of pairs, without whose it is."""

    raw: bytes = b""
    seq: int = 0
    gave: float = 0.0
    took: float = 0.0
    at_s: float = 0.0
    boot: int = 0


def open_tallies(home: Path, me: str) -> Tallies:
    """Those of this home. Raises UserError when they cannot be kept."""
    path = home / FILE
    beside = [path.with_name(FILE + suffix) for suffix in ("-wal", "-shm")]
    with _told(path):
        new = not path.exists()
        try:
            _make(path)
        except sqlite3.OperationalError:  # a full disk, or one that cannot be written
            for half in (path, *beside) if new else ():  # one of before is as good as it was
                half.unlink(missing_ok=True)
            raise
        except sqlite3.DatabaseError:
            for stale in beside:
                stale.unlink(missing_ok=True)
            path.replace(path.with_name(BROKEN))
            _make(path)
    return Tallies(path, me)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
        why = os.strerror(errno.ENOSPC) if full else error
        raise UserError(f"{path}: cannot be used ({why}); free or mend that disk") from error


def _make(path: Path) -> None:
    with closing(_connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(_TABLES)
    path.chmod(0o600)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
    db.execute("PRAGMA synchronous = FULL")
    return db
