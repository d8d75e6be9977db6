"""Tallies on disk: none is lost, none counts twice, and no number is signed under twice."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from pathlib import Path

import pytest
from receipts import key

from potluck.errors import UserError
from potluck.node.credit.tallies import BOOT_LOTS, BROKEN, FILE, Tallies, open_tallies
from potluck.swarm.credit import Book, Edge, Spent
from potluck.swarm.tally import Tally, accept, first_of, next_of, offer

ME, BOB, CAT = key("me"), key("bob"), key("cat")
M, B, C = ME.peer_id, BOB.peer_id, CAT.peer_id


def signed(last: Tally, *, gave: float = 0.0, took: float = 0.0) -> tuple[bytes, Tally]:
    """What Bob offered next and we signed; gave, took: as we see it."""
    tally = next_of(
        last, B, boot=5, their_boot=7, gave=took, took=gave, now=10.0 + last.seq, since=bytes(32)
    )
    return accept(ME, offer(BOB, tally)), tally


def summed(tallies: Tallies) -> dict[str, tuple[float, float]]:
    found, _ = tallies.sums()
    others = [next(peer for peer in one.peers if peer != M) for one in found]
    return {who: (one.gave(M), one.gave(who)) for who, one in zip(others, found, strict=True)}


def test_what_was_kept_is_there_for_the_next_process(tmp_path: Path) -> None:
    tallies = open_tallies(tmp_path, M)
    assert tallies.pair(B).tally == first_of(M, B) and summed(tallies) == {}
    raw, one = signed(first_of(M, B), took=3.0)
    assert tallies.keep(raw, one) and not tallies.keep(raw, one)
    raw, two = signed(one, gave=1.0, took=2.0)
    assert tallies.keep(raw, two)
    again = open_tallies(tmp_path, M)
    assert (again.pair(B).raw, again.pair(B).tally) == (raw, two)
    assert summed(again) == {B: (1.0, 5.0)}
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0


def test_an_old_tally_changes_nothing_and_of_two_at_once_the_larger_sums_count(
    tmp_path: Path,
) -> None:
    tallies = open_tallies(tmp_path, M)
    raw_one, one = signed(first_of(M, B), took=3.0)
    raw_two, two = signed(one, took=2.0)
    raw_fork, fork = signed(one, gave=4.0)
    assert tallies.keep(raw_two, two)
    assert not tallies.keep(raw_one, one)
    _, change = tallies.sums()
    assert tallies.keep(raw_fork, fork)
    assert summed(tallies) == {B: (4.0, 5.0)}
    assert len(tallies.sums(after=change)[0]) == 1
    assert next_of(
        tallies.pair(B).tally, M, boot=8, gave=0.0, took=0.0, now=20.0, since=bytes(32)
    ).gave(B) == 5.0  # fmt: skip


def test_no_number_is_signed_under_twice(tmp_path: Path) -> None:
    """By two processes at once; with the clock set back; from a disk that was restored later."""
    tallies = open_tallies(tmp_path, M)
    found: list[int] = []

    def draw() -> None:
        own = open_tallies(tmp_path, M)
        found.extend(own.next_boot(B, 1000.0) for _ in range(20))

    threads = [threading.Thread(target=draw) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == len(found) == 60 and min(found) >= 1000
    drawn = tallies.next_boot(B, 10.0)
    assert max(found) < drawn <= max(found) + BOOT_LOTS
    assert tallies.next_boot(C, 10.0) in range(10, 10 + BOOT_LOTS)
    raw, tally = signed(first_of(M, B), took=1.0)
    tallies.keep(raw, tally)
    assert tallies.next_boot(B, 10.0) > drawn
    shutil.copy(tmp_path / FILE, tmp_path / "snapshot")
    later = tallies.next_boot(B, 1e6)
    shutil.copy(tmp_path / "snapshot", tmp_path / FILE)
    assert open_tallies(tmp_path, M).next_boot(B, 1e6 + BOOT_LOTS) > later


def test_a_machine_that_is_set_back_whole_signs_under_other_numbers(tmp_path: Path) -> None:
    """Disk and clock: whoever hides what it signed meanwhile has no proof against it."""
    same = 0
    for number in range(100):
        drawn = []
        for copy in ("one", "other"):
            home = tmp_path / f"{number} {copy}"
            home.mkdir()
            drawn.append(open_tallies(home, M).next_boot(B, 1.8e9))
        same += drawn[0] == drawn[1]
    assert same < 8  # of a binomial with mean 0.4


def test_where_too_many_are_known_the_number_just_drawn_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potluck.node.credit.tallies.PAIRS_MAX", 8)
    tallies = open_tallies(tmp_path, M)
    for number in range(20):
        raw, tally = signed(first_of(M, B), took=1.0 + number)
        tallies.keep(raw, tally)
        stranger = key(f"stranger {number}").peer_id
        assert tallies.next_boot(stranger, 1000.0) < tallies.next_boot(stranger, 1000.0)
    assert summed(tallies) == {B: (0.0, 20.0)}


def test_who_is_owed_most_is_shown_first(tmp_path: Path) -> None:
    tallies = open_tallies(tmp_path, M)
    raws = {}
    for name, gave in (("p", 5.0), ("q", 9.0), ("r", 0.0)):
        other = key(name)
        tally = next_of(
            first_of(M, other.peer_id), M, boot=1, gave=gave, took=1.0, now=1.0, since=bytes(32)
        )
        raws[name] = accept(other, offer(ME, tally))
        tallies.keep(raws[name], tally)
    assert tallies.to_show(5, but="nobody") == (raws["q"], raws["p"])
    assert tallies.to_show(5, but=key("q").peer_id) == (raws["p"],)
    assert tallies.to_show(1, but="nobody") == (raws["q"],)


def test_the_book_is_kept_whole_and_is_nobody_elses(tmp_path: Path) -> None:
    tallies = open_tallies(tmp_path, M)
    assert tallies.book() is None and tallies.networks() == {}
    book = Book(9.0, (Edge(B, M, 1.5, 2.0),), (Spent(B, B, 0.5),))
    for _ in range(2):
        tallies.keep_book(book, {"10.1.0.0/16": (1.0, 2.0)})
    assert open_tallies(tmp_path, M).book() == book
    assert tallies.networks() == {"10.1.0.0/16": (1.0, 2.0)}
    assert open_tallies(tmp_path, B).book() is None


def test_a_file_that_is_no_database_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all" * 100)
    raw, tally = signed(first_of(M, B), took=1.0)
    assert open_tallies(tmp_path, M).keep(raw, tally)
    assert (tmp_path / BROKEN).read_bytes().startswith(b"no database")


def test_a_disk_that_takes_nothing_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=FILE):
        open_tallies(tmp_path / "nowhere", M)
    tallies = open_tallies(tmp_path, M)
    raw, tally = signed(first_of(M, B), took=1.0)
    tallies.keep(raw, tally)
    book = Book(9.0, tuple(Edge(f"peer {n}", M, 1.0, 1.0) for n in range(5000)), ())
    with monkeypatch.context() as patched:
        patched.setattr("potluck.node.credit.tallies._connect", full)
        with pytest.raises(UserError, match="No space left"):
            tallies.keep_book(book, {})
    assert tallies.book() is None and summed(tallies) == {B: (0.0, 1.0)}
    tallies.keep_book(book, {})
    assert tallies.book() == book


def full(path: Path) -> sqlite3.Connection:
    """A connection to a disk that has no page left."""
    db = sqlite3.connect(path, isolation_level=None)
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")
    return db
