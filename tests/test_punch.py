"""From relayed to direct: both dial at once, and whatever TCP makes of it, one connection comes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing
from libp2p.relay.circuit_v2.pb import dcutr_pb2
from net_hosts import ECHO, HERE, crossing, until
from net_pairs import echo

from potluck.crypto.keys import IdentityKey
from potluck.errors import TransportError
from potluck.node.net import punch
from potluck.node.net.address import Address, parse
from potluck.node.net.carrier import SocketCarrier
from potluck.node.net.dialer import First, connect_tcp
from potluck.node.net.host import Host
from potluck.node.net.nat import Nat

SOON_S = 10.0


@asynccontextmanager
async def homes() -> AsyncIterator[tuple[Host, Nat, Host, Nat, str]]:
    """A client that listens nowhere, a node that a relay knows, and the way through it."""
    async with (
        crossing("r", HERE, relay="yes") as (middle, _),
        crossing("b", HERE) as (bob, bobs),
        crossing("a") as (alice, alices),
    ):
        bob.handle(ECHO, echo)
        await bob.connect(middle.addresses())
        await until(lambda: bobs.reservations.relays)
        way = next(one for one in bob.addresses() if "p2p-circuit" in one)
        yield alice, alices, bob, bobs, way


async def test_a_relayed_connection_becomes_direct_and_new_streams_use_it() -> None:
    async with homes() as (alice, _, bob, _, way):
        told: list[str] = []
        alice.on_direct.append(told.append)
        await alice.connect([way])
        assert alice.relay_of(bob.peer_id) is not None
        stream = await alice.open_stream(bob.peer_id, ECHO)
        await stream.send(b"before")
        assert bytes(await stream.receive()) == b"before"
        await until(lambda: alice.relay_of(bob.peer_id) is None)
        assert told == [bob.peer_id]
        await stream.send(b"the old stream goes on")
        assert bytes(await stream.receive()) == b"the old stream goes on"
        fresh = await alice.open_stream(bob.peer_id, ECHO)
        await fresh.send(b"after")
        assert bytes(await fresh.receive()) == b"after"
        await until(lambda: bob.relay_of(alice.peer_id) is None)


async def test_who_cannot_simply_be_dialed_is_punched(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no(*_: object) -> bool:
        return False

    monkeypatch.setattr(punch.Puncher, "_plainly", no)
    async with homes() as (alice, alices, bob, bobs, way):
        await alice.connect([way])
        await until(lambda: bobs.puncher.opened == 1)
        await until(lambda: alice.relay_of(bob.peer_id) is None)  # each end ends in its own time
        await until(lambda: not alices.puncher._calling and not bobs.puncher._punches)
        (direct,) = [one for one in alice.connections(bob.peer_id) if one.relay is None]
        assert direct.mux.dialer  # the caller is the client, whoever's SYN was first
        (there,) = [one for one in bob.connections(alice.peer_id) if one.relay is None]
        assert not there.mux.dialer


async def test_two_peers_behind_one_nat_do_not_end_each_others_punch(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Both may come from its address: whoever was called last is expected until its round ends."""
    async with crossing("a") as (_, nat), trio.open_nursery() as nursery:
        place = Address("ip4", "127.0.0.9", 4001)
        for peer in ("first", "second"):
            nursery.start_soon(nat.puncher._dial_all, peer, [place], True)
            await trio.sleep(punch.ROUND_S / 2)
        await trio.sleep(punch.ROUND_S / 4)
        assert set(nat.puncher._punches) == {"second"}
        assert nat.puncher._calling["127.0.0.9"][0] == "second"
        await trio.sleep(punch.ROUND_S)
        assert not nat.puncher._calling


async def test_a_client_listens_nowhere_until_it_needs_a_punch() -> None:
    async with homes() as (alice, alices, bob, _, way):
        assert not alices.ports.listens
        await alice.connect([way])
        await until(lambda: alice.relay_of(bob.peer_id) is None)
        assert alices.ports.listens


async def test_who_is_dialed_by_the_server_of_a_punch_speaks_first() -> None:
    """Bob's SYN found Alice's NAT open, and Bob waits for the client's words: Alice says them."""
    async with crossing("a", HERE) as (alice, alices), crossing("b", HERE) as (bob, bobs):
        alices.puncher._calling["127.0.0.1"] = (bob.peer_id, First())
        place = Address("ip4", "127.0.0.1", alice.listeners[0].getsockname()[1])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bobs.puncher._dial, alice.peer_id, place, None)
            await until(lambda: alice.connections(bob.peer_id))
            nursery.cancel_scope.cancel()
        (there,) = alice.connections(bob.peer_id)
        assert there.mux.dialer


async def test_of_two_ways_that_open_at_once_both_ends_keep_the_same() -> None:
    """Alice's SYN and Bob's have both come through, and Alice speaks first on each."""
    async with crossing("a", HERE) as (alice, _), crossing("b", HERE) as (bob, _):
        first = First()
        lost: list[TransportError] = []
        theirs = [SocketCarrier(await connect_tcp(parse(bob.addresses()[0]))) for _ in range(2)]

        async def speak(carrier: SocketCarrier) -> None:
            try:
                await alice.adopt(carrier, ("127.0.0.1", 1), dialed=bob.peer_id, first=first)
            except TransportError as error:
                lost.append(error)

        async with trio.open_nursery() as nursery:
            for carrier in theirs:
                nursery.start_soon(speak, carrier)
        assert len(alice.connections(bob.peer_id)) == len(lost) == 1
        await until(lambda: not bob._door.shaking)
        assert len(bob.connections(alice.peer_id)) == 1


async def test_when_one_way_breaks_in_the_handshake_the_next_is_taken() -> None:
    async with crossing("a", HERE) as (alice, _), crossing("b", HERE) as (bob, _):
        first, broken = First(), object()
        await first.claim(broken)
        carrier = SocketCarrier(await connect_tcp(parse(bob.addresses()[0])))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(alice.adopt, carrier, ("127.0.0.1", 1), dialed=bob.peer_id, first=first)
            )
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not alice.connections(bob.peer_id)
            first.settle(broken, won=False)
        assert len(alice.connections(bob.peer_id)) == 1


async def test_a_punch_on_a_direct_connection_is_refused() -> None:
    async with crossing("a", HERE) as (alice, _), crossing("b", HERE) as (bob, _):
        await alice.connect(bob.addresses())
        stream = await alice.open_stream(bob.peer_id, punch.PROTOCOL)
        await stream.send(b"\x02\x08\x64")
        with pytest.raises(TransportError), trio.fail_after(SOON_S):
            await stream.receive()
            await stream.receive()


def test_messages_are_those_of_libp2p() -> None:
    place = Address("ip4", "11.0.1.2", 4001)
    theirs = dcutr_pb2.HolePunch()
    theirs.ParseFromString(punch._encode(punch.CONNECT, [place]))
    assert theirs.type == dcutr_pb2.HolePunch.CONNECT
    assert list(theirs.ObsAddrs) == [bytes.fromhex("04 0b000102 06 0fa1".replace(" ", ""))]
    assert punch._decode(theirs.SerializeToString()) == (punch.CONNECT, [place])
    sync = dcutr_pb2.HolePunch(type=dcutr_pb2.HolePunch.SYNC)
    assert punch._decode(sync.SerializeToString()) == (punch.SYNC, [])


async def test_whoever_asks_for_many_punches_gets_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hundred questions of one peer made 14,000 SYNs to whichever address it named."""
    monkeypatch.setattr(punch, "TURN_S", 0.05)
    monkeypatch.setattr(punch, "ROUND_S", 3.0)  # all of this test is within one
    monkeypatch.setattr(punch, "PUNCHES_MAX", 3)
    closed = Address("ip4", "127.0.0.1", 1)
    async with crossing("a", HERE) as (host, nat), trio.open_nursery() as nursery:
        refused = dialed = 0

        async def ask(peer: str) -> None:
            nonlocal refused, dialed
            try:
                await nat.puncher._punch(peer, [closed], client=True)
                dialed += 1
            except TransportError:
                refused += 1

        for _ in range(20):
            nursery.start_soon(ask, host.peer_id)
        await until(lambda: refused == 19)
        for letter in (b"b", b"c", b"d"):  # two more may, beside the first
            nursery.start_soon(ask, IdentityKey.from_bytes(letter * 32).peer_id)
        await until(lambda: refused + dialed == 23)
        assert (refused, dialed) == (20, 3)
        monkeypatch.setattr(punch, "ROUND_S", 0.1)
        await ask(host.peer_id)  # and when it is over, it may again
        assert dialed == 4
