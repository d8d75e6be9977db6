"""The room of a home for adapters: what strangers bring takes none of the owner's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from sim.memory_swarm import talk, world
from trio.testing import MockClock, wait_all_tasks_blocked

from potluck.node import adapters
from potluck.node.adapters import Shelf, is_own, shelf_of
from potluck.node.guest.disk import QUANTIZED, make_room
from potluck.swarm.adapter import Bundle

from .test_wardrobe import ONE, bundle, dress


def aged(home: Path, one: Bundle, age: int) -> None:
    """As if it had been used at this second."""
    for path in (home / "adapters" / one.hex).iterdir():
        os.utime(path, (1e9 + age, 1e9 + age))


def here(shelf: Shelf, made: Sequence[Bundle]) -> list[bool]:
    return [shelf.load(one.name) is not None for one in made]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for a few, of which strangers have half."""
    monkeypatch.setattr(adapters, "KEPT_BYTES_MAX", 9000)
    monkeypatch.setattr(adapters, "BROUGHT_BYTES_MAX", 4500)


async def test_what_clients_bring_leaves_the_owners_own_where_it_is(
    autojump_clock: MockClock, tmp_path: Path, small: None
) -> None:
    """Each takes some 2100 bytes."""
    shelf, own = Shelf(tmp_path), [bundle(seed) for seed in (20, 21)]
    for age, one in enumerate(own):
        assert shelf.save(one)
        aged(tmp_path, one, age)
    brought = [bundle(seed) for seed in range(2, 6)]
    async with world() as made:
        await made.add(0, 6, shelf=shelf)
        for age, one in enumerate(brought):
            await talk(made, {}, one)
            aged(tmp_path, one, 100 + age)
    assert here(shelf, [*own, *brought]) == [True, True, False, False, True, True]


def test_strangers_have_a_share_of_what_the_owners_own_leave(tmp_path: Path, small: None) -> None:
    shelf, made = Shelf(tmp_path), [bundle(seed) for seed in range(8)]
    for age, one in enumerate(made[:3]):
        assert shelf.save_brought(one)
        aged(tmp_path, one, age)
    assert here(shelf, made[:3]) == [False, True, True]
    assert not shelf.save_brought(bundle(size=800)), "4800 bytes and more"
    assert here(shelf, made[:3]) == [False, True, True], "nothing goes for what finds no room"
    for age, one in enumerate(made[3:7]):
        assert shelf.save(one)
        aged(tmp_path, one, 10 + age)
    assert here(shelf, made[1:7]) == [False, False, True, True, True, True]
    assert not shelf.save_brought(made[7]), "the owner's own have left no room"
    assert shelf.save(made[7])
    assert here(shelf, made[3:]) == [False, True, True, True, True], "his own longest unused"


def test_what_somebody_wears_is_not_pushed_out(tmp_path: Path, small: None) -> None:
    shelf, made = shelf_of(tmp_path), [bundle(seed) for seed in range(4)]
    for age, one in enumerate(made[:2]):
        assert shelf.save_brought(one)
        shelf.hold(one.name)
        aged(tmp_path, one, age)
    assert not shelf.save_brought(made[2])
    shelf_of(tmp_path).let_go(made[1].name)
    assert shelf.save_brought(made[2])
    assert here(shelf, made[:3]) == [True, False, True]


def test_what_the_owner_asks_for_is_his_own_whoever_brought_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "BROUGHT_BYTES_MAX", 4500)
    shelf, made = Shelf(tmp_path), [bundle(seed) for seed in range(5)]
    assert shelf.save_brought(made[0])
    shelf.claim(made[0].name)
    for age, one in enumerate(made[1:]):
        assert shelf.save_brought(one)
        aged(tmp_path, one, age)
    assert here(shelf, made) == [True, False, False, True, True]
    assert shelf.save_brought(made[0]), "brought anew, in parts or whole"
    assert is_own(tmp_path / "adapters" / made[0].hex)


def test_what_else_lies_there_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "KEPT_BYTES_MAX", 5000)
    shelf = Shelf(tmp_path)
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "a file").write_bytes(bytes(99))
    (tmp_path / "adapters" / "empty").mkdir()
    made = [bundle(seed) for seed in range(3)]
    assert [shelf.save(one) for one in made] == [True] * 3
    assert sum(here(shelf, made)) == 2


async def test_a_session_holds_what_it_wears(autojump_clock: MockClock, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    async with world() as made:
        await made.add(0, 6, shelf=shelf)
        first, second = await dress(made, ONE), await dress(made, ONE)
        assert shelf._worn == {ONE.hex: 2}
        for frames in (first, second):
            await frames.close()
            await wait_all_tasks_blocked()
    assert not shelf._worn


def test_the_owners_limit_takes_his_own_adapters_last(tmp_path: Path) -> None:
    shelf, own, brought = Shelf(tmp_path), bundle(1), bundle(2)
    assert shelf.save(own) and shelf.save_brought(brought)
    aged(tmp_path, own, 0)
    blocks = tmp_path / QUANTIZED / "model" / "0"
    blocks.mkdir(parents=True)
    (blocks / "weights").write_bytes(bytes(1000))
    make_room(tmp_path, 2500, lambda home: 1 << 40)
    assert here(shelf, [own, brought]) == [True, False] and not blocks.exists()
