"""Neighbours by multicast DNS: a zeroconf that fails is asked again, a crowd a few at a time."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import trio
from zeroconf import EventLoopBlocked, ServiceInfo, ServiceStateChange

from potluck.node.net import lan
from potluck.node.net.aside import aside

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


async def test_a_crowd_of_neighbours_is_asked_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Whoever shouts a thousand names on the LAN gets no thousand tasks and threads of ours."""
    asking = most = 0

    class Network:
        def get_service_info(self) -> None: ...

        def close(self) -> None: ...

    class Browser:
        def __init__(self, network: Network, service: str, handlers: list[Any]) -> None:
            for number in range(1000):
                handlers[0](network, service, f"{number}", ServiceStateChange.Added)

    async def slow(function: Any, *_: Any) -> Any:
        nonlocal asking, most
        if function is Network:
            return Network()
        asking += 1
        most = max(most, asking)
        await trio.sleep(lan.ASK_MS / 1000)
        asking -= 1

    async def met(_: object) -> None: ...

    monkeypatch.setattr(lan, "Zeroconf", Network)
    monkeypatch.setattr(lan, "ServiceBrowser", Browser)
    monkeypatch.setattr(lan, "aside", slow)
    with trio.move_on_after(60):
        await lan.tell_and_listen("me", lambda: [], met)
    assert most == lan.ASKED_AT_ONCE


async def test_those_who_wait_for_a_neighbour_keep_nobody_elses_threads() -> None:
    """A name is looked up, or a model opened, while every call of these is under way."""
    hold, running = threading.Event(), threading.Semaphore(0)

    def wait() -> None:
        running.release()
        hold.wait(10)

    async with trio.open_nursery() as nursery:
        for _ in range(60):  # more than trio's own limit
            nursery.start_soon(aside, wait)
        with trio.fail_after(5):
            while not running.acquire(blocking=False):
                await trio.lowlevel.checkpoint()
            assert await trio.to_thread.run_sync(lambda: "free") == "free"
        hold.set()
