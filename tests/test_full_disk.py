"""What a node keeps beside its work, on a full disk: what was there stays, and nothing ends.

Tallies, trust, bans, vouches, the key and the boot have tests of their own beside what they hold.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from receipts import key
from testimonies import NOW
from trio.testing import MockClock

from potluck.crypto.work import NONCE_BYTES, Work
from potluck.dht.known import Known
from potluck.node import peerstore, toll
from potluck.node.trust import standing
from potluck.node.trust.standing import MET, Standings

PEER = key("peer").peer_id
WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "home/met": (
        "potluck.node.trust.standing.replace_file",
        lambda home: standing._write(home / MET, ((PEER, NOW),)),
    ),
    "home/peers": (
        "potluck.node.peerstore.replace_file",
        lambda home: peerstore._save(
            home, (Known(PEER, (f"/ip4/192.0.2.7/tcp/1/p2p/{PEER}",), NOW),)
        ),
    ),
    "home/work": (
        "potluck.node.toll.replace_file",
        lambda home: toll._save(home, Work(1, bytes(NONCE_BYTES))),
    ),
}


def full(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("what", WRITERS)
def test_what_was_written_before_stays_and_nobody_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    place, write = WRITERS[what]
    write(tmp_path)
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()
    file.write_bytes(before[:-1])
    monkeypatch.setattr(place, full)
    write(tmp_path)
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == before[:-1]


async def test_the_service_goes_on_and_writes_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Though nobody else was met meanwhile."""

    async def run_sync(function: Callable[..., object], *args: object) -> object:
        await trio.lowlevel.checkpoint()  # a disk that takes no time: the clock would jump on
        return function(*args)

    monkeypatch.setattr("trio.to_thread.run_sync", run_sync)
    standings = Standings(lambda peer: 0.5, tmp_path, wall=lambda: NOW)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(standings.keep)
        await trio.sleep(1)
        standings._met[PEER] = NOW
        with monkeypatch.context() as patch:
            patch.setattr("potluck.node.trust.standing.replace_file", full)
            await trio.sleep(2 * standing.WRITE_EVERY_S)
            assert not (tmp_path / MET).exists()
        await trio.sleep(standing.WRITE_EVERY_S)
        assert (tmp_path / MET).exists()
        nursery.cancel_scope.cancel()
    assert Standings(lambda peer: 0.5, tmp_path, wall=lambda: NOW)._met == {PEER: NOW}
