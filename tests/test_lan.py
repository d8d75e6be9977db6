"""Neighbours by multicast DNS: what zeroconf cannot do at the moment is tried again."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from zeroconf import EventLoopBlocked, ServiceInfo

from potluck.node.net import lan

ADDRESS = "/ip4/192.0.2.7/tcp/4001/p2p/12D3KooWBH3CjqyoJEBp6JaDvonDpB3N8aPQeTBr9MdGYoXxHmbT"


class Asleep:
    """A zeroconf whose thread is behind its time, twice."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def register_service(self, info: ServiceInfo) -> None:
        self.names.append(info.name)
        if len(self.names) < 3:
            raise EventLoopBlocked

    def get_service_info(self, *_: object) -> None:
        raise EventLoopBlocked


async def test_a_sleep_in_the_middle_of_telling_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def here(function: Any, *args: Any) -> Any:
        return function(*args)

    monkeypatch.setattr(lan, "aside", here)
    asleep: Any = Asleep()
    with trio.move_on_after(2.5 * lan.SAY_AGAIN_S):
        await lan._tell(asleep, lambda: [ADDRESS])
    assert len(asleep.names) == len(set(asleep.names)) == 3

    async def met(_: object) -> None:
        raise AssertionError("nobody was asked")

    await lan._meet(asleep, "somebody", "me", met, set())
