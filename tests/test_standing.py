"""Whose word counts: who serves the blocks, whom we trust, where it stands, since when known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from receipts import key, opening
from testimonies import NOW, announced
from trio.testing import MockClock

from potluck.dht.record import Announcement, read
from potluck.node.trust import standing
from potluck.node.trust.standing import MET, Standings
from potluck.swarm.banned import STRANGER, Acquaintance

ALICE, BOB = key("a"), key("b")
MODEL = bytes(range(32)).hex()


def told(peer: str = ALICE.peer_id, *, now: float = NOW, host: str = "8.8.4.4") -> Announcement:
    """It serves blocks 0:8."""
    fact = read(announced(ALICE, model=MODEL, now=now), Announcement)
    return replace(fact, peer=peer, addresses=(f"/ip4/{host}/tcp/1/p2p/{peer}",))


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def test_who_serves_the_blocks_has_a_standing() -> None:
    clock = Clock()
    standings = Standings(lambda peer: 0.7, wall=clock)
    assert standings.of(ALICE.peer_id, opening(0, 2)) is None
    standings.learn([told()])
    clock.now += 20
    found = standings.of(ALICE.peer_id, opening(0, 2))
    assert found is not None
    assert (found.trust, found.network, found.known_s) == (0.7, "8.8.0.0/16", 20.0)
    assert not found.alike
    standings.learn([replace(told(), numerics=opening(0, 2).numerics)])
    known = standings.of(ALICE.peer_id, opening(0, 2))
    assert known is not None and known.alike
    assert standings.of(ALICE.peer_id, opening(6, 9)) is None
    assert standings.of(BOB.peer_id, opening(0, 2)) is None


def test_who_is_gone_has_none() -> None:
    clock = Clock()
    standings = Standings(lambda peer: 0.7, wall=clock)
    standings.learn([told()])
    assert standings.lately() == {ALICE.peer_id}
    clock.now += 90
    assert standings.of(ALICE.peer_id, opening(0, 2)) is None
    assert standings.lately() == frozenset()


def test_all_at_home_are_of_one_network() -> None:
    standings = Standings(lambda peer: 0.7, wall=Clock())
    standings.learn([told(host="127.0.0.1"), told(BOB.peer_id, host="192.168.1.7")])
    found = [standings.of(one.peer_id, opening(0, 2)) for one in (ALICE, BOB)]
    assert len({one.network for one in found if one is not None}) == 1


async def test_since_when_we_know_a_peer_survives_a_restart(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    clock = Clock()
    first = Standings(lambda peer: 0.7, tmp_path, wall=clock)
    with trio.move_on_after(1):
        first.learn([told()])
        await first.keep()
    clock.now += 8 * 86_400
    again = Standings(lambda peer: 0.7, tmp_path, wall=clock)
    again.learn([told(now=clock.now)])
    found = again.of(ALICE.peer_id, opening(0, 2))
    assert found is not None and found.known_s == 8 * 86_400


@pytest.mark.parametrize("content", [b"\xff", bytes(1 << 21)])
def test_a_broken_file_is_forgotten(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MET).write_bytes(content)
    standings = Standings(lambda peer: 0.7, tmp_path, wall=Clock())
    standings.learn([told()])
    assert standings.of(ALICE.peer_id, opening(0, 2)) is not None


def test_a_clock_that_was_set_back_makes_nobody_older(tmp_path: Path) -> None:
    clock = Clock()
    standings = Standings(lambda peer: 0.7, wall=clock)
    standings.learn([told()])
    clock.now -= 3600
    standings.learn([told(now=clock.now)])
    found = standings.of(ALICE.peer_id, opening(0, 2))
    assert found is not None and found.known_s == 0


def test_how_a_peer_was_known_is_since_when_and_where() -> None:
    clock = Clock()
    one = Standings(lambda peer: 0.5, wall=lambda: clock.now)
    assert one.acquaintance(ALICE.peer_id) == STRANGER
    one.learn([told()])
    assert one.acquaintance(ALICE.peer_id) == Acquaintance(1.0, "8.8.0.0/16")
    clock.now += 5000
    assert one.acquaintance(ALICE.peer_id) == Acquaintance(5000.0, "8.8.0.0/16")
    clock.now -= 50_000  # a clock that was set back makes nobody a stranger
    assert one.acquaintance(ALICE.peer_id).known_s == 1.0


def test_of_too_many_the_longest_unseen_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "MET_MAX", 3)
    monkeypatch.setattr(standing, "SERVING_MAX", 3)
    standings = Standings(lambda peer: 0.7, wall=Clock())
    names = [key(f"{number}").peer_id for number in range(9)]
    standings.learn(told(name) for name in names)
    assert list(standings._met) == names[6:] and standings.lately() == set(names[6:])
