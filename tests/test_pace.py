"""As many bytes a second as the owner allows, fairly among connections; and not one is lost."""

from __future__ import annotations

import itertools

import pytest
import trio
from net_pairs import sockets
from trio.testing import MockClock

from potluck.errors import TransportError
from potluck.node.net.carrier import SocketCarrier
from potluck.node.net.host import HostConfig, open_host
from potluck.node.net.pace import (
    BURST_S,
    LEAST_BYTES_S,
    PIECE_BYTES_MAX,
    Bucket,
    Pace,
    PacedCarrier,
)
from potluck.node.net.stream import Stream

RATE = 256 * 1024.0
SECOND = 4.0  # of sending


class Sink:
    """A road that takes and gives whatever it is asked for, at once."""

    local_host = ""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.blocks = False
        self.closed = False

    def recv(self, size: int, /) -> bytes:
        return bytes(size)

    def recv_into(self, buffer: memoryview, /) -> int:
        return len(buffer)

    def send(self, data: bytes | bytearray | memoryview, /) -> int:
        if self.blocks:
            raise BlockingIOError
        self.sent += data
        return len(data)

    async def readable(self) -> None:
        await trio.lowlevel.checkpoint()

    async def writable(self) -> None:
        await trio.lowlevel.checkpoint()

    def path_rtt_s(self) -> float:
        return 0.0

    def close(self) -> None:
        self.closed = True


async def send_all(carrier: PacedCarrier, data: bytes) -> None:
    """As a link does: what was not taken comes first again."""
    at = 0
    while at < len(data):
        try:
            at += carrier.send(data[at:])
        except BlockingIOError:
            await carrier.writable()


async def test_connections_share_the_rate_and_get_equal_parts(autojump_clock: MockClock) -> None:
    pace = Pace(up_bytes_s=RATE)
    sinks = [Sink() for _ in range(5)]
    with trio.move_on_after(SECOND):
        async with trio.open_nursery() as nursery:
            for sink in sinks:
                nursery.start_soon(send_all, PacedCarrier(sink, pace), bytes(1 << 24))
    sizes = [len(sink.sent) for sink in sinks]
    burst = BURST_S * RATE  # which the first has
    assert SECOND * RATE * 0.95 <= sum(sizes) <= SECOND * RATE + burst + 1
    assert max(sizes) - min(sizes) <= burst + 2 * pace.up.piece_bytes


async def test_what_is_read_is_paid_for_before_more_is_read(autojump_clock: MockClock) -> None:
    pace = Pace(down_bytes_s=RATE)
    read = [0, 0, 0]

    async def read_on(number: int) -> None:
        carrier = PacedCarrier(Sink(), pace)
        buffer = memoryview(bytearray(1 << 20))
        for turn in itertools.count():
            await carrier.readable()
            read[number] += carrier.recv_into(buffer) if turn % 2 else len(carrier.recv(1 << 20))

    with trio.move_on_after(SECOND):
        async with trio.open_nursery() as nursery:
            for number in range(len(read)):
                nursery.start_soon(read_on, number)
    burst = BURST_S * RATE
    assert SECOND * RATE * 0.95 <= sum(read) <= SECOND * RATE + burst + 3 * pace.down.piece_bytes
    assert max(read) - min(read) <= burst + 2 * pace.down.piece_bytes


async def test_little_is_sent_at_once_and_nobody_overtakes_who_waits(
    autojump_clock: MockClock,
) -> None:
    pace = Pace(up_bytes_s=RATE)
    first, second = PacedCarrier(Sink(), pace), PacedCarrier(Sink(), pace)
    assert first.send(b"a token's hidden state") == 22 and trio.current_time() == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all, first, bytes(1 << 18))
        await trio.sleep(0.5)  # the burst is spent, and the first waits
        with pytest.raises(BlockingIOError):
            second.send(b"me first")
        began_s = trio.current_time()
        await send_all(second, b"me first")
        assert 0 < trio.current_time() - began_s <= 3 * pace.up.piece_bytes / RATE
        nursery.cancel_scope.cancel()


async def test_whoever_gives_up_takes_nothing_with_it(autojump_clock: MockClock) -> None:
    bucket = Bucket(RATE)
    await bucket.wait(int(RATE * BURST_S))
    for _ in range(100):
        with trio.move_on_after(0.001):
            await bucket.wait(PIECE_BYTES_MAX)
    began_s = trio.current_time()
    await bucket.wait(1024)
    assert trio.current_time() - began_s < 0.01


async def test_a_piece_that_the_road_did_not_take_comes_again_as_it_was(
    autojump_clock: MockClock,
) -> None:
    """As TLS and WebSockets below need it: some of it may be under way already."""
    sink, offered = Sink(), list[bytes]()
    carrier = PacedCarrier(sink, Pace(up_bytes_s=RATE))
    take = sink.send

    def send(data: bytes | bytearray | memoryview, /) -> int:
        offered.append(bytes(data))
        return take(data)

    sink.send = send  # type: ignore[method-assign]
    sink.blocks = True
    data = bytes(range(256)) * 1024
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            carrier.send(data)
        await trio.sleep(1)
    assert len(set(offered)) == 1
    sink.blocks = False
    await send_all(carrier, data)
    assert bytes(sink.sent) == data


async def test_without_a_limit_nothing_stands_between() -> None:
    left, right = sockets()
    carrier = SocketCarrier(left)
    assert Pace().over(carrier) is carrier
    paced = Pace(up_bytes_s=RATE).over(carrier)
    assert isinstance(paced, PacedCarrier)
    paced.close()
    with pytest.raises(TransportError):
        await paced.readable()
    right.close()


async def test_a_host_keeps_to_its_pace_and_loses_nothing() -> None:
    """A real transfer over loopback, of a second at this rate, the burst of a quarter included."""
    rate = 16 * LEAST_BYTES_S
    body = bytes(range(256)) * (rate // 256)
    came = bytearray()

    async def take(stream: Stream) -> None:
        while piece := await stream.receive():
            came.extend(piece)
        await stream.close()

    slow = HostConfig(seed=b"a" * 32, pace=Pace(up_bytes_s=rate))
    async with open_host(slow) as alice, open_host(HostConfig(seed=b"b" * 32)) as bob:
        bob.handle("/take/1", take)
        await alice.connect(bob.addresses())
        began_s = trio.current_time()
        with trio.fail_after(30):
            stream = await alice.open_stream(bob.peer_id, "/take/1")
            await stream.send(body)
            await stream.close()
            while len(came) < len(body):  # noqa: ASYNC110  # another task's work
                await trio.sleep(0.01)
        assert trio.current_time() - began_s >= 0.7 and bytes(came) == body
