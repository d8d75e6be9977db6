"""What a guarded member is told: in order, bounded, and never waited for beyond its time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from sim.memory_host import MemoryStream
from test_btard_node import RULES, Seat, all_go, seats
from trio.testing import MockClock, wait_all_tasks_blocked

from potluck.errors import TransportError
from potluck.node.letters import LENGTH_BYTES
from potluck.node.runs.btard import STREAMS_MAX
from potluck.node.runs.outbox import AGAIN_S, MESSAGES_MAX, Outbox, Outboxes
from potluck.swarm.run.btard_wire import PROTOCOL

FIRST, SECOND = b"first", b"second"


def told(*messages: bytes) -> bytes:
    return b"".join(len(one).to_bytes(LENGTH_BYTES) + one for one in messages)


@dataclass(eq=False)
class Line:
    """A stream that takes so many bytes, and then no more until it is told to."""

    room: int
    data: bytes = b""
    ended: str = ""
    opened: trio.Event = field(default_factory=trio.Event)

    async def send(self, *parts: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        for part in parts:
            if len(self.data) + len(part) > self.room:
                await self.opened.wait()
            self.data += bytes(part)

    async def close(self) -> None:
        self.ended = "closed"
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        self.ended = "reset"
        await trio.lowlevel.checkpoint()


class Lines:
    """What an outbox opens, one after another; where there is none any more, the peer is gone."""

    def __init__(self, *rooms: int) -> None:
        self.made: list[Line] = []
        self._rooms = list(rooms)

    async def open(self, peer: str) -> Any:
        await trio.lowlevel.checkpoint()
        if not self._rooms:
            raise TransportError(f"no road to {peer}")
        self.made.append(Line(self._rooms.pop(0)))
        return self.made[-1]


@asynccontextmanager
async def running(lines: Lines, bytes_max: int = 1 << 20) -> AsyncIterator[Outbox]:
    async with trio.open_nursery() as nursery:
        outbox = Outbox("ann", lines.open, bytes_max)
        nursery.start_soon(outbox.run)
        yield outbox
        nursery.cancel_scope.cancel()


async def test_messages_go_in_order_on_one_stream_with_their_loads(
    autojump_clock: MockClock,
) -> None:
    lines = Lines(1 << 20)
    async with running(lines) as outbox:
        assert outbox.post(FIRST, bytes(300_000), 10) and outbox.post(SECOND, b"", 10)
        await wait_all_tasks_blocked()
        assert outbox.waiting_bytes == 0
        assert outbox.sent_bytes == len(FIRST) + 300_000 + len(SECOND)
    (line,) = lines.made
    assert line.data == told(FIRST) + bytes(300_000) + told(SECOND) and line.ended == "closed"


async def test_who_stops_to_read_is_left_at_the_time_and_told_on_when_it_reads_again(
    autojump_clock: MockClock,
) -> None:
    lines = Lines(20, 1 << 20)
    async with running(lines) as outbox:
        now = trio.current_time()
        outbox.post(FIRST, bytes(1000), now + 5)
        outbox.post(FIRST, b"", now + 5)
        outbox.post(SECOND, b"", now + 30)
        await trio.sleep(4)
        assert [one.ended for one in lines.made] == [""]
        await trio.sleep(2)
        assert [one.ended for one in lines.made] == ["reset", ""]
        assert lines.made[1].data == told(SECOND), "nothing of what was over"
        assert outbox.waiting_bytes == 0


async def test_nobody_is_dialed_for_ever(autojump_clock: MockClock) -> None:
    async def hangs(peer: str) -> Any:
        await trio.sleep_forever()

    lines = Lines()
    lines.open = hangs  # type: ignore[method-assign]
    async with running(lines) as outbox:
        outbox.post(FIRST, b"", trio.current_time() + 5)
        await trio.sleep(6)
        assert outbox.waiting_bytes == 0


async def test_a_stream_that_broke_is_opened_once_more(autojump_clock: MockClock) -> None:
    lines = Lines(1 << 20, 1 << 20)
    async with running(lines) as outbox:
        outbox.post(FIRST, b"", trio.current_time() + 5)
        await wait_all_tasks_blocked()

        async def broken(*parts: Any) -> None:
            raise TransportError("gone")

        lines.made[0].send = broken  # type: ignore[method-assign]
        outbox.post(SECOND, b"", trio.current_time() + 5)
        outbox.post(FIRST, b"", trio.current_time() + 5)
        await trio.sleep(2 * AGAIN_S)
        assert lines.made[0].ended == "reset"
        assert lines.made[1].data == told(SECOND, FIRST)


async def test_what_waits_is_bounded_in_number_and_bytes(autojump_clock: MockClock) -> None:
    async with running(Lines(0), bytes_max=1 << 20) as outbox:
        until_s = trio.current_time() + 5
        assert outbox.post(b"", bytes(900_000), until_s)
        assert not outbox.post(b"", bytes(200_000), until_s)
        await wait_all_tasks_blocked()
        taken = sum(outbox.post(b"x", b"", until_s) for _ in range(2 * MESSAGES_MAX))
        assert taken == MESSAGES_MAX and outbox.waiting_bytes == 900_000 + MESSAGES_MAX
        await trio.sleep(6)
        assert outbox.waiting_bytes == 0 and outbox.post(b"", bytes(900_000), until_s + 60)


async def test_who_is_hushed_is_told_nothing_more(autojump_clock: MockClock) -> None:
    lines = Lines(20, 1 << 20)
    async with trio.open_nursery() as nursery:
        outboxes = Outboxes(lines.open, 1 << 20)
        outboxes.begin(nursery)
        outboxes.post("ann", FIRST, b"", trio.current_time() + 60)
        await wait_all_tasks_blocked()
        outboxes.post("ann", SECOND, bytes(1000), trio.current_time() + 60)
        await wait_all_tasks_blocked()
        outboxes.keep(["bob"])
        await wait_all_tasks_blocked()
        assert lines.made[0].ended == "reset" and outboxes.sent_bytes == len(FIRST)
        assert not nursery.child_tasks


# ---- in a group


class Stuck:
    """A stream whose other end reads nothing."""

    def __init__(self, stream: MemoryStream) -> None:
        self._stream = stream
        self.ended = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def send(self, *parts: Any) -> None:
        await trio.sleep_forever()

    async def reset(self) -> None:
        self.ended = True
        await self._stream.reset()


async def test_a_member_that_reads_nothing_holds_up_no_step_and_no_stream_of_ours(
    autojump_clock: MockClock,
) -> None:
    async with seats(5) as found:
        deaf, *others = found
        stuck: list[Stuck] = []
        for one in others:
            deafen(one, deaf, stuck)
        with trio.fail_after(10 * RULES.gather_s):
            await all_go(others, 2)
        assert len({one.group.place for one in others}) == 1
        assert not any(one.convictions for one in others)
        assert {len(one.peers) for one in others} == {4}
        assert len(stuck) >= len(others)
        await trio.sleep(10 * RULES.gather_s)
        assert all(one.ended for one in stuck), "what cannot be said any more is let go"


def deafen(one: Seat, deaf: Seat, stuck: list[Stuck]) -> None:
    opens = one.host.open_stream

    async def open_stream(peer: str, protocol: str) -> Any:
        stream = await opens(peer, protocol)
        if peer != deaf.key.peer_id:
            return stream
        stuck.append(Stuck(stream))
        return stuck[-1]

    one.host.open_stream = open_stream  # type: ignore[method-assign]


async def test_a_member_has_few_streams(autojump_clock: MockClock) -> None:
    async with seats(2) as (one, other):
        for _ in range(STREAMS_MAX + 3):
            await other.host.open_stream(one.key.peer_id, PROTOCOL)
        await wait_all_tasks_blocked()
        assert len([stream for stream in one.host.streams if not stream.inward.broken]) == (
            STREAMS_MAX
        )
