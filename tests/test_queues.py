"""Late binding: queues are asked for just before a session takes its route, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from sim.memory_host import MemoryHost, MemoryNet
from sim.memory_swarm import BLOCKS, MODEL, plan, rows, world
from trio.testing import MockClock

from potluck.node.queues import (
    ASK_S,
    ASKERS_MAX,
    COME_S,
    GRACE_S,
    QUEUE_MAX_S,
    Told,
    ask_queues,
    queues_of,
    tell_queue,
)
from potluck.node.session import open_session
from potluck.swarm.blocks import BlockRange


@asynccontextmanager
async def tellers(**queues: float) -> AsyncIterator[tuple[MemoryNet, MemoryHost]]:
    async with trio.open_nursery() as nursery:
        net = MemoryNet(nursery)
        for name, queue_s in queues.items():
            tell_queue(net.host(name), MODEL, lambda queue_s=queue_s: queue_s)
        yield net, net.host("asker")
        nursery.cancel_scope.cancel()


def never(host: MemoryHost) -> None:
    """It takes the stream, and says nothing."""

    async def wait(stream: object) -> None:
        await trio.sleep_forever()

    host.handle(queues_of(MODEL), wait)


def slowly(host: MemoryHost, after_s: float) -> None:
    tell = host.handlers[queues_of(MODEL)]

    async def wait(stream: object) -> None:
        await trio.sleep(after_s)
        await tell(stream)  # type: ignore[arg-type]

    host.handle(queues_of(MODEL), wait)


async def test_what_is_told_is_heard_and_who_is_not_there_tells_nothing(
    autojump_clock: MockClock,
) -> None:
    async with tellers(a=0.0, b=0.25, c=1e9, d=1.0) as (net, asker):
        net.host("d").dead = True
        net.host("stranger")
        told = await ask_queues(asker, MODEL, ["a", "b", "c", "d", "stranger"])  # type: ignore[arg-type]
        assert told == {"a": 0.0, "b": 0.25, "c": QUEUE_MAX_S}
        assert await ask_queues(asker, "cd" * 32, ["a", "b"]) == {}  # type: ignore[arg-type]


async def test_the_silent_are_waited_for_as_long_again_as_half_of_all_took(
    autojump_clock: MockClock,
) -> None:
    async with tellers(a=0.1, b=0.1, c=0.1, d=0.1) as (net, asker):
        never(net.host("a"))
        slowly(net.host("b"), 0.2)
        slowly(net.host("c"), 0.2)
        slowly(net.host("d"), 0.3)
        began_s = trio.current_time()
        told = await ask_queues(asker, MODEL, ["a", "b", "c", "d"])  # type: ignore[arg-type]
        assert told.keys() == {"b", "c", "d"}
        assert trio.current_time() - began_s == pytest.approx(0.4)


async def test_the_living_are_heard_though_dials_to_the_dead_fail_at_once(
    autojump_clock: MockClock,
) -> None:
    """A machine that restarts refuses in a millisecond; a living one is an ocean away."""
    async with tellers(a=0.1, b=0.1, c=0.1, d=0.1) as (net, asker):
        for name in "abc":
            net.host(name).dead = True
        slowly(net.host("d"), 0.3)
        told = await ask_queues(asker, MODEL, ["a", "b", "c", "d"])  # type: ignore[arg-type]
        assert told == {"d": 0.1}


async def test_nobody_is_waited_for_longer_than_a_bad_road_takes(autojump_clock: MockClock) -> None:
    async with tellers(a=0.1, b=0.1, c=0.1) as (net, asker):
        for name in "abc":
            never(net.host(name))
        began_s = trio.current_time()
        assert await ask_queues(asker, MODEL, ["a", "b", "c"]) == {}  # type: ignore[arg-type]
        assert trio.current_time() - began_s == pytest.approx(ASK_S)


async def test_whoever_begins_goes_to_the_idle_one_though_another_seems_faster(
    autojump_clock: MockClock,
) -> None:
    """Each client is a new one and knows nothing; all would choose the same, which has the lowest
    claim of all costs."""
    async with world((0, BLOCKS), (0, BLOCKS), (0, BLOCKS)) as made:
        busy = made.nodes[0]
        for node in made.nodes[:2]:
            tell_queue(node.host, MODEL, lambda: 5.0)  # type: ignore[arg-type]
        for _ in range(10):
            _, router = made.client()
            route = await router.route(MODEL, BLOCKS, BlockRange(0, BLOCKS), cache_tokens=10)
            assert [hop.peer for hop in route.hops] == [made.nodes[2].host.peer_id]
            assert router.history(busy.host.peer_id).queue_s(trio.current_time()) > 4


async def test_whoever_hurries_asks_nobody(autojump_clock: MockClock) -> None:
    async with world((0, BLOCKS), (0, BLOCKS)) as made:
        for node in made.nodes:
            never(node.host)
        _, router = made.client()
        began_s = trio.current_time()
        await router.route(MODEL, BLOCKS, BlockRange(0, BLOCKS), cache_tokens=10, hurry=True)
        assert trio.current_time() - began_s < GRACE_S


async def test_where_nobody_could_stand_in_nobody_is_asked(autojump_clock: MockClock) -> None:
    async with world((0, 3), (3, BLOCKS)) as made:
        for node in made.nodes:
            never(node.host)
        _, router = made.client()
        began_s = trio.current_time()
        route = await router.route(MODEL, BLOCKS, BlockRange(0, BLOCKS), cache_tokens=10)
        assert len(route.hops) == 2 and trio.current_time() - began_s < GRACE_S


async def test_a_peer_that_answers_nothing_is_left_out_of_a_new_session(
    autojump_clock: MockClock,
) -> None:
    """As one whose machine is off, and whose record lives on."""
    for _ in range(10):
        async with world((0, BLOCKS), (0, BLOCKS), (0, BLOCKS)) as made:
            silent = made.nodes[0]
            never(silent.host)
            host, router = made.client()
            async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
                session.feed(rows(1), tokens=1, rows=1)
                await session.output()
                assert session.recoveries == []
                assert session.route[0].peer != silent.host.peer_id


async def test_a_server_tells_of_the_rows_that_wait_and_of_none_when_idle(
    autojump_clock: MockClock,
) -> None:
    async with world() as made:
        node = await made.add(0, BLOCKS, step_s=2.0)
        host, router = made.client()
        async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
            session.feed(rows(1), tokens=1, rows=1)
            await trio.sleep(3.0)  # to open takes one step's time, too
            told = await ask_queues(host, MODEL, [node.host.peer_id])  # type: ignore[arg-type]
            assert told == {node.host.peer_id: 2.0}
            await session.output()
            assert node.server.rows == 0


async def test_who_asks_at_the_same_moment_is_told_of_those_who_were_before(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        net = MemoryNet(nursery)
        tell_queue(net.host("a"), MODEL, lambda: 1.0, lambda: 6.0)  # type: ignore[arg-type]
        told = [
            (await ask_queues(net.host(f"asker{n}"), MODEL, ["a"]))["a"]  # type: ignore[arg-type]
            for n in range(3)
        ]
        assert told[0] == 1.0 < told[1] < told[2]
        await trio.sleep(COME_S)
        assert (await ask_queues(net.host("late"), MODEL, ["a"]))["a"] == 1.0  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()


def test_who_asks_again_and_again_is_expected_once() -> None:
    told = Told(lambda: 0.0, lambda: 6.0)
    first, second, *others = (told.asked("one", 0.1, 1e-3 * n) for n in range(50))
    assert first == 0.0 < second <= 6.0 and {second} == set(others)
    assert told.asked("other", None, 0.1) == second


def test_what_is_expected_follows_who_came() -> None:
    """The same queue; those of one server come, and those of the other never do."""
    chosen, shunned = Told(lambda: 0.5, lambda: 6.0), Told(lambda: 0.5, lambda: 6.0)
    for n in range(500):
        for told in (chosen, shunned):
            told.asked("asker", 0.1, 10.0 * n)
        chosen.came("asker", 10.0 * n + 1)
        shunned.came("stranger", 10.0 * n + 1)
        shunned.came("asker", 10.0 * n + COME_S + 1)  # too late: not because of what it was told
    assert chosen.asked("one", 0.1, 1e5) == shunned.asked("one", 0.1, 1e5) == 0.5
    assert chosen.asked("two", 0.1, 1e5) == pytest.approx(6.5)
    assert shunned.asked("two", 0.1, 1e5) < 0.7


def test_no_more_askers_are_kept_in_mind_than_there_is_room_for() -> None:
    told = Told(lambda: 0.0, lambda: 1.0)
    for n in range(2 * ASKERS_MAX):
        told.asked(f"asker{n}", 0.0, n)
    assert len(told._askers) == ASKERS_MAX
