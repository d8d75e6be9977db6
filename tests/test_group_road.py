"""Letters in order, parts when they are awaited, and bounds on what a peer can make us do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from groups_world import FIRST, KEYS
from sim.group_town import GroupHost
from sim.memory_host import MemoryNet
from trio.testing import MockClock

from potluck.errors import Refused, RemoteError, TransportError
from potluck.node.letters import send_letter
from potluck.node.runs.group_road import (
    EARLY_S,
    IDLE_S,
    LETTERS,
    STREAMS_MAX,
    Roads,
    seconds_for,
)
from potluck.swarm.run.group_wire import Agreed, Ask, Ballot, Given, Member, Message, Part, pack

PROTOCOL = "/test/group"
BALLOT = Ballot(1, Member(KEYS[0].peer_id, 1))
PART = Part(FIRST, BALLOT, bytes(32), "give", 0, 1000)


def agreed(number: int) -> Agreed:
    return Agreed(FIRST, BALLOT, number)


@dataclass
class Ears:
    """One end, and what was told to it. wants: whether parts are awaited now."""

    host: GroupHost
    roads: Roads = field(init=False)
    wants: bool = True
    changed: trio.Event = field(default_factory=trio.Event)
    heard_: list[Message] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    lost_: list[str] = field(default_factory=list)
    state: bytes = b""

    def heard(self, peer: str, message: Message) -> None:
        self.heard_.append(message)

    def awaits(self, peer: str, part: Part) -> int | None:
        return part.size if self.wants and not self.parts else None

    def came(self, peer: str, part: Part, data: bytes) -> None:
        self.parts.append(data)

    def lost(self, peer: str) -> None:
        self.lost_.append(peer)

    async def given(self, peer: str, ask: Ask) -> tuple[Given, bytes] | None:
        await trio.lowlevel.checkpoint()
        return (Given(FIRST, 1, (), len(self.state)), self.state) if self.state else None

    def now_wants(self) -> None:
        self.wants = True
        self.changed.set()
        self.changed = trio.Event()


@asynccontextmanager
async def two() -> AsyncIterator[tuple[MemoryNet, Ears, Ears]]:
    async with trio.open_nursery() as nursery:
        net = MemoryNet(nursery)
        ends = []
        for name in ("one", "other"):
            host = GroupHost(net, name)
            net.hosts[name] = host
            ears = Ears(host)
            ears.roads = Roads(host, PROTOCOL, ears, nursery)
            host.handle(PROTOCOL, ears.roads.serve)
            ends.append(ears)
        yield net, ends[0], ends[1]
        nursery.cancel_scope.cancel()


async def test_letters_come_in_order_on_one_stream(autojump_clock: MockClock) -> None:
    async with two() as (_, one, other):
        for number in range(20):
            one.roads.say("other", agreed(number))
        await trio.sleep(1)
        assert other.heard_ == [agreed(number) for number in range(20)]
        assert len(other.host.streams) == 1
        assert one.roads.sent_bytes == other.roads.received_bytes > 0


async def test_who_cannot_be_reached_or_dies_is_lost(autojump_clock: MockClock) -> None:
    async with two() as (_, one, other):
        one.roads.say("nobody", agreed(0))
        one.roads.say("other", agreed(0))
        await trio.sleep(1)
        assert one.lost_ == ["nobody"]
        await other.host.die()
        await trio.sleep(1)
        assert one.lost_ == ["nobody", "other"]  # though there was nothing more to say


async def test_one_who_takes_nothing_is_lost_and_its_letters_are_dropped(
    autojump_clock: MockClock,
) -> None:
    async with two() as (_, one, other):
        other.host.handlers.clear()
        for number in range(100):
            one.roads.say("other", agreed(number))
        await trio.sleep(60)
        assert set(one.lost_) == {"other"}
        other.host.handle(PROTOCOL, other.roads.serve)
        one.roads.say("other", agreed(7))
        await trio.sleep(1)
        assert other.heard_ == [agreed(7)]


async def test_a_stream_without_letters_is_closed_and_the_next_letter_opens_another(
    autojump_clock: MockClock,
) -> None:
    async with two() as (net, one, other):
        one.roads.say("other", agreed(1))
        await trio.sleep(3 * IDLE_S)
        assert other.host.streams == [] and one.lost_ == [] and net.faults == []
        one.roads.say("other", agreed(2))
        await trio.sleep(1)
        assert other.heard_ == [agreed(1), agreed(2)]


async def test_a_part_waits_for_its_plan_and_comes_once(autojump_clock: MockClock) -> None:
    async with two() as (net, one, other):
        other.wants = False
        for _ in range(3):
            one.roads.carry("other", PART, bytes(1000))
        await trio.sleep(EARLY_S / 2)
        assert other.parts == []
        other.now_wants()
        await trio.sleep(1)
        assert other.parts == [bytes(1000)] and net.faults == []


async def test_a_part_whose_plan_never_comes_is_let_go(autojump_clock: MockClock) -> None:
    async with two() as (net, one, other):
        other.wants = False
        one.roads.carry("other", PART, bytes(1000))
        await trio.sleep(2 * EARLY_S)
        assert other.parts == [] and other.host.streams == [] and net.faults == []


async def test_a_part_that_stops_half_way_is_not_waited_for(autojump_clock: MockClock) -> None:
    async with two() as (net, one, other):
        stream = await one.host.open_stream("other", PROTOCOL)
        await send_letter(stream, pack(PART))
        await stream.send(bytes(999))
        await trio.sleep(2 * seconds_for(PART.size))
        assert other.parts == []
        assert [type(fault) for _, fault in net.faults] == [TransportError]


async def test_what_is_dropped_is_carried_no_further(autojump_clock: MockClock) -> None:
    async with two() as (_, one, other):
        other.wants = False
        one.roads.carry("other", PART, bytes(1000))
        one.roads.drop()
        await trio.sleep(1)
        other.now_wants()
        await trio.sleep(1)
        assert other.parts == []


async def test_streams_and_letters_of_a_peer_are_bounded(autojump_clock: MockClock) -> None:
    async with two() as (net, one, other):
        for _ in range(STREAMS_MAX + 1):
            await one.host.open_stream("other", PROTOCOL)
        await trio.sleep(1)
        assert [type(fault) for _, fault in net.faults] == [Refused]
        net.faults.clear()
        for stream in list(other.host.streams):
            await stream.reset()
        await trio.sleep(1)
        net.faults.clear()
        stream = await one.host.open_stream("other", PROTOCOL)
        await send_letter(stream, *[pack(agreed(0))] * (2 * int(LETTERS[1])))
        await trio.sleep(1)
        assert [type(fault) for _, fault in net.faults] == [RemoteError]
        assert LETTERS[1] <= len(other.heard_) <= LETTERS[1] + 5


async def test_after_the_end_nothing_is_served(autojump_clock: MockClock) -> None:
    """Handlers run in tasks of the host: one that outlived the run would act for nobody."""
    async with two() as (net, one, other):
        one.roads.say("other", agreed(1))
        await trio.sleep(1)
        other.roads.close()
        await trio.sleep(1)
        assert other.host.streams == []
        one.roads.say("other", agreed(2))
        await trio.sleep(1)
        assert other.heard_ == [agreed(1)] and one.lost_ == ["other", "other"]
        assert [type(fault) for _, fault in net.faults] == [TransportError]


async def test_nothing_is_proposed_to_who_does_not_take_part(autojump_clock: MockClock) -> None:
    """It would look like a fault of ours."""
    async with two() as (net, one, other):
        other.host.unhandle(PROTOCOL)
        opened = []
        one.host.open_stream = lambda *asked: opened.append(asked)  # type: ignore[method-assign]
        one.roads.say("other", agreed(1))
        one.roads.carry("other", PART, bytes(1000))
        await trio.sleep(1)
        assert one.lost_ == ["other"] and opened == [] and net.faults == []


async def test_a_state_is_given_to_who_asks_and_no_other_size_is_taken(
    autojump_clock: MockClock,
) -> None:
    async with two() as (_, one, other):
        other.state = bytes(range(200))
        given, data = await one.roads.ask("other", Ask(FIRST), 200)
        assert data == other.state and given.commits == 1
        for size in (199, 201):
            with pytest.raises(RemoteError):
                await one.roads.ask("other", Ask(FIRST), size)
        other.state = b""
        with pytest.raises(TransportError):
            await one.roads.ask("other", Ask(FIRST), 200)
