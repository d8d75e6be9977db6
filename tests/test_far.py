"""A road that is made long: the same bytes in the same order, later."""

from __future__ import annotations

import math

import pytest
import trio
from sim.memory_host import MemoryNet, MemoryStream
from trio.testing import MockClock

from potluck.errors import TransportError, UserError
from potluck.node.bench.far import FarHost, FarStream
from potluck.node.testnet.far_peers import read_roads


async def echo(stream: MemoryStream) -> None:
    while data := await stream.receive():
        await stream.send(data)
    await stream.close()


async def test_bytes_come_back_in_order_after_a_round_trip_and_share_it(
    autojump_clock: MockClock,
) -> None:
    """Ten sent one behind the other take one round trip, not ten."""
    async with trio.open_nursery() as nursery:
        net = MemoryNet(nursery)
        net.host("peer").handle("echo", echo)
        far = FarHost(net.host("me"), 0.25, nursery)  # type: ignore[arg-type]
        assert far.rtt_s("peer") == 0.001, "the rest is the host's own"
        stream = await far.open_stream("peer", "echo")
        began_s, came = trio.current_time(), b""
        for number in range(10):
            await stream.send(bytes([number]), b"-")
        while len(came) < 20:
            came += await stream.receive(3)
        assert came == b"".join(bytes([number]) + b"-" for number in range(10))
        assert trio.current_time() - began_s == pytest.approx(0.5, abs=0.01)
        await stream.close()
        assert await stream.receive() == b""
        nursery.cancel_scope.cancel()


async def test_a_broken_road_is_broken_here_too(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        net = MemoryNet(nursery)
        net.host("peer").handle("echo", echo)
        far: FarStream = await FarHost(net.host("me"), 0.1, nursery).open_stream(  # type: ignore[arg-type]
            "peer", "echo"
        )
        await net.hosts["peer"].die()
        with pytest.raises(TransportError):
            await far.receive()
        with pytest.raises(TransportError):
            await far.send(b"more")
        nursery.cancel_scope.cancel()


async def test_a_narrow_road_takes_the_bytes_one_after_another(autojump_clock: MockClock) -> None:
    """Of two streams to one peer: 4,000 bytes at 1,000 a second there, then as many back."""
    async with trio.open_nursery() as nursery:
        net = MemoryNet(nursery)
        net.host("peer").handle("echo", echo)
        far = FarHost(net.host("me"), 0.25, nursery, bytes_s=1000)  # type: ignore[arg-type]
        streams = [await far.open_stream("peer", "echo") for _ in range(2)]
        began_s = trio.current_time()
        for stream in streams:
            await stream.send(bytes(2000))
        for stream, due_s in zip(streams, (2.0 + 2.0, 4.0 + 2.0), strict=True):
            came = 0
            while came < 2000:
                came += len(await stream.receive())
            assert trio.current_time() - began_s == pytest.approx(due_s + 0.5, abs=0.05)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("told", "found"),
    [("60", (0.06, math.inf)), ("60.0:12500000.0", (0.06, 12.5e6)), ("20:inf", (0.02, math.inf))],
)
def test_a_node_is_told_of_roads_by_their_length_and_rate(
    told: str, found: tuple[float, float]
) -> None:
    assert read_roads(told) == found


@pytest.mark.parametrize("told", ["", "far", "-1", "60:", "60:0", "nan", "60:nan"])
def test_roads_that_cannot_be_are_refused(told: str) -> None:
    with pytest.raises(UserError, match="MS:BYTES_S"):
        read_roads(told)
