"""Yamux: streams do not mix or wait for each other, and nothing is left behind."""

from __future__ import annotations

import gc
import random
import tracemalloc

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from net_pairs import (
    MIB,
    against_raw,
    echo,
    links,
    make_mux,
    muxes,
    receive_exactly,
    send_fails,
    settled,
)

from potluck.errors import TransportError
from potluck.node.net.mux import Mux
from potluck.node.net.mux_config import MuxConfig
from potluck.node.net.mux_frame import (
    DATA,
    FIRST_WINDOW_BYTES,
    SYN,
    WINDOW,
    FrameReader,
    header,
)
from potluck.node.net.mux_stream import MuxStream


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    return header(DATA, flags, stream_id, len(payload)) + payload


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_streams_do_not_mix_whatever_is_sent_when(seed: int) -> None:
    trio.run(many_at_once, random.Random(seed))


async def many_at_once(dice: random.Random) -> None:
    """Both ends open up to 8 streams and send, in pieces of all sizes, what the other echoes."""

    async def talk(stream: MuxStream, body: bytes) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say, stream, body, random.Random(len(body)))
            assert await receive_exactly(stream, len(body)) == body
        await stream.close()

    async def say(stream: MuxStream, body: bytes, cut: random.Random) -> None:
        at = 0
        while at < len(body):
            size = cut.choice((1, 100, 5_000, 70_000, 1_000_000))
            await stream.send(body[at : at + size])
            at += size

    async with muxes(serve=echo) as pair:
        assert pair.nursery is not None
        async with trio.open_nursery() as nursery:
            for _ in range(dice.randint(1, 8)):
                body = dice.randbytes(dice.choice((1, 1000, 300_000, 2_000_000)))
                nursery.start_soon(talk, pair.alice.open(), body)
        await settled()
        assert not pair.alice.streams and not pair.bob.streams
        assert pair.alice.unread_bytes == pair.bob.unread_bytes == 0


async def test_both_ends_in_bulk_while_both_open_streams() -> None:
    """Stock py-libp2p stops for ever here within seconds (M1): its reader waits to write."""

    async def swallow(stream: MuxStream) -> None:
        while await stream.receive():
            pass
        await stream.close()

    left, right = await links()
    async with trio.open_nursery() as nursery:
        alice = make_mux(left, lambda s: nursery.start_soon(swallow, s), dialer=True)
        bob = make_mux(right, lambda s: nursery.start_soon(swallow, s), dialer=False)
        nursery.start_soon(alice.run)
        nursery.start_soon(bob.run)

        async def bulk(stream: MuxStream) -> None:
            for _ in range(24):
                await stream.send(bytes(MIB))
            await stream.close()

        with trio.fail_after(20):
            async with trio.open_nursery() as senders:
                for mux in (alice, bob):
                    for _ in range(2):
                        senders.start_soon(bulk, mux.open())
                for _ in range(200):
                    for mux in (alice, bob):
                        stream = mux.open()
                        await stream.send(b"hello")
                        await stream.close()
                    await trio.lowlevel.checkpoint()
        alice.close()
        bob.close()


async def test_a_small_message_overtakes_bulk() -> None:
    """A stalled reader leaves 20 MiB of bulk waiting; a small message passes nearly all of it."""
    left, right = await links()
    async with trio.open_nursery() as nursery:
        mux = make_mux(left, lambda _: None, dialer=True)
        nursery.start_soon(mux.run)
        bulk, small = mux.open(), mux.open()
        bulk.window = 1 << 30
        nursery.start_soon(send_fails, bulk, bytes(20 * MIB))
        await settled()
        nursery.start_soon(small.send, b"small")
        reader, ahead = FrameReader(), 0
        found = False
        while not found:
            for piece in await right.receive():
                for frame in reader.feed(piece):
                    found = found or frame.value == len(b"small")
                    ahead += 0 if found else frame.value
        assert ahead < 2 * MIB  # what stood in the sockets already
        mux.close()
        right.close()
        nursery.cancel_scope.cancel()


async def test_a_slow_reader_holds_back_only_its_own_stream() -> None:
    async with muxes() as pair:
        slow, quick = pair.alice.open(), pair.alice.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow.send, bytes(20 * MIB))
            await settled()
            nursery.start_soon(quick.send, bytes(5 * MIB))
            await settled()
            await receive_exactly(pair.to_bob[1], 5 * MIB)
            assert pair.bob.unread_bytes <= MuxConfig().first_window_bytes
            nursery.cancel_scope.cancel()


async def test_windows_grow_only_where_the_path_is_long() -> None:
    async with muxes() as pair:
        pair.bob.rtt_s = 0.0  # a short path: nothing is read within no time
        stream = pair.alice.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, bytes(8 * MIB))
            await settled()
            await receive_exactly(pair.to_bob[0], 8 * MIB)
        assert pair.to_bob[0].size == MuxConfig().first_window_bytes
        pair.bob.rtt_s = 10.0  # a long one
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, bytes(24 * MIB))
            await receive_exactly(pair.to_bob[0], 24 * MIB)
        largest = MuxConfig().largest_window_bytes
        assert largest // 2 < pair.to_bob[0].size <= largest


async def test_many_streams_get_small_windows() -> None:
    config = MuxConfig(granted_bytes_max=4 * MIB)
    async with against_raw(config) as (peer, _, accepted):
        await peer.say(*(header(WINDOW, SYN, 1 + 2 * n, 0) for n in range(100)))
        await settled()
        sizes = [stream.size for stream in accepted]
        assert sizes[0] == config.first_window_bytes
        assert sizes[-1] == FIRST_WINDOW_BYTES


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_both_ends_do_nothing_is_left(seed: int) -> None:
    trio.run(do_anything, random.Random(seed))


async def do_anything(dice: random.Random) -> None:
    """60 streams, opened by either end; each end sends, reads, finishes, closes, resets and is
    cancelled as the dice fall. What one end reads is always a beginning of what the other sent."""
    said: dict[tuple[str, int], bytearray] = {}
    read: dict[tuple[str, int], bytearray] = {}

    async def act(mux: Mux, stream: MuxStream, letter: bytes) -> None:
        mine = said.setdefault((mux.peer, stream.stream_id), bytearray())
        heard = read.setdefault((mux.peer, stream.stream_id), bytearray())
        try:
            for _ in range(dice.randint(0, 6)):
                with trio.move_on_after(dice.choice((0.0, 0.002, 0.02))):
                    if dice.random() < 0.5:
                        body = letter * dice.choice((0, 1, 500, 20_000, 400_000))
                        mine += body  # perhaps more than will be sent
                        await stream.send(body)
                    else:
                        heard += await stream.receive(dice.choice((1, 1000, 1 << 20)))
            if dice.random() < 0.2:
                await stream.finish()
                await trio.lowlevel.checkpoint()
        except TransportError:
            pass
        finally:
            await (stream.reset() if dice.random() < 0.3 else stream.close())

    left, right = await links()
    async with trio.open_nursery() as nursery:
        ends: list[Mux] = []

        def accepted(stream: MuxStream) -> None:
            nursery.start_soon(act, stream.mux, stream, b"b")

        config = MuxConfig(linger_ticks=3)
        ends.append(make_mux(left, accepted, dialer=True, config=config))
        ends.append(make_mux(right, accepted, dialer=False, config=config))
        for mux in ends:
            nursery.start_soon(mux.run)
        async with trio.open_nursery() as acting:
            for _ in range(30):
                for mux in ends:
                    acting.start_soon(act, mux, mux.open(), b"a")
                if dice.random() < 0.5:
                    await trio.lowlevel.checkpoint()
        for _ in range(5):
            await settled()
            for mux in ends:
                mux.tick()
        await settled()
        for mux in ends:
            assert mux.failure is None
            assert not mux.streams and not mux.lingering
            assert mux.unread_bytes == 0
        for mux in ends:
            mux.close()
    for (peer, stream_id), heard in read.items():
        (other,) = {name for name, number in said if number == stream_id} - {peer} or {peer}
        if other != peer:
            # a send cancelled before its first byte was never sent: compare what, not how much
            assert set(heard) <= set(said[other, stream_id])


async def test_two_thousand_streams_leave_nothing_behind() -> None:
    """Open, one request, close; and 200 at once. Memory after 400 and after 2,000 is the same."""
    async with muxes(serve=echo) as pair:

        async def once() -> None:
            stream = pair.alice.open()
            await stream.send(b"step")
            assert await receive_exactly(stream, 4) == b"step"
            await stream.close()

        async def two_hundred() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(once)
            pair.to_bob.clear()

        await settled()
        tasks = trio.lowlevel.current_statistics().tasks_living
        tracemalloc.start()
        used = []
        for turn in range(10):
            await two_hundred() if turn % 2 else [await once() for _ in range(200)]
            pair.to_bob.clear()
            await settled()
            gc.collect()
            used.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert not pair.alice.streams and not pair.bob.streams
        assert not pair.alice.lingering and not pair.bob.lingering
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert pair.alice.unread_bytes == pair.bob.unread_bytes == 0
        assert used[-1] - used[1] < 20_000
