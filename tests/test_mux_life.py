"""How a connection and its streams end: by silence, by good-byes, by breaking; and who hears."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from net_pairs import (
    MIB,
    RawPeer,
    against_raw,
    data,
    echo,
    links,
    make_mux,
    muxes,
    receive_fails,
    send_fails,
    settled,
)

from potluck.errors import TransportError
from potluck.node.net.mux_config import MuxConfig
from potluck.node.net.mux_frame import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    GOOD_BYE,
    PING,
    RST,
    SYN,
    WINDOW,
    FrameReader,
    header,
)


async def test_a_silent_peer_is_dead_after_ten_ticks() -> None:
    async with against_raw() as (peer, mux, _):
        for _ in range(10):
            mux.tick()
        assert mux.failure is None
        assert [frame.kind for frame in await peer.hear()] == [PING]
        mux.tick()
        assert isinstance(mux.failure, TransportError)


async def test_on_a_quiet_connection_one_end_asks_for_life_and_the_other_answers() -> None:
    async with muxes() as pair:
        for _ in range(60):
            pair.alice.tick()
            pair.bob.tick()
            await settled()
        assert pair.alice.failure is None and pair.bob.failure is None
        asked = sorted((pair.alice._pings, pair.bob._pings))
        assert asked[0] == 0 and asked[1] >= 60 // (MuxConfig().ping_after_ticks + 1)


async def test_a_peer_that_answers_pings_lives() -> None:
    async with muxes() as pair:
        for _ in range(100):
            pair.alice.tick()
            await settled()
        assert pair.alice.failure is None
        assert pair.alice.rtt_s <= 0.001


async def test_ticks_that_were_late_kill_nobody() -> None:
    """What stood still was we, for an hour: the peer's bytes are in the socket."""
    async with against_raw() as (peer, mux, _):
        for _ in range(9):
            mux.tick()
        await peer.say(header(PING, ACK, 0, 1))
        mux.tick()
        await settled()
        for _ in range(9):
            mux.tick()
        assert mux.failure is None


async def test_after_our_close_the_peer_may_finish_but_not_go_on() -> None:
    async with against_raw(serve=lambda stream: stream.close()) as (peer, mux, accepted):
        await peer.say(header(WINDOW, SYN, 1, 0), header(WINDOW, SYN, 3, 0))
        await settled()
        await peer.say(data(1, bytes(60_000)), header(DATA, FIN, 1, 0))
        await peer.say(data(3, bytes(60_000)), data(3, bytes(60_000)))
        await settled()
        assert not mux.streams and mux.unread_bytes == 0
        assert accepted[0].failure is None and accepted[1].failure is not None


async def test_a_stream_that_the_peer_never_ends_is_reset_in_time() -> None:
    async with against_raw(serve=lambda stream: stream.close()) as (peer, mux, _):
        await peer.say(header(WINDOW, SYN, 1, 0))
        await settled()
        assert len(mux.streams) == 1
        for _ in range(31):
            await peer.say(header(PING, ACK, 0, 0))
            await settled()
            mux.tick()
        assert not mux.streams


async def test_a_peer_that_goes_away_gets_no_new_streams_but_may_end_the_old() -> None:
    async with against_raw(serve=echo) as (peer, mux, accepted):
        await peer.say(header(WINDOW, SYN, 1, 0), data(1, b"old"), header(GO_AWAY, 0, 0, GOOD_BYE))
        await settled()
        with pytest.raises(TransportError):
            mux.open()
        heard = b""
        while heard != b"old":
            heard += b"".join(bytes(frame.payload or b"") for frame in await peer.hear())
        await peer.say(header(DATA, FIN, 1, 0))
        await settled()
        mux.tick()
        assert mux.failure is not None and accepted[0].failure is None


async def test_a_broken_connection_wakes_everybody() -> None:
    async with muxes() as pair:
        stream, waiting = pair.alice.open(), pair.alice.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_fails, stream, bytes(9 * MIB))
            nursery.start_soon(receive_fails, waiting)
            await settled()
            pair.bob.close()
        with pytest.raises(TransportError):
            pair.alice.open()


async def test_a_send_that_meets_a_broken_connection_says_so() -> None:
    """Also when it goes straight into the socket, where nobody has noticed the end yet."""
    left, right = await links()
    async with trio.open_nursery() as nursery:
        mux = make_mux(left, lambda _: None, dialer=True)
        nursery.start_soon(mux.run)
        stream = mux.open()
        await stream.send(b"x")
        right.close()
        with pytest.raises(TransportError):
            await stream.send(b"y")


async def test_too_many_unacknowledged_streams_wait_for_their_turn() -> None:
    config = MuxConfig(unacked_streams_max=4)
    left, right = await links()
    async with trio.open_nursery() as nursery:
        mux = make_mux(left, lambda _: None, dialer=True, config=config)
        nursery.start_soon(mux.run)
        for _ in range(6):
            nursery.start_soon(mux.open().send, b"x")
        await settled()
        reader = FrameReader()
        opened = [
            frame.stream_id
            for piece in await right.receive()
            for frame in reader.feed(piece)
            if frame.flags & SYN
        ]
        assert len(opened) == 4
        right.push([header(WINDOW, ACK, opened[0], 0) + header(WINDOW, RST, opened[1], 0)])
        await settled()
        more = [frame for piece in await right.receive() for frame in reader.feed(piece)]
        assert len([frame for frame in more if frame.flags & SYN]) == 2
        mux.close()
        right.close()


async def test_whoever_needs_its_turn_no_more_leaves_it_to_the_next() -> None:
    """One unacknowledged stream at a time; the second is closed while it waits for the first."""
    left, right = await links()
    async with trio.open_nursery() as nursery:
        mux = make_mux(left, lambda _: None, dialer=True, config=MuxConfig(unacked_streams_max=1))
        nursery.start_soon(mux.run)
        first, second, third = (mux.open() for _ in range(3))
        for stream, send in ((first, first.send), (second, None), (third, third.send)):
            nursery.start_soon(*((send, b"x") if send else (send_fails, stream, b"x")))
            await settled()
        peer = RawPeer(right)
        await peer.hear()
        await second.close()
        await peer.say(header(WINDOW, ACK, first.stream_id, 0))
        await settled()
        assert third.announced and not second.announced
        mux.close()
        right.close()
