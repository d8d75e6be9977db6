"""The peer store: written in time, read back, never a reason not to start."""

import os
import time
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.dht.known import KNOWN_MAX, Known, to_bytes, to_join
from potluck.node.peerstore import EVERY_S, FIRST_S, PEERS, keep_known, load_known

PEER = IdentityKey.from_bytes(b"p" * 32).peer_id


class Answering:
    """A directory that knows whom we say."""

    def __init__(self) -> None:
        self.now: tuple[Known, ...] = ()

    def answered(self) -> tuple[Known, ...]:
        return self.now

    def meet(self, seen_s: float) -> None:
        self.now = (Known(PEER, (f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}",), seen_s),)


@pytest.fixture
def just_now() -> float:
    return time.time()


async def test_it_is_written_soon_then_seldom_and_at_the_end(
    tmp_path: Path, autojump_clock: MockClock, just_now: float
) -> None:
    directory = Answering()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_known, tmp_path, directory)
        directory.meet(just_now)
        await trio.sleep(1.3 * FIRST_S)
        assert [known.seen_s for known in load_known(tmp_path)] == [just_now]
        directory.meet(just_now + 1)
        await trio.sleep(0.5 * EVERY_S)
        assert [known.seen_s for known in load_known(tmp_path)] == [just_now]
        await trio.sleep(0.8 * EVERY_S)
        assert [known.seen_s for known in load_known(tmp_path)] == [just_now + 1]
        directory.meet(just_now + 2)
        nursery.cancel_scope.cancel()
    assert [known.seen_s for known in load_known(tmp_path)] == [just_now + 2]


async def test_who_is_alone_does_not_forget(
    tmp_path: Path, autojump_clock: MockClock, just_now: float
) -> None:
    directory = Answering()
    directory.meet(just_now)
    (tmp_path / PEERS).write_bytes(to_bytes(directory.now))
    directory.now = ()
    with trio.move_on_after(2 * EVERY_S):
        await keep_known(tmp_path, directory)
    assert [known.peer for known in load_known(tmp_path)] == [PEER]


@pytest.mark.parametrize("content", [b"", b"\x00", b"{}", os.urandom(4096), bytes(600 * 1024)])
def test_a_corrupt_store_is_passed_over_with_a_warning(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / PEERS).write_bytes(content)
    assert load_known(tmp_path) == ()
    assert "peer store passed over" in capsys.readouterr().err


def test_a_store_that_is_a_folder_or_a_pipe_holds_nothing_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / PEERS).mkdir()
    assert load_known(tmp_path) == ()
    (tmp_path / PEERS).rmdir()
    os.mkfifo(tmp_path / PEERS)
    assert load_known(tmp_path) == ()
    assert capsys.readouterr().err.count("peer store passed over") == 2


async def test_a_disk_that_refuses_ends_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], just_now: float, autojump_clock: MockClock
) -> None:
    directory = Answering()
    directory.meet(just_now)
    with trio.move_on_after(2 * FIRST_S):
        await keep_known(tmp_path / "missing", directory)
    assert "peer store not written" in capsys.readouterr().err


def test_no_store_is_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_known(tmp_path) == ()
    assert capsys.readouterr().err == ""


async def test_those_whom_nobody_chose_for_us_are_whom_to_join_by_first(
    tmp_path: Path, just_now: float
) -> None:
    """However many others answered meanwhile: of these the store, and a start, take so many."""
    directory = Answering()
    crowd = [IdentityKey.from_bytes(n.to_bytes(32)).peer_id for n in range(KNOWN_MAX)]
    directory.now = tuple(
        Known(peer, (f"/ip4/{20 + n % 100}.{n // 100}.1.1/tcp/1/p2p/{peer}",), just_now)
        for n, peer in enumerate(crowd)
    )
    there = f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"
    with trio.CancelScope() as life:
        life.cancel()
        await keep_known(tmp_path, directory, lambda now: [Known(PEER, (there,), now)])
    assert to_join(load_known(tmp_path))[0] == there
