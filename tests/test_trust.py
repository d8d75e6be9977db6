"""The book of a home: what it costs, what survives, and what two processes make of one file."""

from __future__ import annotations

import stat
import tempfile
from itertools import permutations
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from potluck.crypto.codec import decode
from potluck.errors import UserError
from potluck.node.home import replace_file
from potluck.node.trust.book import BOOK_BYTES_MAX, TRUST, Trust
from potluck.swarm.reputation import CONVICTED_S, Book

NOW = 1.8e9


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def trust(home: Path | None = None) -> Trust:
    return Trust(home, clock=Clock())


def found_right(one: Trust, peer: str, times: int) -> None:
    for _ in range(times):
        one.audited(peer, right=True, tokens=32)


def on_disk(home: Path) -> set[str]:
    raw = (home / TRUST).read_bytes()
    return {score.peer for score in decode(raw, Book, max_bytes=BOOK_BYTES_MAX).scores}


def test_a_stranger_counts_once_a_trusted_peer_half_and_a_convict_is_not_used() -> None:
    one = trust()
    found_right(one, "known", 200)
    one.convict("liar")
    assert one.cost_factor("stranger") == 1.0
    assert 0.5 <= one.cost_factor("known") < 0.52
    assert one.banned("liar") and not one.usable("liar")
    assert one.usable("stranger") and not one.banned("stranger")


def test_all_of_a_strangers_work_is_audited_and_a_fiftieth_of_a_known_ones() -> None:
    one = trust()
    assert one.rate("p") == 1.0
    found_right(one, "p", 250)
    assert one.rate("p") == pytest.approx(0.02)
    one.audited("p", right=False, tokens=32)
    assert one.rate("p") == 1.0


def test_who_did_not_pay_for_its_identity_is_audited_like_a_stranger_however_long_it_is_known() -> (
    None
):
    one = trust()
    found_right(one, "p", 250)
    one.on_probation = "p".__eq__
    assert one.rate("p") == 1.0
    found_right(one, "other", 250)
    assert one.rate("other") == pytest.approx(0.02)
    assert one.usable("p") and one.cost_factor("p") == one.cost_factor("other")


def test_an_audit_of_few_tokens_counts_in_proportion() -> None:
    one, other = trust(), trust()
    for _ in range(32):
        one.audited("p", right=True, tokens=1)
    other.audited("p", right=True, tokens=32)
    assert one.mean("p") == pytest.approx(other.mean("p"))


def test_what_was_found_survives_and_a_ban_ends_after_its_time(tmp_path: Path) -> None:
    one = trust(tmp_path)
    found_right(one, "known", 20)
    one.convict("liar")
    one.convict("forger", for_good=True)
    one.save()
    again = trust(tmp_path)
    assert again.mean("known") == pytest.approx(one.mean("known"))
    assert again.banned("liar") and again.banned("forger")
    later = Trust(tmp_path, clock=lambda: NOW + CONVICTED_S + 1)
    assert not later.banned("liar") and later.banned("forger")


def test_what_others_found_has_a_peer_audited_more_here_and_outlasts_a_write(
    tmp_path: Path,
) -> None:
    one = trust(tmp_path)
    found_right(one, "p", 250)
    for number in range(4):
        found_right(one, f"witness {number}", 50)
        one.heard("p", f"witness {number}", right=False)
    one.heard("new", "witness 0", right=False)
    found_right(one, "new", 12)
    assert one.rate("p") == pytest.approx(0.02) and one.rate("new") > 0.4
    before = one.rate("new"), one.cost_factor("new")
    one.save()
    assert (one.rate("new"), one.cost_factor("new")) == before
    assert trust(tmp_path).cost_factor("new") < before[1], "others' words are not written down"
    one.heard("new", "witness 0", right=None)
    assert one.cost_factor("new") < before[1]


def test_nothing_found_leaves_nothing_behind(tmp_path: Path) -> None:
    one = trust(tmp_path / "home")
    assert one.cost_factor("p") == 1.0
    one.save()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_processes_of_one_home_lose_nothing_of_each_other(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    """Each read the book before any of them wrote."""
    made = [trust(tmp_path) for _ in range(3)]
    for number, one in enumerate(made):
        found_right(one, f"p{number}", 5)
        one.convict(f"liar{number}")
    for number in order:
        made[number].save()
    last = made[order[-1]]
    assert all(last.banned(f"liar{number}") for number in range(3)), "it reads what it writes on"
    fresh = trust(tmp_path)
    for number in range(3):
        assert fresh.banned(f"liar{number}")
        assert fresh.mean(f"p{number}") == pytest.approx(6 / 7)


@given(st.lists(st.tuples(st.integers(0, 1), st.booleans()), max_size=12))
def test_two_books_written_in_any_order_are_one(turns: list[tuple[int, bool]]) -> None:
    """Each turn a process finds something, and may write: the sum is what one alone would have."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        made, alone = [trust(home), trust(home)], trust()
        for who, writes in turns:
            found_right(made[who], "p", 1)
            found_right(alone, "p", 1)
            if writes:
                made[who].save()
        for one in made:
            one.save()
        assert trust(home).mean("p") == pytest.approx(alone.mean("p"))


def test_a_broken_book_is_kept_aside_and_a_new_one_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / TRUST).write_bytes(b"no book")
    one = trust(tmp_path)
    assert (tmp_path / "trust.broken").read_bytes() == b"no book"
    assert capsys.readouterr().err.count("trust begun anew") == 1
    one.convict("liar")
    one.save()
    assert on_disk(tmp_path) == {"liar"}


def test_a_book_that_breaks_while_we_run_is_written_anew(tmp_path: Path) -> None:
    one = trust(tmp_path)
    one.convict("liar")
    one.save()
    (tmp_path / TRUST).write_bytes(b"\x00" * 100)
    one.convict("other")
    one.save()
    assert on_disk(tmp_path) == {"other"}
    assert (tmp_path / "trust.broken").exists()


def test_what_a_full_disk_did_not_take_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trust(tmp_path)
    one.convict("liar")

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("potluck.node.trust.book.replace_file", full)
        one.save()
    assert one.banned("liar") and not (tmp_path / TRUST).exists()
    one.convict("other")
    one.save()
    assert on_disk(tmp_path) == {"liar", "other"}


async def test_the_service_writes_soon_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, written = trust(tmp_path), trio.Event()

    def write(path: Path, content: bytes) -> None:
        replace_file(path, content)
        if not written.is_set():
            trio.from_thread.run_sync(written.set)

    monkeypatch.setattr("potluck.node.trust.book.replace_file", write)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.keep)
        one.convict("first")
        with trio.fail_after(20):
            await written.wait()
        assert on_disk(tmp_path) == {"first"}
        one.convict("last")
        nursery.cancel_scope.cancel()
    assert on_disk(tmp_path) == {"first", "last"}


def test_the_secret_is_the_homes_own_and_nobody_elses(tmp_path: Path) -> None:
    names = [bytes([number]) * 32 for number in range(20)]

    def coins(one: Trust) -> list[float]:
        lots = one.lots()
        return [lots.draw("chunk", name) for name in names]

    mine = coins(trust(tmp_path / "mine"))
    assert mine == coins(trust(tmp_path / "mine")) != coins(trust(tmp_path / "other"))
    kept = tmp_path / "mine" / "trust.lots"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    kept.write_bytes(b"half")
    assert coins(trust(tmp_path / "mine")) != mine


def test_a_secret_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"a file")
    with pytest.raises(UserError):
        trust(tmp_path / "home").lots()


async def test_what_is_found_is_written_once_however_many_keep_the_book(tmp_path: Path) -> None:
    """As a client's court does, beside the client."""
    one = trust(tmp_path)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(one.keep)
        await trio.testing.wait_all_tasks_blocked()
        found_right(one, "p", 5)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert trust(tmp_path)._book.valid("p") == one._book.valid("p") == 5
