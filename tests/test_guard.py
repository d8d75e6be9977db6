"""The guard: each attack that ends, fills or fools a stock py-libp2p 0.8.1 fails on ours.

The names S1, H1, ... are those of the audit in DECISIONS.md.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID
from net_hosts import ECHO, seeded
from net_pairs import echo
from stock import at, stock_host

from potluck.errors import RemoteError, TransportError
from potluck.node.net import noise
from potluck.node.net.address import listening, parse
from potluck.node.net.carrier import SocketCarrier
from potluck.node.net.dialer import connect_tcp
from potluck.node.net.guard import Gate, Limits, foreign
from potluck.node.net.host import Host, open_host
from potluck.node.net.mux_config import MuxConfig
from potluck.node.net.mux_frame import DATA, RST, SYN, header
from potluck.node.net.negotiate import REFUSAL, message, proposal
from potluck.node.net.noise import Identity, Scratch
from potluck.node.net.stream import Stream
from potluck.node.net.upgrade import upgrade_dialed
from potluck.node.net.worth import IDLE_TICKS, QUIET_TICKS

KILL = bytes.fromhex("04fffefd0a")  # five bytes that end a stock host


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[Host]:
    async with open_host(seeded("v", **limits)) as victim:
        victim.handle(ECHO, echo)
        yield victim


async def still_serves(victim: Host, letter: str = "h") -> None:
    """An honest peer, who has never been here, gets its answer."""
    with trio.fail_after(5):
        async with open_host(seeded(letter)) as honest:
            peer = await honest.connect(victim.addresses())
            stream = await honest.open_stream(peer, ECHO)
            await stream.send(b"honest")
            assert bytes(await stream.receive()) == b"honest"
            await stream.close()


async def tcp(victim: Host) -> socket.socket:
    return await connect_tcp(parse(victim.addresses()[0]))


async def heard(sock: socket.socket, size: int = 4096) -> bytes:
    """What comes next; b"" when the other end closed."""
    with suppress(ConnectionError), trio.fail_after(5):
        await trio.lowlevel.wait_readable(sock.fileno())
        return sock.recv(size)
    return b""


@asynccontextmanager
async def raw_peer(victim: Host, letter: str = "m") -> AsyncIterator[noise.Link]:
    """Somebody who has shaken hands, and now sends what it likes."""
    sock = await tcp(victim)
    with sock:
        identity = Identity(letter.encode() * 32)
        upgraded = await upgrade_dialed(SocketCarrier(sock), identity, victim.peer_id, Scratch())
        yield upgraded.link
        upgraded.link.close()


# ---- S1: who one is must be proved


@pytest.mark.parametrize("protocol", [str(PLAINTEXT_PROTOCOL_ID), "/secio/1.0.0", "/tls/1.0.0"])
async def test_no_security_but_noise_is_spoken(protocol: str) -> None:
    """S1: a stock listener takes plaintext, where a peer is whoever it says it is."""
    async with serving() as victim:
        with await tcp(victim) as sock:
            sock.send(proposal(protocol))
            answer = b""
            while len(answer) < len(proposal("na")):
                answer += await heard(sock)
            assert answer == proposal("na")
            assert victim.connected() == ()


async def test_a_stock_dialer_that_also_offers_plaintext_gets_noise() -> None:
    async with serving() as victim, stock_host("s", listen=False, only_noise=False) as stock:
        await stock.connect(at(victim.addresses()[0]))
        assert victim.connected() == (str(stock.get_id()),)


async def test_a_listener_that_denies_noise_is_left() -> None:
    """Whoever stands between cannot talk a dialer down to plaintext."""
    async with open_host(seeded("d")) as dialer, trio.open_nursery() as nursery:
        listener = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def deny(stream: trio.SocketStream) -> None:
            await stream.send_all(proposal("na"))
            await stream.receive_some()

        nursery.start_soon(trio.serve_listeners, deny, listener)
        port = listener[0].socket.getsockname()[1]
        with pytest.raises(TransportError, match="does not speak /noise"):
            await dialer.connect([f"/ip4/127.0.0.1/tcp/{port}/p2p/{noise_peer()}"])
        nursery.cancel_scope.cancel()


def noise_peer() -> str:
    return Identity(b"v" * 32).peer_id


# ---- H1 to H3: no bytes end the host


async def test_five_bytes_that_end_a_stock_host_end_their_stream() -> None:
    """H2. The first assertion shows that the bytes still do it to stock."""

    class Five:
        async def read(self, size: int | None = None) -> bytes:
            self.data, taken = self.data[size:], self.data[:size]
            return taken

        async def write(self, data: bytes) -> None: ...

        data = message("/multistream/1.0.0") + KILL

    with pytest.raises(UnicodeDecodeError):
        await Multiselect().negotiate(MultiselectCommunicator(Five()))  # type: ignore[abstract]
    async with serving() as victim:
        async with raw_peer(victim) as link:
            for stream_id, words in ((1, KILL), (3, message("/multistream/1.0.0") + KILL)):
                link.push([header(DATA, SYN, stream_id, len(words)) + words])
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert len(victim.connected()) == 1  # only the streams are gone
        await still_serves(victim)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=4), st.booleans())
def test_no_bytes_end_a_host(pieces: list[bytes], framed: bool) -> None:
    """Garbage as TCP, as streams, as frames: an honest peer is served after it."""

    async def attack() -> None:
        async with serving() as victim:
            with await tcp(victim) as sock, suppress(OSError):
                for piece in pieces:
                    sock.send(piece)
                    await trio.lowlevel.checkpoint()
            async with raw_peer(victim) as link:
                with suppress(TransportError):
                    for number, piece in enumerate(pieces):
                        head = header(DATA, SYN, 1 + 2 * number, len(piece)) if framed else b""
                        link.push([head + piece])
                        await trio.lowlevel.checkpoint()
            await still_serves(victim)

    trio.run(attack)


async def test_what_py_libp2p_raises_becomes_a_peers_fault() -> None:
    with pytest.raises(RemoteError, match="parsing: UnicodeDecodeError"), foreign("parsing"):
        b"\xff".decode()
    with pytest.raises(TransportError), foreign("parsing"):
        raise TransportError("passes as it is")


# ---- C1: places are given back


async def test_places_of_connections_that_ended_are_free_again() -> None:
    """C1: stock takes 250 connections, and then none for ever. Here 8 places serve 30."""
    async with serving(connections_max=8) as victim:
        for number in range(30):
            await still_serves(victim, chr(33 + number))
            with trio.fail_after(2):
                while victim.connected():
                    await trio.lowlevel.checkpoint()


async def test_a_full_host_lets_its_idlest_peer_go() -> None:
    async with (
        serving(connections_max=2) as victim,
        raw_peer(victim, "1"),
        raw_peer(victim, "2"),
    ):
        with pytest.raises(TransportError):
            await still_serves(victim)
        for connection in victim._peers.all():
            connection.mux.streams.clear()  # as when identify is over
            connection.idle_ticks = 2 * IDLE_TICKS
        await still_serves(victim)


async def test_nobody_leaves_for_somebody_who_only_connects() -> None:
    """A TCP connection costs nothing: whose place is wanted has to show who wants it."""
    async with (
        serving(connections_max=2) as victim,
        raw_peer(victim, "1"),
        raw_peer(victim, "2"),
    ):
        for connection in victim._peers.all():
            connection.mux.streams.clear()  # as when identify is over
            connection.idle_ticks = 2 * IDLE_TICKS
        with ExitStack() as opened:
            for _ in range(8):
                opened.enter_context(await tcp(victim))
            with trio.fail_after(5):
                while len(victim._door.shaking) < 8:
                    await trio.lowlevel.checkpoint()
            assert len(victim.connected()) == 2
        await still_serves(victim)


async def test_silent_streams_in_every_place_keep_no_newcomer_out() -> None:
    """Each of 8 holds a stream open and says nothing on it; who is served keeps its place."""
    async with AsyncExitStack() as stack:
        victim = await stack.enter_async_context(serving(connections_max=8))
        served = await stack.enter_async_context(open_host(seeded("s")))
        stream = await served.open_stream(await served.connect(victim.addresses()), ECHO)
        for number in range(7):
            silent = await stack.enter_async_context(open_host(seeded(str(number))))
            peer = await silent.connect(victim.addresses())
            await silent.identified(peer)
            held = await silent.open_stream(peer, ECHO)
            await held.send(b"and then nothing more")
        assert len(victim.connected()) == 8
        for _ in range(QUIET_TICKS + 1):  # as many seconds
            await stream.send(b"step")
            assert bytes(await stream.receive()) == b"step"
            victim._peers.tick()
        for number in range(3):
            await still_serves(victim, chr(97 + number))
        await stream.send(b"step")
        assert bytes(await stream.receive()) == b"step"


# ---- half-open connections, silence, floods


async def test_silent_connections_are_dropped_after_a_while() -> None:
    async with serving(handshake_s=0.05) as victim:
        with await tcp(victim) as silent, await tcp(victim) as half:
            half.send(proposal(noise.PROTOCOL)[:7])
            assert await heard(silent) == b""
            assert await heard(half) == b""
        await still_serves(victim)


async def test_unfinished_handshakes_are_bounded_and_keep_nobody_out() -> None:
    async with serving(handshakes_max=3) as victim:
        with ExitStack() as open_ones:
            opened = [open_ones.enter_context(await tcp(victim)) for _ in range(6)]
            for sock in opened[:3]:
                assert await heard(sock) == b""  # given up, the oldest first
            assert victim._gate._shaking.total() == len(victim._door.shaking) == 3
            await still_serves(victim)
        with trio.fail_after(5):
            while victim._gate._shaking.total():
                await trio.lowlevel.checkpoint()
        await still_serves(victim)


async def test_a_stream_that_does_not_say_what_it_wants_is_dropped() -> None:
    async with serving(negotiation_s=0.05) as victim, raw_peer(victim) as link:
        link.push([header(DATA, SYN, 1, 3) + b"\x13/m"])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert victim._inbound.count
        with trio.fail_after(2):
            while victim._inbound.count:
                await trio.lowlevel.checkpoint()
        assert victim.connected()


async def test_whoever_holds_all_streams_gives_way_to_others() -> None:
    async with serving(inbound_streams_max=5) as victim, raw_peer(victim) as link:
        link.push([b"".join(header(DATA, SYN, 1 + 2 * n, 1) + b"\x13" for n in range(50))])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert victim._inbound.count == 5
        await still_serves(victim)


async def test_handlers_that_outlive_their_streams_keep_nobody_out() -> None:
    """Reset at once, they hold no stream; but it is they that make room, not who is served."""
    cancelled = 0

    async def brood(stream: Stream) -> None:
        nonlocal cancelled
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled += 1
            raise

    async with serving(inbound_streams_max=6) as victim, AsyncExitStack() as stack:
        victim.handle("/brood/1", brood)
        served = await stack.enter_async_context(open_host(seeded("s")))
        stream = await served.open_stream(await served.connect(victim.addresses()), ECHO)
        await stream.send(b"step")
        assert bytes(await stream.receive()) == b"step"
        link = await stack.enter_async_context(raw_peer(victim))
        words = proposal("/brood/1")
        for number in range(1, 11, 2):
            link.push([header(DATA, SYN, number, len(words)) + words])
            await trio.testing.wait_all_tasks_blocked(0.005)
            link.push([header(DATA, RST, number, 0)])
            await trio.testing.wait_all_tasks_blocked(0.005)
        assert victim._inbound.count == 6
        await still_serves(victim)
        assert cancelled
        await stream.send(b"step")
        assert bytes(await stream.receive()) == b"step"


async def test_streams_are_bounded_in_all() -> None:
    async with serving(inbound_streams_max=5) as victim, raw_peer(victim) as link:
        link.push([b"".join(header(DATA, SYN, 1 + 2 * n, 1) + b"\x13" for n in range(50))])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert victim._inbound.count == 5
    async with serving() as victim, raw_peer(victim) as link:
        count = MuxConfig().inbound_streams_max + 50
        frames = b"".join(header(DATA, SYN, 1 + 2 * n, 1) + b"\x13" for n in range(count))
        link.push([frames])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert victim._inbound.count == MuxConfig().inbound_streams_max
        await still_serves(victim)


async def test_a_refused_protocol_costs_its_stream_only() -> None:
    async with serving() as victim, raw_peer(victim) as link:
        words = proposal("/meshsub/1.2.0")  # H3: malformed gossip ends a stock host; none here
        link.push([header(DATA, SYN, 1, len(words)) + words])
        answer = b""
        with trio.fail_after(2):
            while REFUSAL not in answer:
                answer += b"".join(await link.receive())


async def test_a_peer_with_too_many_faults_is_sent_away_for_a_while() -> None:
    async def lie(stream: Stream) -> None:
        raise RemoteError("lies")

    async with serving(faults_max=3) as victim, open_host(seeded("m")) as mallory:
        victim.handle("/lie/1", lie)
        await mallory.connect(victim.addresses())
        for _ in range(4):
            stream = await mallory.open_stream(victim.peer_id, "/lie/1")
            with pytest.raises(TransportError):
                await stream.send(b"x")
                await stream.receive()
        with trio.fail_after(2):
            while victim.connected():
                await trio.lowlevel.checkpoint()
        with suppress(TransportError):
            await mallory.connect(victim.addresses())
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert victim.connected() == ()
        await still_serves(victim)


def test_faults_are_forgiven_and_bans_end() -> None:
    gate = Gate(Limits(faults_max=3, fault_forgiven_s=5.0, ban_s=60.0))
    assert not any(gate.fault("slow", now=10.0 * n) for n in range(100))
    assert [gate.fault("quick", now=0.0) for _ in range(4)] == [False, False, False, True]
    assert gate.is_banned("quick", now=59.0) and not gate.is_banned("slow", now=0.0)
    assert not gate.is_banned("quick", now=60.0)


def test_one_subnet_gets_a_part_of_the_places() -> None:
    gate = Gate(Limits(connections_per_subnet_max=2, handshakes_per_subnet_max=2))
    for host in ("192.0.2.1", "192.0.2.200"):
        gate.connection_began(host)
    assert not gate.admits("192.0.2.7") and not gate.admits("::ffff:192.0.2.7")
    assert gate.admits("192.0.3.7") and gate.admits("127.0.0.1") and gate.admits("::1")
    gate.connection_over("192.0.2.1")
    assert gate.admits("192.0.2.7")
    for host in ("2001:db8:0:1::1", "2001:db8:0:ff::2"):
        gate.handshake_began(host)
    assert not gate.admits("2001:db8::3") and gate.admits("2001:db8:0:100::3")
    gate.handshake_over("2001:db8:0:1::1")
    assert gate.admits("2001:db8::3")


async def test_a_host_without_descriptors_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepting fails while the process has too many files open; then it goes on."""
    (listener,) = listening(["/ip4/127.0.0.1/tcp/0"])
    calls = 0

    class Exhausted:
        def accept(self) -> Any:
            nonlocal calls
            calls += 1
            if calls < 3:
                raise OSError(errno.EMFILE, "Too many open files")
            return listener.accept()

        def fileno(self) -> int:
            return listener.fileno()

    with listener:
        async with serving() as victim, open_host(seeded("h")) as honest:
            victim._nursery.start_soon(victim._door.accept_forever, Exhausted())
            port = listener.getsockname()[1]
            with trio.fail_after(2):
                await honest.connect([f"/ip4/127.0.0.1/tcp/{port}/p2p/{victim.peer_id}"])
    assert calls >= 3


async def test_a_stream_that_breaks_while_the_host_closes_is_no_fault_of_ours() -> None:
    """Its handler's nursery then ends with both: the stream's failure, and that it was told to."""
    began = trio.Event()

    async def fall(stream: Stream) -> None:
        async def say_good_bye() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise TransportError("nobody hears it")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(say_good_bye)
            nursery.start_soon(trio.sleep_forever)
            began.set()

    async with open_host(seeded("d")) as dialer, serving() as victim:
        victim.handle("/fall/1", fall)
        stream = await dialer.open_stream(await dialer.connect(victim.addresses()), "/fall/1")
        await stream.send(b"x")
        await began.wait()
