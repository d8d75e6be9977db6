"""The host: streams to peers and from them, stock py-libp2p among them, and nothing left behind."""

from __future__ import annotations

import gc
import os
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.host.ping import PingService
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.identify import parse_identify_response
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from net_hosts import ECHO, seeded, talk, until
from net_pairs import echo, receive_exactly
from stock import at, stock_host

from potluck.errors import LocalError, Refused, RemoteError, TransportError, UserError
from potluck.node.net.host import open_host
from potluck.node.net.identify import PING
from potluck.node.net.mux_stream import MuxStream
from potluck.node.net.peers import REAP_TICKS
from potluck.node.net.stream import Stream

MIB = 1024 * 1024


# ---- between two of ours


async def test_a_stream_reaches_the_handler_of_its_protocol() -> None:
    async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
        bob.handle(ECHO, echo)
        seen: list[str] = []

        async def note(stream: Stream) -> None:
            seen.append(stream.peer)
            assert await stream.receive() == b""

        bob.handle("/note/1", note)
        assert await alice.connect(bob.addresses()) == bob.peer_id
        for size in (1, 1000, 3 * MIB):
            await talk(alice, bob.peer_id, os.urandom(size))
        stream = await alice.open_stream(bob.peer_id, "/note/1")
        assert stream.peer == bob.peer_id
        await stream.send()
        await stream.close()
        with trio.fail_after(2):
            while not seen:
                await trio.lowlevel.checkpoint()
        assert seen == [alice.peer_id]


async def test_a_known_peer_is_dialed_when_a_stream_is_wanted_and_only_once() -> None:
    async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
        bob.handle(ECHO, echo)
        alice.learn(bob.peer_id, ["nonsense", *bob.addresses()])
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(talk, alice, bob.peer_id)
        assert alice.connected() == (bob.peer_id,)
        assert len(alice._peers.all()) == len(bob._peers.all()) == 1


async def test_the_server_may_speak_first() -> None:
    async def greet(stream: Stream) -> None:
        await stream.send(b"welcome")

    async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
        bob.handle("/greet/1", greet)
        await alice.connect(bob.addresses())
        stream = await alice.open_stream(bob.peer_id, "/greet/1")
        assert await receive_exactly(stream, 7) == b"welcome"
        assert await stream.receive() == b""
        await stream.close()


async def test_what_is_sent_and_closed_at_once_arrives() -> None:
    """The opener never hears the yes to its protocol; that must not cost its words."""
    heard = bytearray()
    done = trio.Event()

    async def listen(stream: Stream) -> None:
        while piece := await stream.receive():
            heard.extend(piece)
        done.set()

    async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
        bob.handle("/tell/1", listen)
        await alice.connect(bob.addresses())
        stream = await alice.open_stream(bob.peer_id, "/tell/1")
        await stream.send(b"x" * 300_000)
        await stream.close()
        with trio.fail_after(5):
            await done.wait()
        assert len(heard) == 300_000


async def test_a_protocol_that_nobody_speaks_shows_in_the_first_receive() -> None:
    async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
        await alice.connect(bob.addresses())
        stream = await alice.open_stream(bob.peer_id, "/nobody/1")
        await stream.send(b"question")
        with pytest.raises(TransportError, match="does not speak /nobody/1"):
            await stream.receive()


async def test_peers_learn_where_the_other_listens() -> None:
    """Alice dialed; Bob can dial back all the same, for both have said where they listen."""
    async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
        await alice.connect(bob.addresses())
        await alice.identified(bob.peer_id)
        with trio.fail_after(2):
            while bob.claims(alice.peer_id) is None:
                await trio.lowlevel.checkpoint()
        claims = alice.claims(bob.peer_id)
        assert claims is not None and claims.agent.startswith("potluck/")
        assert claims.observed is not None and claims.observed.host == "127.0.0.1"
        told = [f"{address}/p2p/{alice.peer_id}" for address in bob._book.known(alice.peer_id)]
        assert told == list(alice.addresses())
        assert (alice.rtt_s(bob.peer_id) or 0) > 0


async def test_a_peer_that_restarts_is_found_again() -> None:
    async with open_host(seeded("a")) as alice:
        async with open_host(seeded("b")) as bob:
            bob.handle(ECHO, echo)
            (address,) = bob.addresses()
            await alice.connect([address])
            waiting = await alice.open_stream(bob.peer_id, ECHO)
            await waiting.send(b"x")
        with pytest.raises(TransportError):
            while await waiting.receive():
                pass
        await waiting.close()
        async with open_host(seeded("b", address.partition("/p2p/")[0])) as bob:
            bob.handle(ECHO, echo)
            await talk(alice, bob.peer_id)


async def test_a_port_in_use_is_the_users_mistake() -> None:
    async with open_host(seeded("a")) as alice:
        taken = alice.addresses()[0].partition("/p2p/")[0]
        with pytest.raises(UserError, match="is in use"):
            async with open_host(seeded("b", taken)):
                pass


async def test_an_error_of_the_body_comes_out_as_itself() -> None:
    with pytest.raises(UserError, match="mine"):
        async with open_host(seeded("a")):
            raise UserError("mine")


async def test_addresses_that_name_no_peer_or_two_are_refused() -> None:
    async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
        plain = bob.addresses()[0].partition("/p2p/")[0]
        for told in ([], [plain], [*alice.addresses(), *bob.addresses()], ["nonsense"]):
            with pytest.raises(TransportError):
                await alice.connect(told)
        with pytest.raises(TransportError, match="this node itself"):
            await alice.connect(alice.addresses())


# ---- faults


@pytest.mark.parametrize(
    "error", [RemoteError("lies"), TransportError("gone"), Refused("full", retry_after_s=1)]
)
@pytest.mark.parametrize("grouped", [False, True])
async def test_a_peers_fault_ends_its_stream_and_nothing_else(
    error: Exception, grouped: bool
) -> None:
    async def fail(stream: Stream) -> None:
        await stream.receive()
        if grouped:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise error
        raise error

    async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
        bob.handle("/fail/1", fail)
        bob.handle(ECHO, echo)
        await alice.connect(bob.addresses())
        stream = await alice.open_stream(bob.peer_id, "/fail/1")
        await stream.send(b"x")
        with pytest.raises(TransportError):
            await stream.receive()
        await talk(alice, bob.peer_id)


@pytest.mark.parametrize("error", [LocalError("ours"), AssertionError("ours"), KeyError("ours")])
async def test_our_own_fault_is_loud(error: Exception) -> None:
    """It ends the host, and comes out as what it is."""

    async def fail(stream: Stream) -> None:
        raise error

    async with open_host(seeded("a")) as alice:
        with pytest.raises(type(error), match="ours"):
            async with open_host(seeded("b")) as bob:
                bob.handle("/fail/1", fail)
                await alice.connect(bob.addresses())
                stream = await alice.open_stream(bob.peer_id, "/fail/1")
                await stream.send(b"x")
                await trio.sleep_forever()


async def test_a_connection_that_nobody_needs_is_ended_in_time() -> None:
    """One that is kept for a reason, a relay's say, is not; nor one with a stream."""
    async with (
        open_host(seeded("v")) as victim,
        open_host(seeded("a")) as alice,
        open_host(seeded("b")) as bob,
        open_host(seeded("c")) as carol,
    ):
        victim.handle(ECHO, echo)
        for guest in (alice, bob, carol):
            await guest.connect(victim.addresses())
            await guest.identified(victim.peer_id)
        stream = await carol.open_stream(victim.peer_id, ECHO)
        await stream.send(b"here")
        await stream.receive()
        victim.keep("a reason", {bob.peer_id})
        await until(lambda: sum(bool(one.mux.streams) for one in victim.connections()) == 1)
        for connection in victim.connections():
            connection.idle_ticks = REAP_TICKS - 1
        victim._peers.tick()
        await until(lambda: set(victim.connected()) == {bob.peer_id, carol.peer_id})


async def test_leaving_cuts_handlers_off_and_closes_every_connection() -> None:
    """C2: stock leaves 50 of 50 connections open on both sides."""
    before = open_sockets()
    started, cancelled = trio.Event(), trio.Event()

    async def stay(stream: Stream) -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with open_host(seeded("a")) as alice:
        async with open_host(seeded("b")) as bob:
            bob.handle("/stay/1", stay)
            await alice.connect(bob.addresses())
            stream = await alice.open_stream(bob.peer_id, "/stay/1")
            await stream.send(b"x")
            with trio.fail_after(2):
                await started.wait()
        assert cancelled.is_set()
        with trio.fail_after(2):
            while alice.connected():
                await trio.lowlevel.checkpoint()
        with pytest.raises(TransportError):
            await stream.receive()
    assert open_sockets() == before


def open_sockets() -> int:
    gc.collect()
    return sum(
        os.path.realpath(f"/proc/self/fd/{number}").startswith("/proc")
        and "socket:" in os.readlink(f"/proc/self/fd/{number}")
        for number in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{number}")
    )


def traced_bytes() -> int:
    """What is allocated by now, but for trio's own: it forgets old deadlines by the thousand."""
    gc.collect()
    others = tracemalloc.Filter(False, f"{os.path.dirname(trio.__file__)}/*")
    found = tracemalloc.take_snapshot().filter_traces((others,))
    return sum(trace.size for trace in found.traces)


async def test_two_thousand_streams_leave_nothing_behind() -> None:
    """As one client's sessions do: 200 at once, often; memory stays what it was."""
    async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
        bob.handle(ECHO, echo)
        await alice.connect(bob.addresses())
        await alice.identified(bob.peer_id)
        tracemalloc.start()
        used, tasks = [], []
        for number in range(14):
            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(talk, alice, bob.peer_id)
            with trio.fail_after(2):
                while bob._inbound.count or any(
                    connection.mux.streams
                    for host in (alice, bob)
                    for connection in host._peers.all()
                ):
                    await trio.lowlevel.checkpoint()
            if number in (2, 13):
                used.append(traced_bytes())
            tasks.append(trio.lowlevel.current_statistics().tasks_living)
        tracemalloc.stop()
        assert len(set(tasks[1:])) == 1
        assert used[1] - used[0] < 100_000  # 2,200 streams: 45 bytes each
        assert alice._unread.total_bytes == bob._unread.total_bytes == 0


# ---- with stock py-libp2p


async def stock_echo(stream: Any) -> None:
    with suppress(StreamEOF):  # if it came out, it would end the stock host (H1)
        while piece := await stream.read(65536):
            await stream.write(piece)
    await stream.close()


async def test_we_dial_stock_and_talk() -> None:
    async with stock_host("s") as stock, open_host(seeded("a")) as alice:
        stock.set_stream_handler(ECHO, stock_echo)
        peer = await alice.connect([str(address) for address in stock.get_addrs()])
        assert peer == str(stock.get_id())
        await alice.identified(peer)
        claims = alice.claims(peer)
        assert claims is not None and ECHO in claims.protocols and claims.addresses
        for size in (1, 1000, 100_000, 2 * MIB):
            await talk(alice, peer, os.urandom(size))
        stream = await alice.open_stream(peer, "/nobody/1")
        with pytest.raises(TransportError, match="does not speak"):
            await stream.receive()
        ping = await alice.open_stream(peer, PING)
        await ping.send(b"p" * 32)
        assert await receive_exactly(ping, 32) == b"p" * 32
        await ping.close()


async def test_stock_dials_us_and_talks() -> None:
    async with stock_host("s", listen=False) as stock, open_host(seeded("a")) as alice:
        alice.handle(ECHO, echo)
        me = ID.from_string(alice.peer_id)
        await stock.connect(at(alice.addresses()[0]))
        for size in (1, 1000, 100_000, 2 * MIB):
            body = os.urandom(size)
            stream = await stock.new_stream(me, ["/first/choice/1", ECHO])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.write, body)
                heard = b""
                while len(heard) < size:
                    heard += await stream.read(65536)
            assert heard == body
            await stream.close()
        stream = await stock.new_stream(me, [IDENTIFY])
        said = parse_identify_response(await stream.read(65536))
        assert ID.from_pubkey(stock.get_public_key()) != me
        assert said.agent_version.startswith("potluck/") and ECHO in said.protocols
        assert len(await PingService(stock).ping(me, 2)) == 2


async def test_stock_and_we_in_bulk_both_ways_at_once() -> None:
    """Two stock hosts stop for ever here (M1); one is enough of ours that they do not."""
    async with stock_host("s") as stock, open_host(seeded("a")) as alice:
        stock.set_stream_handler(ECHO, stock_echo)
        alice.handle(ECHO, echo)
        peer = await alice.connect([str(address) for address in stock.get_addrs()])
        me = ID.from_string(alice.peer_id)
        with trio.fail_after(5):
            while not stock.get_network().get_connections(me):
                await trio.lowlevel.checkpoint()

        async def ours(size: int) -> None:
            await talk(alice, peer, os.urandom(size))

        async def theirs(size: int) -> None:
            stream = await stock.new_stream(me, [ECHO])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.write, bytes(size))
                while size:
                    size -= len(await stream.read(65536))
            await stream.close()

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for size in (2 * MIB, 2 * MIB, *[1000] * 20):
                    nursery.start_soon(ours, size)
                    nursery.start_soon(theirs, size)


def test_a_mux_stream_is_a_stream() -> None:
    stream: type[Stream] = MuxStream
    assert all(hasattr(stream, name) for name in ("send", "receive", "close", "reset"))
