"""The guard: half-open connections, silence and floods cost an attacker its own place alone."""

from __future__ import annotations

import errno
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import Any

import pytest
import trio
import trio.testing
from net_hosts import ECHO, seeded
from victims import heard, raw_peer, serving, still_serves, tcp

from potluck.errors import RemoteError, TransportError
from potluck.node.net import noise
from potluck.node.net.address import listening
from potluck.node.net.guard import Gate, Limits
from potluck.node.net.host import open_host
from potluck.node.net.mux_config import MuxConfig
from potluck.node.net.mux_frame import DATA, RST, SYN, header
from potluck.node.net.negotiate import REFUSAL, proposal
from potluck.node.net.stream import Stream


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
