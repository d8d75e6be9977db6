"""The guard: each attack that ends, fills or fools a stock py-libp2p 0.8.1 fails on ours.

The names S1, H1, ... are those of the audit in DECISIONS.md.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack, suppress

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID
from net_hosts import ECHO, seeded
from stock import at, stock_host
from victims import heard, raw_peer, serving, still_serves, tcp

from potluck.errors import RemoteError, TransportError
from potluck.node.net.guard import foreign
from potluck.node.net.host import open_host
from potluck.node.net.mux_frame import DATA, SYN, header
from potluck.node.net.negotiate import message, proposal
from potluck.node.net.noise import Identity
from potluck.node.net.worth import IDLE_TICKS, QUIET_TICKS

KILL = bytes.fromhex("04fffefd0a")  # five bytes that end a stock host


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
