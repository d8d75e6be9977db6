"""A node of several models: memory in equal parts, one state for all, each asked for its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from sim.memory_host import MemoryNet
from trio.testing import MockClock

from potluck.errors import UserError
from potluck.node.compute.choice import host_share
from potluck.node.config import ModelWish, NodeConfig
from potluck.node.house import MODELS_MAX, House, configs_of
from potluck.node.queues import COME_S, ask_queues
from potluck.swarm.wire import Open

MIB = 1 << 20


def config_of(*others: str, **options: Any) -> NodeConfig:
    also = tuple(ModelWish(other, "0:2", other.upper()) for other in others)
    return NodeConfig(Path("home"), "demo", also=also, **options)


def test_a_node_of_one_model_is_as_its_owner_said() -> None:
    config = config_of(max_memory_mib=0, cache_mib=7)
    assert configs_of(config) == [config]


def test_several_models_share_memory_in_equal_parts() -> None:
    one, other, third = configs_of(config_of("a", "b", max_memory_mib=100, cache_mib=10))
    assert [(each.model, each.blocks, each.name) for each in (one, other, third)] == [
        ("demo", "auto", ""), ("a", "0:2", "A"), ("b", "0:2", "B"),
    ]  # fmt: skip
    assert {each.max_memory_mib for each in (one, other, third)} == {33}
    assert {each.cache_mib for each in (one, other, third)} == {3}


def test_with_no_limit_the_free_memory_is_shared_so_that_the_first_does_not_take_it_all() -> None:
    one, other = configs_of(config_of("a"))
    assert one.part_mib == other.part_mib > 0
    assert one.max_memory_mib == 0  # sessions take a share of a part, as with one model
    assert one.cache_mib == other.cache_mib == 0


def test_the_hosts_memory_for_sessions_at_rest_is_shared_too() -> None:
    assert [one.spill_mib for one in configs_of(config_of("a", spill_mib=9))] == [4, 4]
    assert [one.spill_mib for one in configs_of(config_of("a", spill_mib=0))] == [0, 0]
    one, other = configs_of(config_of("a"))
    assert one.spill_mib is not None and one.spill_mib == other.spill_mib
    assert 0 < one.spill_mib <= host_share() // MIB


def test_more_models_than_a_list_has_room_for_are_refused() -> None:
    with pytest.raises(UserError, match=f"{MODELS_MAX} at most"):
        configs_of(config_of(*"abcdefgh"))


@dataclass
class _Model:
    digest: str


@dataclass
class _Holder:
    model: _Model
    state: str = "serving"
    trouble: str = ""
    asked: list[Open] = field(default_factory=list)
    fails: bool = False
    told: list[str] = field(default_factory=list)

    async def take(self) -> None:
        self.told.append("joining")
        if self.fails:
            raise UserError("no room")

    async def unsay(self, within_s: float) -> None:
        self.told.append("gone")

    def choose(self, asked: Open) -> None:
        self.asked.append(asked)

    def queue_s(self) -> float:
        return 0.5

    def step_s(self) -> float:
        return 6.0


@dataclass
class _Room:
    holder: _Holder


def house_of(*holders: _Holder) -> House:
    return House([_Room(holder) for holder in holders])  # type: ignore[list-item]


def test_it_rests_once_all_of_its_models_do() -> None:
    one, other = _Holder(_Model("a")), _Holder(_Model("b"))
    house = house_of(one, other)
    assert house.state == "serving"
    one.state = "resting"
    assert house.state == "changing"
    other.state, other.trouble = "resting", "no room"
    assert house.state == "resting" and house.trouble == "no room"


def test_a_session_comes_to_the_holder_of_its_model_and_a_foreign_one_to_the_first() -> None:
    one, other = _Holder(_Model("a")), _Holder(_Model("b"))
    house = house_of(one, other)
    for model in ("b", "a", "c"):
        house._choose(asked := Open(bytes(16), model, 0, 1, 1, "f32"), "asker")
        assert (asked in one.asked) == (model != "b") and (asked in other.asked) == (model == "b")


async def test_who_opens_a_session_came_because_of_what_it_was_told(
    autojump_clock: MockClock,
) -> None:
    """A queue after which they come is one for which they are expected."""
    expected = {}
    for comes in (True, False):
        async with trio.open_nursery() as nursery:
            net = MemoryNet(nursery)
            house, host = house_of(_Holder(_Model("a"))), net.host("server")
            house.tell_queues(host)  # type: ignore[arg-type]
            for _ in range(100):
                assert await ask_queues(net.host("asker"), "a", ["server"])  # type: ignore[arg-type]
                if comes:
                    house._choose(Open(bytes(16), "a", 0, 1, 1, "f32"), "asker")
                await trio.sleep(COME_S)
            await ask_queues(net.host("one"), "a", ["server"])  # type: ignore[arg-type]
            told = await ask_queues(net.host("two"), "a", ["server"])  # type: ignore[arg-type]
            expected[comes] = told["server"] - 0.5
            nursery.cancel_scope.cancel()
    assert expected[True] > 5 * expected[False]


async def test_when_one_model_cannot_be_loaded_nobody_is_left_to_believe_that_we_join() -> None:
    one, other = _Holder(_Model("a")), _Holder(_Model("b"), fails=True)
    with pytest.raises(UserError, match="no room"):
        await house_of(one, other).take()
    assert one.told == other.told == ["joining", "gone"]
