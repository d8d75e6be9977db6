"""py-libp2p over our connections: its protocols are served, its weak spots are not."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from multiaddr import Multiaddr
from net_hosts import seeded

from potluck.crypto.keys import IdentityKey
from potluck.errors import TransportError
from potluck.node.net.address import Address
from potluck.node.net.host import Host, open_host
from potluck.node.net.identify import PING
from potluck.node.net.mux_config import MuxConfig
from potluck.node.net.stream import Stream

SHOUT = TProtocol("/test/shout/1")


async def shout(stream) -> None:  # type: ignore[no-untyped-def]
    """A handler as py-libp2p's users write them."""
    while True:
        try:
            data = await stream.read(100)
        except StreamEOF:
            break
        await stream.write(data.upper())
    await stream.close()


async def until_known(host: Host, peer: str) -> None:
    """Until py-libp2p's network has heard of the connection."""
    network = host.libp2p.host.get_network()
    with trio.fail_after(5):
        while not network.get_connections(ID.from_string(peer)):
            await trio.lowlevel.checkpoint()


async def test_a_protocol_of_py_libp2p_runs_over_our_connections_both_ways() -> None:
    async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
        for host in (alice, bob):
            host.libp2p.host.set_stream_handler(SHOUT, shout)
        await alice.connect(bob.addresses())
        for here, there in ((alice, bob), (bob, alice)):
            await until_known(here, there.peer_id)
            await until_known(there, here.peer_id)
            stream = await here.libp2p.host.new_stream(ID.from_string(there.peer_id), [SHOUT])
            await stream.write(b"hello")
            assert await stream.read(100) == b"HELLO"
            await stream.close()


async def test_a_stream_that_py_libp2p_has_closed_is_not_kept_for_a_peer_that_never_ends() -> None:
    async def hold(stream: Stream) -> None:
        await trio.sleep_forever()

    async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
        bob.handle(str(SHOUT), hold)
        await alice.connect(bob.addresses())
        await until_known(alice, bob.peer_id)
        await alice.identified(bob.peer_id)
        (connection,) = alice.connections()
        opened = [await plugged_stream(alice, bob.peer_id) for _ in range(2)]
        await opened[1].write(b"a word")
        for stream in opened:
            await stream.close()
        for _ in range(MuxConfig().linger_ticks + 1):
            connection.mux.tick()
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert connection.mux.failure is None and not connection.mux.streams


async def plugged_stream(host: Host, peer: str) -> INetStream:
    (known,) = host.libp2p.host.get_network().get_connections(ID.from_string(peer))
    return await known.new_stream()


async def test_py_libp2p_dials_through_us() -> None:
    async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
        bob.libp2p.host.set_stream_handler(SHOUT, shout)
        alice.learn(bob.peer_id, bob.addresses())
        await alice.libp2p.host.get_network().dial_peer(ID.from_string(bob.peer_id))
        assert alice.connected() == (bob.peer_id,)
        stranger = ID.from_string(IdentityKey.generate().peer_id)
        with pytest.raises(SwarmException):  # what libp2p's own code is ready for
            await alice.libp2p.host.get_network().dial_peer(stranger)


async def test_a_handler_of_py_libp2p_that_raises_ends_its_stream_alone() -> None:
    """In py-libp2p any exception of a handler ends the host, for good."""

    async def fall(stream) -> None:  # type: ignore[no-untyped-def]
        await stream.read(1)
        raise ValueError("whatever a peer's bytes do to a parser")

    async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
        bob.libp2p.host.set_stream_handler(TProtocol("/test/fall/1"), fall)
        bob.libp2p.host.set_stream_handler(SHOUT, shout)
        await alice.connect(bob.addresses())
        await until_known(bob, alice.peer_id)
        stream = await alice.open_stream(bob.peer_id, "/test/fall/1")
        await stream.send(b"x")
        with pytest.raises(TransportError):
            while await stream.receive():
                pass
        again = await alice.open_stream(bob.peer_id, SHOUT)
        await again.send(b"still here")
        assert bytes(await again.receive()) == b"STILL HERE"


async def test_the_network_forgets_a_connection_that_is_over() -> None:
    async with open_host(seeded("b")) as bob:
        async with open_host(seeded("a")) as alice:
            await alice.connect(bob.addresses())
            await until_known(bob, alice.peer_id)
        network = bob.libp2p.host.get_network()
        with trio.fail_after(5):
            while network.get_connections(ID.from_string(alice.peer_id)):
                await trio.lowlevel.checkpoint()


async def test_noise_is_the_only_security_that_is_offered() -> None:
    """py-libp2p's defaults offer plaintext, over which any identity can be claimed."""
    async with open_host(seeded("a")) as alice:
        upgrader = alice.libp2p.host.get_network().upgrader
        assert list(upgrader.security_multistream.transports) == ["/noise"]


async def test_a_stream_that_comes_with_its_connection_is_served() -> None:
    """Before py-libp2p's network has heard of it, which takes some milliseconds."""
    async with open_host(seeded("b")) as bob:
        bob.libp2p.host.set_stream_handler(SHOUT, shout)
        for letter in "acdef":
            async with open_host(seeded(letter)) as alice:
                await alice.connect(bob.addresses())
                stream = await alice.open_stream(bob.peer_id, SHOUT)
                await stream.send(b"hello")
                assert bytes(await stream.receive()) == b"HELLO"


async def test_a_peer_that_names_a_place_which_py_libp2p_cannot_read_is_met_all_the_same() -> None:
    """Its multiaddr raises over a name that is none by IDNA's rules: stock believes in all."""
    odd, plain = Address("dns4", "xn--a", 1), Address("dns4", "example.org", 1)
    with pytest.raises(ValueError, match="Invalid domain name"):
        Multiaddr(str(odd))
    async with open_host(seeded("a")) as alice, open_host(seeded("m")) as mallory:
        mallory.publish([odd, plain])
        await mallory.connect(alice.addresses())
        await alice.identified(mallory.peer_id)
        claims = alice.claims(mallory.peer_id)
        assert claims is not None and {odd, plain} <= set(claims.addresses)
        store = alice.libp2p.host.get_peerstore()
        stored = [str(one) for one in store.addrs(ID.from_string(mallory.peer_id))]
        assert str(plain) in stored and str(odd) not in stored


async def test_whatever_py_libp2p_makes_of_a_connection_ends_no_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fall(conn: object, direction: str) -> None:
        raise KeyError("a table that a peer has confused")

    async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
        monkeypatch.setattr(bob.libp2p.host.get_network(), "add_conn", fall)
        await alice.connect(bob.addresses())
        stream = await alice.open_stream(bob.peer_id, PING)
        await stream.send(b"p" * 32)
        assert bytes(await stream.receive()) == b"p" * 32


async def test_py_libp2p_logs_nothing_of_what_it_does_not_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its search for connections, which is switched off here, has a log level of its own."""
    with caplog.at_level(logging.DEBUG):
        async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
            await alice.connect(bob.addresses())
            await until_known(bob, alice.peer_id)
    assert [one.name for one in caplog.records if one.name.startswith("libp2p")] == []
