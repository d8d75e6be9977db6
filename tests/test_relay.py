"""Circuits: peers meet through a relay, which gives no more than it said, and to nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from random import Random

import pytest
import trio
from libp2p.relay.circuit_v2.pb import circuit_pb2

from potluck.crypto.keys import IdentityKey, verify
from potluck.errors import TransportError
from potluck.node.net import circuit, protobuf
from potluck.node.net import relay as relay_module
from potluck.node.net.circuit import HOP, STOP, Message, Reservation, Status
from potluck.node.net.guard import Limits
from potluck.node.net.host import Host, HostConfig, open_host
from potluck.node.net.identify import peer_bytes
from potluck.node.net.nat import NatConfig, start_nat
from potluck.node.net.noise import ED25519_KEY
from potluck.node.net.punch import PROTOCOL as DCUTR
from potluck.node.net.reach import PROTOCOL as REACH
from potluck.node.net.relay import Relay, RelayLimits
from potluck.node.net.reservations import Reservations
from potluck.node.net.stream import Stream

ECHO = "/potluck/echo/1"
HERE = "/ip4/127.0.0.1/tcp/0"
KIB = 1024


def config(letter: str) -> HostConfig:
    return HostConfig(seed=letter.encode() * 32)


async def echo(stream: Stream) -> None:
    while piece := await stream.receive():
        await stream.send(piece)


async def exactly(stream: Stream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await stream.receive(size - len(data))
        assert piece, "the stream ended early"
        data += piece
    return bytes(data)


@dataclass
class Yard:
    """Alice and Bob know a relay, and Bob has a reservation there."""

    alice: Host
    bob: Host
    middle: Host
    relay: Relay
    held: Reservations

    @property
    def way(self) -> str:
        """Bob's address through the relay."""
        return f"{self.held.addresses()[0]}/p2p/{self.bob.peer_id}"


def reservations(host: Host, wanted: int = 2) -> Reservations:
    return Reservations(host, wanted=wanted, source=lambda _: None, usable=lambda _: True)


@asynccontextmanager
async def yard(limits: RelayLimits | None = None) -> AsyncIterator[Yard]:
    async with (
        open_host(config("r")) as middle,
        open_host(config("a")) as alice,
        open_host(config("b")) as bob,
    ):
        relay = Relay(middle, IdentityKey.from_bytes(b"r" * 32), limits)
        relay.open()
        bob.handle(ECHO, echo)
        held = reservations(bob)
        await bob.connect(middle.addresses())
        await bob.identified(middle.peer_id)
        assert await held.tend()
        yield Yard(alice, bob, middle, relay, held)


async def test_a_peer_is_reached_through_a_relay_and_nobody_can_read_along() -> None:
    async with yard() as yard_:
        assert await yard_.alice.connect([yard_.way]) == yard_.bob.peer_id
        stream = await yard_.alice.open_stream(yard_.bob.peer_id, ECHO)
        body = bytes(range(256)) * 4 * KIB  # 1 MiB: more than any window on the way
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, body)
            assert await exactly(stream, len(body)) == body
        (there,) = yard_.alice.connections(yard_.bob.peer_id)
        (here,) = yard_.bob.connections(yard_.alice.peer_id)
        assert there.relay == here.relay == yard_.middle.peer_id


async def test_a_circuit_ends_with_its_bytes() -> None:
    async with yard(RelayLimits(circuit_bytes=256 * KIB)) as yard_:
        await yard_.alice.connect([yard_.way])
        stream = await yard_.alice.open_stream(yard_.bob.peer_id, ECHO)
        with pytest.raises(ExceptionGroup):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send, bytes(KIB * KIB))
                await exactly(stream, KIB * KIB)
        with trio.fail_after(5):
            while yard_.relay.circuits:
                await trio.lowlevel.checkpoint()


async def test_a_call_needs_a_reservation() -> None:
    async with yard() as yard_, open_host(config("c")) as carol:
        await carol.connect(yard_.middle.addresses())
        way = yard_.way.replace(yard_.bob.peer_id, carol.peer_id)
        with pytest.raises(TransportError, match="no reservation"):
            await yard_.alice.connect([way])


async def test_a_reservation_is_the_senders_whatever_its_message_says() -> None:
    """N5 of the audit: four bogus names of one peer filled a stock relay for an hour."""
    async with yard(RelayLimits(reservations_max=2)) as yard_, open_host(config("m")) as mallory:
        await mallory.connect(yard_.middle.addresses())
        for letter in "cdef":
            name = IdentityKey.from_bytes(letter.encode() * 32).peer_id
            stream = await mallory.open_stream(yard_.middle.peer_id, HOP)
            await circuit.send_message(
                stream, circuit.encode_hop(Message(circuit.RESERVE, peer=name))
            )
            answer = circuit.decode_hop(await circuit.receive_message(stream))
            assert answer.status == Status.OK
        assert set(yard_.relay.peers) == {yard_.bob.peer_id, mallory.peer_id}


async def test_a_full_relay_refuses() -> None:
    async with yard(RelayLimits(reservations_max=1)) as yard_, open_host(config("c")) as carol:
        await carol.connect(yard_.middle.addresses())
        await carol.identified(yard_.middle.peer_id)
        held = reservations(carol)
        await held.tend()
        assert not held.relays


async def test_a_reservation_ends_with_its_connection() -> None:
    async with yard() as yard_:
        yard_.middle.disconnect(yard_.bob.peer_id)
        with trio.fail_after(5):
            while yard_.bob.connected():
                await trio.lowlevel.checkpoint()
        assert yard_.relay.peers == ()
        assert await yard_.held.tend()
        assert yard_.held.addresses() == ()


async def test_who_says_nothing_to_a_relay_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_module, "WORDS_S", 0.05)
    async with yard() as yard_:
        await yard_.alice.connect(yard_.middle.addresses())
        stream = await yard_.alice.open_stream(yard_.middle.peer_id, HOP)
        await stream.send(b"")
        with trio.fail_after(5):
            assert await stream.receive() == b""


@pytest.mark.parametrize("protocol", [HOP, STOP, DCUTR, REACH])
async def test_nonsense_ends_its_stream_and_nothing_else(protocol: str) -> None:
    """A hundred messages of the right length and any content, from one who is not banned for it."""
    dice = Random(protocol)
    seed = b"r" * 32
    strict = HostConfig(seed=seed, limits=Limits(faults_max=1000), listen=(HERE,))
    async with open_host(strict) as host, open_host(config("m")) as mallory:
        start_nat(host, IdentityKey.from_bytes(seed), NatConfig(relay="yes", local=True))
        host.handle(ECHO, echo)
        await mallory.connect(host.addresses())
        for _ in range(100):
            stream = await mallory.open_stream(host.peer_id, protocol)
            body = dice.randbytes(dice.randrange(40))
            with suppress(TransportError):
                await stream.send(bytes((len(body),)) + body)
            await stream.close()
        stream = await mallory.open_stream(host.peer_id, ECHO)
        await stream.send(b"alive")
        assert await exactly(stream, 5) == b"alive"


def test_messages_are_those_of_libp2p() -> None:
    """Read by py-libp2p's generated classes, and theirs by us."""
    key = IdentityKey.from_bytes(b"r" * 32)
    peer = IdentityKey.from_bytes(b"b" * 32).peer_id
    signed = circuit.voucher(key, peer, 1_800_000_000)
    ours = Message(
        circuit.HOP_STATUS,
        reservation=Reservation(1_800_000_000, (), signed),
        limit=circuit.Limit(120, 1 << 17),
        status=Status.OK,
    )
    theirs = circuit_pb2.HopMessage()
    theirs.ParseFromString(circuit.encode_hop(ours))
    assert theirs.type == circuit_pb2.HopMessage.STATUS
    assert theirs.status == circuit_pb2.OK
    assert (theirs.limit.duration, theirs.limit.data) == (120, 1 << 17)
    assert theirs.reservation.expire == 1_800_000_000
    assert circuit.decode_hop(theirs.SerializeToString()) == ours
    call = circuit_pb2.StopMessage(
        type=circuit_pb2.StopMessage.CONNECT, peer=circuit_pb2.PeerId(id=peer_bytes(peer))
    )
    assert circuit.decode_stop(call.SerializeToString()).peer == peer
    envelope = protobuf.fields(signed)
    parts = (b"libp2p-relay-rsvp", b"\x03\x02", protobuf.only_bytes(envelope, 3))
    assert protobuf.only_bytes(envelope, 1) == ED25519_KEY + key.public
    body = b"".join(protobuf.varint(len(part)) + part for part in parts)
    assert verify(key.public, protobuf.only_bytes(envelope, 5), body)
