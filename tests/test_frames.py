"""Frames over one stream, as the two ends of a session take them."""

from __future__ import annotations

import trio
from sim.memory_host import MemoryStream, _Pipe

from potluck.node.frames import READ_BYTES, FrameStream
from potluck.swarm.frame import pack_frame
from potluck.swarm.wire import Renew, Sign, Step


async def test_a_flood_of_small_frames_leaves_others_their_turn() -> None:
    """One read brings 28,000 frames that cost nothing to send: whoever takes them in one go holds
    up everybody else for as long as it takes to read them."""
    inward = _Pipe()
    frames = FrameStream(MemoryStream("flooder", inward, _Pipe()))
    inward.data += pack_frame(Renew()) * 1000
    assert len(inward.data) < READ_BYTES
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(1000):
            assert await frames.receive() is not None
        assert turns >= 900
        nursery.cancel_scope.cancel()


async def test_a_reader_that_is_cancelled_between_two_frames_loses_none() -> None:
    inward = _Pipe()
    frames = FrameStream(MemoryStream("peer", inward, _Pipe()))
    inward.data += pack_frame(Renew()) * 3
    taken = 0
    while taken < 3:
        with trio.CancelScope() as scope:
            if taken:
                scope.cancel()
            await frames.receive()
            taken += 1
        if scope.cancelled_caught:
            assert await frames.receive() is not None
            taken += 1
    assert not frames._reader.unfinished


async def test_two_frames_in_one_flush_are_two_frames() -> None:
    road = _Pipe()
    here, there = MemoryStream("there", _Pipe(), road), MemoryStream("here", road, _Pipe())
    await FrameStream(here).send_both(Step(0, (1,), 1), b"row", b"s", behind=Sign())
    frames = FrameStream(there)
    received = [await frames.receive(), await frames.receive()]
    assert [one and (one[0], bytes(one[1])) for one in received] == [
        (Step(0, (1,), 1), b"rows"),
        (Sign(), b""),
    ]
