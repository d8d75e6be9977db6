"""One stream: what is sent arrives, ends reach the other side, cancelled calls leave no trace."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing
from net_pairs import (
    MIB,
    RawPeer,
    echo,
    links,
    make_mux,
    muxes,
    receive_all,
    receive_exactly,
    receive_fails,
    send_fails,
    settled,
)

from potluck.errors import LocalError, TransportError
from potluck.node.net.mux_config import MuxConfig
from potluck.node.net.mux_frame import (
    FIRST_WINDOW_BYTES,
)
from potluck.node.net.negotiate import Answer, proposal


@pytest.mark.parametrize("size", [1, 1024, 65_507, 65_508, 3 * MIB])
async def test_what_is_sent_arrives(size: int) -> None:
    body = random.Random(size).randbytes(size)
    async with muxes(serve=echo) as pair:
        stream = pair.alice.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, body[: size // 2], memoryview(body)[size // 2 :])
            assert await receive_exactly(stream, size) == body
        await stream.close()
        await settled()
        assert not pair.alice.streams and not pair.bob.streams


async def test_parts_of_any_buffer_are_one_run_of_bytes() -> None:
    """A memoryview counts by its bytes, not by its items."""
    numbers = memoryview(bytearray(range(64))).cast("I")
    async with muxes(serve=echo) as pair:
        stream = pair.alice.open()
        await stream.send(b"ab", bytearray(b"cd"), numbers, b"")
        assert await receive_exactly(stream, 68) == b"abcd" + bytes(range(64))


async def test_no_more_is_received_than_was_asked_for() -> None:
    async with muxes(serve=echo) as pair:
        stream = pair.alice.open()
        await stream.send(b"abcdef")
        assert bytes(await stream.receive(4)) == b"abcd"
        assert bytes(await stream.receive(4)) == b"ef"


async def test_a_side_that_has_finished_still_hears_the_other() -> None:
    async with muxes() as pair:
        stream = pair.alice.open()
        await stream.send(b"question")
        await stream.finish()
        await settled()
        (theirs,) = pair.to_bob
        assert await receive_all(theirs) == b"question"
        await theirs.send(b"answer")
        await theirs.close()
        assert await receive_all(stream) == b"answer"
        assert not pair.bob.streams
        with pytest.raises(TransportError):
            await stream.send(b"more")


async def test_close_says_all_that_was_sent_before_it() -> None:
    async with muxes() as pair:
        stream = pair.alice.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, bytes(2 * MIB))
            await settled()
            nursery.start_soon(stream.close)
            await settled()
            (theirs,) = pair.to_bob
            assert len(await receive_all(theirs)) == 2 * MIB
            await theirs.close()
        await settled()
        assert not pair.alice.streams and not pair.bob.streams


async def test_a_reset_reaches_both_directions() -> None:
    async with muxes() as pair:
        stream = pair.alice.open()
        await stream.send(b"x")
        await settled()
        (theirs,) = pair.to_bob
        assert bytes(await theirs.receive()) == b"x"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_fails, theirs)
            await settled()
            await stream.reset()
            await stream.reset()
        with pytest.raises(TransportError, match="reset"):
            await theirs.send(b"y")
        with pytest.raises(TransportError):
            await stream.receive()
        assert not pair.alice.streams and not pair.bob.streams


async def test_a_stream_that_was_never_used_was_never_there() -> None:
    async with muxes() as pair:
        await pair.alice.open().close()
        await pair.alice.open().reset()
        await settled()
        assert not pair.to_bob and not pair.alice.streams


async def test_two_tasks_may_not_receive_from_one_stream() -> None:
    async with muxes() as pair:
        stream = pair.alice.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive)
            await settled()
            with pytest.raises(LocalError):
                await stream.receive()
            nursery.cancel_scope.cancel()


async def test_a_cancelled_receive_loses_nothing() -> None:
    async with muxes() as pair:
        stream = pair.alice.open()
        await stream.send(b"1")
        await settled()
        (theirs,) = pair.to_bob
        assert bytes(await theirs.receive()) == b"1"
        with trio.move_on_after(0.01):
            await theirs.receive()
        await stream.send(b"2")
        assert bytes(await theirs.receive()) == b"2"


async def test_a_send_cancelled_before_its_first_byte_was_never_sent() -> None:
    async with muxes(MuxConfig(first_window_bytes=FIRST_WINDOW_BYTES)) as pair:
        stream = pair.alice.open()
        await stream.send(bytes(FIRST_WINDOW_BYTES))  # now the peer must read before more may go
        with trio.move_on_after(0.01):
            await stream.send(b"never")
        await settled()
        (theirs,) = pair.to_bob
        await receive_exactly(theirs, FIRST_WINDOW_BYTES)
        await stream.send(b"later")
        assert await receive_exactly(theirs, 5) == b"later"


async def test_a_send_cancelled_half_way_resets_its_stream_and_no_other() -> None:
    async with muxes(serve=echo) as pair:
        other = pair.alice.open()
        stream = pair.alice.open()
        with trio.move_on_after(0.02):
            await stream.send(bytes(50 * MIB))
        with pytest.raises(TransportError, match="half way"):
            await stream.send(b"x")
        await other.send(b"fine")
        assert await receive_exactly(other, 4) == b"fine"


async def test_an_empty_send_announces_a_stream() -> None:
    async with muxes() as pair:
        await pair.alice.open().send()
        await settled()
        assert len(pair.to_bob) == 1


async def test_sends_of_many_tasks_are_not_mixed() -> None:
    """20 tasks send 100 KB each of their own letter; each run comes in one piece."""
    async with muxes(serve=echo) as pair:
        stream = pair.alice.open()
        async with trio.open_nursery() as nursery:
            for letter in b"abcdefghijklmnopqrst":
                nursery.start_soon(stream.send, bytes([letter]) * 100_000)
            heard = await receive_exactly(stream, 2_000_000)
    runs = [heard[at : at + 100_000] for at in range(0, 2_000_000, 100_000)]
    assert sorted(run[0] for run in runs) == list(b"abcdefghijklmnopqrst")
    assert all(len(set(run)) == 1 for run in runs)


async def test_a_stream_may_end_before_it_has_said_anything() -> None:
    """Its beginning and end reach the peer with the first receive, as its proposal would."""
    async with muxes() as pair:
        stream = pair.alice.open()
        await stream.finish()
        async with trio.open_nursery() as nursery:

            async def hear() -> None:
                assert await receive_all(stream) == b"answer"

            nursery.start_soon(hear)
            await settled()
            (theirs,) = pair.to_bob
            assert await receive_all(theirs) == b""
            await theirs.send(b"answer")
            await theirs.close()
        assert not pair.alice.streams and not pair.bob.streams


async def test_a_cancelled_receive_leaves_the_proposal_on_its_way() -> None:
    """The socket is full of bulk, so the proposal waits; who receives next waits with it."""
    left, right = await links()
    async with trio.open_nursery() as nursery:
        mux = make_mux(left, lambda _: None, dialer=True)
        nursery.start_soon(mux.run)
        bulk, stream = mux.open(), mux.open()
        stream.preface, stream.answer = proposal("/x/1"), Answer("/x/1")
        bulk.window = 1 << 30
        nursery.start_soon(send_fails, bulk, bytes(20 * MIB))
        await settled()
        with trio.move_on_after(0.01) as waited:
            await stream.receive()
        assert waited.cancelled_caught
        nursery.start_soon(receive_fails, stream)
        peer, heard = RawPeer(right), b""
        with trio.fail_after(5):
            while len(heard) < len(proposal("/x/1")):
                mine = [one for one in await peer.hear() if one.stream_id == stream.stream_id]
                heard += b"".join(bytes(one.payload or b"") for one in mine)
        assert heard == proposal("/x/1")
        mux.close()
        right.close()
