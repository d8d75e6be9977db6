"""A disk restored from an old snapshot, or a clock set back, makes no honest peer equivocate."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from dht_swarm import EPOCH_S, MemoryHost, MemoryNetwork, announcement
from trio.testing import MockClock

from potluck.dht.kad import KadDirectory, open_directory
from potluck.dht.record import Record
from potluck.node.identity import load_or_create, next_boot

Said = dict[tuple[object, ...], bytes]


@asynccontextmanager
async def running(home: Path, now: float, said: list[Record]) -> AsyncIterator[KadDirectory]:
    """A node of this home, as the daemon begins it, by a clock that stands at `now`."""
    key = load_or_create(home)
    boot = next_boot(home, now)
    async with trio.open_nursery() as nursery:
        host = MemoryHost(MemoryNetwork(nursery), key.peer_id)
        async with open_directory(host, key, boot=boot, wall=lambda: now) as directory:
            directory.signed.append(said.append)
            yield directory
        nursery.cancel_scope.cancel()


async def announce(home: Path, now: float, stops: range, said: list[Record]) -> None:
    """One run, that says so many things."""
    async with running(home, now, said) as directory:
        for stop in stops:
            peer = load_or_create(home).peer_id
            await directory.announce(announcement(peer, start=stop - 1, stop=stop))


def check(said: list[Record]) -> set[int]:
    """Nothing was said twice in two ways; the boots that were used."""
    seen: Said = {}
    for record in said:
        name = (record.slot, record.boot, record.seq)
        assert seen.setdefault(name, record.digest) == record.digest
    return {record.boot for record in said}


@pytest.mark.parametrize("hours", [0.0, 1.0, 48.0])
async def test_a_restored_home_never_says_two_things_under_one_name(
    tmp_path: Path, autojump_clock: MockClock, hours: float
) -> None:
    """Snapshot; a restart at once; then the snapshot again, with the clock set back: both runs
    find the same last boot, and choose the same next one."""
    home, snapshot = tmp_path / "home", tmp_path / "snapshot"
    said: list[Record] = []
    await announce(home, EPOCH_S, range(1, 20), said)
    shutil.copytree(home, snapshot)
    for now in (EPOCH_S + 0.5, EPOCH_S - 3600 * hours, EPOCH_S - 3600 * hours + 1):
        shutil.rmtree(home)
        shutil.copytree(snapshot, home)
        await announce(home, now, range(20, 40), said)
        await announce(home, now, range(40, 60), said)
    boots = check(said)
    assert len(boots) < 7  # or nothing was tried: of seven runs some had one boot


async def test_a_clock_that_jumps_while_a_node_runs_changes_no_name(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    said: list[Record] = []
    home = tmp_path / "home"
    for now in (EPOCH_S, EPOCH_S + 7200, EPOCH_S - 7200, EPOCH_S):
        await announce(home, now, range(1, 10), said)
    assert len(check(said)) == 4


async def test_a_home_that_is_copied_and_started_twice_at_once_says_no_two_things(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It is told so by its own directory (kad._refuse_double); meanwhile it must not be banned."""
    said: list[Record] = []
    homes = tmp_path / "home", tmp_path / "copy"
    load_or_create(homes[0])
    shutil.copytree(*homes)
    for home, stops in zip(homes, (range(1, 20), range(20, 40)), strict=True):
        await announce(home, EPOCH_S, stops, said)
    assert len(check(said)) == 1
