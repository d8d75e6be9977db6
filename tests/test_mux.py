"""Yamux: streams stay whole, windows hold, nobody can make us wait, nothing is left behind."""

from __future__ import annotations

import gc
import random
import tracemalloc
from contextlib import suppress

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from net_pairs import (
    MIB,
    RawPeer,
    against_raw,
    echo,
    links,
    make_mux,
    muxes,
    receive_all,
    receive_exactly,
    settled,
    unread,
)

from potluck.errors import LocalError, RemoteError, TransportError
from potluck.node.net.mux import Mux
from potluck.node.net.mux_config import MuxConfig
from potluck.node.net.mux_frame import (
    ACCEPTED_PAYLOAD_BYTES_MAX,
    ACK,
    DATA,
    FIN,
    FIRST_WINDOW_BYTES,
    GO_AWAY,
    GOOD_BYE,
    HEADER_BYTES,
    PING,
    PROTOCOL_FAULT,
    RST,
    SYN,
    WINDOW,
    Frame,
    FrameReader,
    header,
)
from potluck.node.net.mux_stream import MuxStream


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    return header(DATA, flags, stream_id, len(payload)) + payload


# ---- frames


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 15), st.integers(0, 99), st.binary(max_size=60))
    ),
    st.lists(st.integers(1, 50), min_size=1),
)
def test_frames_come_out_whole_however_the_bytes_were_cut(
    sent: list[tuple[int, int, int, bytes]], cuts: list[int]
) -> None:
    """The parts of a long frame add up, SYN and ACK on the first, FIN and RST on the last."""
    wire = b"".join(
        header(kind, flags, stream_id, len(body)) + (body if kind == DATA else b"")
        for kind, flags, stream_id, body in sent
    )
    reader, heard, at, turn = FrameReader(), [], 0, 0
    while at < len(wire):
        size = cuts[turn % len(cuts)]
        heard += reader.feed(wire[at : at + size])
        at, turn = at + size, turn + 1
    whole: list[list[object]] = []
    for frame in heard:
        body = bytes(frame.payload or b"")
        if whole and whole[-1][4]:
            last = whole[-1]
            last[1] = int(str(last[1])) | frame.flags
            last[3] = bytes(last[3]) + body  # type: ignore[call-overload]
        else:
            whole.append([frame.kind, frame.flags, frame.stream_id, body, 0])
        wanted = len(sent[len(whole) - 1][3]) if frame.kind == DATA else 0
        whole[-1][4] = wanted - len(whole[-1][3])  # type: ignore[arg-type]
    assert [tuple(each[:4]) for each in whole] == [
        (kind, flags, stream_id, body if kind == DATA else b"")
        for kind, flags, stream_id, body in sent
    ]


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_garbage_is_frames_or_a_peers_fault(pieces: list[bytes]) -> None:
    reader = FrameReader()
    try:
        for piece in pieces:
            reader.feed(piece)
    except RemoteError:
        pass


def test_an_absurd_length_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(RemoteError, match="announces"):
        FrameReader().feed(header(DATA, 0, 1, ACCEPTED_PAYLOAD_BYTES_MAX + 1))


# ---- streams


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


async def receive_fails(stream: MuxStream) -> None:
    with pytest.raises(TransportError):
        await stream.receive()


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


# ---- cancellation


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


async def send_fails(stream: MuxStream, body: bytes) -> None:
    with pytest.raises(TransportError):
        await stream.send(body)


# ---- a peer that does not keep the rules


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


# ---- life and death


async def test_a_silent_peer_is_dead_after_ten_ticks() -> None:
    async with against_raw() as (peer, mux, _):
        for _ in range(10):
            mux.tick()
        assert mux.failure is None
        assert [frame.kind for frame in await peer.hear()] == [PING]
        mux.tick()
        assert isinstance(mux.failure, TransportError)


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


def test_a_header_is_twelve_bytes() -> None:
    assert header(PING, SYN, 0, 7) == bytes.fromhex("000200010000000000000007")
    assert len(header(DATA, 0, 1, 1)) == HEADER_BYTES
    assert Frame(DATA, 0, 1, 0).payload is None


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


async def test_frames_behind_the_one_that_ends_a_connection_are_not_taken() -> None:
    async with against_raw() as (peer, mux, accepted):
        pings = header(PING, SYN, 0, 1) * 3000
        await peer.say(pings + header(WINDOW, SYN, 1, 0) + pings + header(WINDOW, SYN, 3, 0))
        await settled()
        assert isinstance(mux.failure, RemoteError)
        assert not accepted and not mux.streams


async def test_an_empty_send_announces_a_stream() -> None:
    async with muxes() as pair:
        await pair.alice.open().send()
        await settled()
        assert len(pair.to_bob) == 1
