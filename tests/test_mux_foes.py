"""A peer that does not keep yamux's rules: cut off, or bounded; and the others do not notice."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress

import pytest
import trio
import trio.testing
from net_pairs import (
    RawPeer,
    against_raw,
    data,
    receive_all,
    receive_exactly,
    settled,
    unread,
)

from potluck.errors import RemoteError, TransportError
from potluck.node.net.mux_config import MuxConfig
from potluck.node.net.mux_frame import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    PING,
    PROTOCOL_FAULT,
    RST,
    SYN,
    WINDOW,
    header,
)


async def test_a_peer_that_overruns_its_window_is_cut_off() -> None:
    """Stock only warns, and keeps every byte (M2)."""
    async with against_raw() as (peer, mux, accepted):
        await peer.say(header(WINDOW, SYN, 1, 0))
        with suppress(TransportError):
            for _ in range(16):
                await peer.say(data(1, bytes(65_000)))
        await settled()
        assert isinstance(mux.failure, RemoteError)
        assert mux.unread.total_bytes == 0
        assert accepted[0].failure is mux.failure
        frames = [frame for frame in await peer.hear() if frame.kind == GO_AWAY]
        assert [frame.value for frame in frames] == [PROTOCOL_FAULT]


@pytest.mark.parametrize(
    "frames",
    [
        header(WINDOW, SYN, 2, 0),  # an id of the other side's
        header(WINDOW, SYN, 0, 0),
        header(WINDOW, SYN, 1, 0) * 2,
        header(7, 0, 1, 0),
        b"\x01" + header(DATA, 0, 1, 0)[1:],  # a version that there is not
        header(WINDOW, SYN, 1, 0) + data(1, b"", FIN) + data(1, b"after the end"),
        header(DATA, 0, 1, 1 << 31),
    ],
)
async def test_a_peer_that_breaks_the_protocol_is_cut_off(frames: bytes) -> None:
    async with against_raw() as (peer, mux, _):
        await peer.say(frames)
        await settled()
        assert isinstance(mux.failure, RemoteError)


@pytest.mark.parametrize("whole", [False, True])
async def test_a_reset_is_noticed_by_who_does_not_read(whole: bool) -> None:
    """So is the end of the connection; that the peer has finished is neither."""
    async with against_raw() as (peer, mux, _):
        await peer.say(header(WINDOW, SYN, 1, 0), data(1, b"unread", FIN))
        await settled()
        with trio.move_on_after(0.05) as waited:
            await mux.streams[1].broken()
        assert waited.cancelled_caught
        stream = mux.streams[1]
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(stream.broken)
            if whole:
                mux.fail(TransportError("the road is gone"))
            else:
                await peer.say(header(WINDOW, RST, 1, 0))
        assert bytes(await stream.receive()) == b"unread"


async def test_frames_of_streams_that_are_over_are_passed_by() -> None:
    async with against_raw() as (peer, mux, _):
        await peer.say(data(1, b"whose?"), header(WINDOW, RST, 3, 0), header(WINDOW, FIN, 5, 9))
        await peer.say(header(WINDOW, ACK, 7, 0))
        await settled()
        assert mux.failure is None and not mux.streams


async def test_a_peer_that_asks_and_does_not_read_is_cut_off() -> None:
    """100,000 pings whose answers nobody takes: their room is bounded."""
    async with against_raw() as (peer, mux, _):
        with pytest.raises(TransportError):
            while mux.failure is None:
                await peer.say(header(PING, SYN, 0, 1) * 2000)
                await trio.lowlevel.checkpoint()
            raise TransportError(str(mux.failure))
        assert isinstance(mux.failure, RemoteError)


async def test_too_many_streams_are_refused_one_by_one() -> None:
    config = MuxConfig(inbound_streams_max=10)
    async with against_raw(config) as (peer, mux, accepted):
        await peer.say(*(header(WINDOW, SYN, 1 + 2 * n, 0) for n in range(15)))
        refused: list[int] = []
        while len(refused) < 5:
            refused += [frame.stream_id for frame in await peer.hear() if frame.flags & RST]
        assert refused == [21, 23, 25, 27, 29]
        assert len(accepted) == len(mux.streams) == 10
        await accepted[0].reset()
        await peer.say(header(WINDOW, SYN, 31, 0))
        await settled()
        assert len(accepted) == 11


async def test_streams_opened_and_reset_at_once_cost_no_task() -> None:
    async with against_raw() as (peer, mux, accepted), trio.open_nursery() as nursery:
        nursery.start_soon(swallow_frames, peer)
        for n in range(0, 20_000, 1000):
            ids = range(1 + 2 * n, 1 + 2 * (n + 1000), 2)
            await peer.say(*(header(WINDOW, SYN, i, 0) + header(WINDOW, RST, i, 0) for i in ids))
            await settled()
        assert mux.failure is None
        assert not accepted and not mux.streams
        nursery.cancel_scope.cancel()


async def swallow_frames(peer: RawPeer) -> None:
    while True:
        await peer.hear()


async def test_tiny_frames_cost_what_they_weigh() -> None:
    """A window of one-byte frames that nobody reads: joined, not one object each."""
    async with against_raw() as (peer, _, accepted):
        await peer.say(header(WINDOW, SYN, 1, 0))
        await settled()
        tracemalloc.start()
        for _ in range(40):
            await peer.say(data(1, b"x") * 1000)
            await settled()
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert accepted[0].unread == 40_000
        assert used < 500_000


async def test_when_too_much_is_unread_the_fullest_stream_goes() -> None:
    bound = unread(connection=300_000)
    async with against_raw(bound=bound) as (peer, mux, accepted):
        for stream_id, size in ((1, 30_000), (3, 60_000), (5, 30_000)):
            await peer.say(header(WINDOW, SYN, stream_id, 0))
            for _ in range(3):
                await peer.say(data(stream_id, bytes(size)))
        await settled()
        lost = [stream.stream_id for stream in accepted if stream.failure]
        assert lost == [3] and mux.failure is None
        assert mux.unread_bytes == bound.total_bytes == 180_000
        await receive_exactly(accepted[0], 90_000)
        assert bound.total_bytes == 90_000


async def test_unread_bytes_are_bounded_over_all_connections() -> None:
    bound = unread(total=300_000)
    async with (
        against_raw(bound=bound) as (first, _, at_first),
        against_raw(bound=bound) as (second, _, at_second),
    ):
        for peer, size in ((first, 50_000), (second, 60_000)):
            await peer.say(header(WINDOW, SYN, 1, 0))
            await settled()
            for _ in range(3):
                await peer.say(data(1, bytes(size)))
            await settled()
        assert at_first[0].failure is None
        assert at_second[0].failure is not None
        assert bound.total_bytes == 150_000
    assert bound.total_bytes == 0


async def test_frames_behind_the_one_that_ends_a_connection_are_not_taken() -> None:
    async with against_raw() as (peer, mux, accepted):
        pings = header(PING, SYN, 0, 1) * 3000
        await peer.say(pings + header(WINDOW, SYN, 1, 0) + pings + header(WINDOW, SYN, 3, 0))
        await settled()
        assert isinstance(mux.failure, RemoteError)
        assert not accepted and not mux.streams


async def hold(peer: RawPeer, stream_id: int, end: bytes) -> None:
    """90,000 bytes on a new stream, which nobody reads, and its end."""
    await peer.say(header(WINDOW, SYN, stream_id, 0))
    await settled()
    await peer.say(data(stream_id, bytes(60_000)), data(stream_id, bytes(30_000)), end)
    await settled()


async def test_what_is_unread_on_streams_that_were_reset_harms_no_other() -> None:
    """It can still be read, so it counts; and when it is too much, it is this that is dropped."""
    bound = unread(connection=300_000)
    async with against_raw(bound=bound) as (peer, mux, accepted):
        for stream_id in (1, 3, 5):
            await hold(peer, stream_id, header(WINDOW, RST, stream_id, 0))
        await peer.say(header(WINDOW, SYN, 7, 0))
        await settled()
        await peer.say(data(7, bytes(40_000)))
        await settled()
        assert mux.failure is None and accepted[3].failure is None
        assert mux.unread_bytes == bound.total_bytes == 220_000
        assert sorted(one.unread for one in accepted) == [0, 40_000, 90_000, 90_000]
        await receive_exactly(accepted[3], 40_000)


async def test_a_peer_whose_streams_are_all_over_may_hold_the_most() -> None:
    """Somebody else's bytes are one too many in all: found where no stream is open any more."""
    bound = unread(total=300_000)
    async with (
        against_raw(bound=bound) as (peer, mux, _),
        against_raw(bound=bound) as (other, _, accepted),
    ):
        for stream_id in (1, 3, 5):
            await hold(peer, stream_id, header(WINDOW, RST, stream_id, 0))
        await other.say(header(WINDOW, SYN, 1, 0))
        await settled()
        await other.say(data(1, bytes(40_000)))
        await settled()
        assert accepted[0].failure is None
        assert not mux.streams and bound.total_bytes == 220_000


@pytest.mark.parametrize("end", [header(DATA, FIN, 1, 0), header(WINDOW, RST, 1, 0)])
async def test_bytes_that_were_dropped_are_no_clean_end(end: bytes) -> None:
    async with against_raw(bound=unread(connection=100_000)) as (peer, _, accepted):
        await hold(peer, 1, end)
        await peer.say(header(WINDOW, SYN, 3, 0))
        await settled()
        await peer.say(data(3, bytes(50_000)))
        await settled()
        with pytest.raises(TransportError, match=r"nobody read|reset"):
            await receive_all(accepted[0])


async def test_an_id_that_is_used_again_is_another_stream() -> None:
    """The old one is over, but its handler goes on: its end does not touch the new one."""
    async with against_raw() as (peer, mux, accepted):
        await peer.say(header(WINDOW, SYN, 1, 0))
        await settled()
        await peer.say(header(WINDOW, RST, 1, 0))
        await settled()
        await peer.say(header(WINDOW, SYN, 1, 0))
        await settled()
        old, new = accepted
        await old.close()
        await old.reset()
        assert mux.streams == {1: new} and not mux.lingering
        await peer.say(data(1, b"fine"))
        assert await receive_exactly(new, 4) == b"fine"
