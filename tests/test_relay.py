"""Circuits: peers meet through a relay, which gives no more than it said, and to nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import PrivateKey
from libp2p.peer.envelope import unmarshal_envelope
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2 import resources
from libp2p.relay.circuit_v2.pb import circuit_pb2
from net_hosts import ECHO, HERE, seeded, until
from net_pairs import echo, receive_exactly

from potluck.crypto.keys import IdentityKey, verify
from potluck.errors import RemoteError, TransportError, UserError
from potluck.node.net import circuit, protobuf
from potluck.node.net import relay as relay_module
from potluck.node.net.address import listening
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

KIB = 1024


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
        open_host(seeded("r")) as middle,
        open_host(seeded("a")) as alice,
        open_host(seeded("b")) as bob,
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
            assert await receive_exactly(stream, len(body)) == body
        (there,) = yard_.alice.connections(yard_.bob.peer_id)
        (here,) = yard_.bob.connections(yard_.alice.peer_id)
        assert there.relay == here.relay == yard_.middle.peer_id


async def test_a_relay_of_two_families_is_told_in_both() -> None:
    """A caller may have one alone."""
    both = (HERE, "/ip6/::1/tcp/0")
    try:
        for one in listening(both):
            one.close()
    except UserError as error:
        pytest.skip(str(error))
    relaying = HostConfig(seed=b"r" * 32, listen=both)
    async with open_host(relaying) as middle, open_host(seeded("b")) as bob:
        Relay(middle, IdentityKey.from_bytes(b"r" * 32)).open()
        await bob.connect(middle.addresses())
        await bob.identified(middle.peer_id)
        held = reservations(bob)
        assert await held.tend()
        told = held.addresses()
        assert [one.kind for one in sorted(told, key=str)] == ["ip4", "ip6"]
        assert {one.relay for one in told} == {middle.peer_id}
        ports = {listener.getsockname()[1] for listener in middle.listeners}
        assert {one.port for one in told} == ports


async def test_a_circuit_ends_with_its_bytes() -> None:
    async with yard(RelayLimits(circuit_bytes=256 * KIB)) as yard_:
        await yard_.alice.connect([yard_.way])
        stream = await yard_.alice.open_stream(yard_.bob.peer_id, ECHO)
        with pytest.raises(ExceptionGroup):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send, bytes(KIB * KIB))
                await receive_exactly(stream, KIB * KIB)
        with trio.fail_after(5):
            while yard_.relay.circuits:
                await trio.lowlevel.checkpoint()


HOURLY = [RelayLimits(peer_bytes_per_hour=256 * KIB), RelayLimits(subnet_bytes_per_hour=256 * KIB)]


@pytest.mark.parametrize("limits", HOURLY)
async def test_an_hours_bytes_are_the_peers_or_its_networks_and_come_back(
    limits: RelayLimits,
) -> None:
    """A network's whoever asks: a new identity costs nothing."""
    async with yard(limits) as yard_, open_host(seeded("c")) as carol:
        await yard_.alice.connect([yard_.way])
        stream = await yard_.alice.open_stream(yard_.bob.peer_id, ECHO)
        with pytest.raises(ExceptionGroup):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send, bytes(KIB * KIB))
                await receive_exactly(stream, KIB * KIB)
        await until(lambda: not yard_.relay.circuits)
        spent = yard_.relay._spent  # just enough: a second later there is room for some more bytes
        yard_.relay._spent = {who: (size + 64 * KIB, at) for who, (size, at) in spent.items()}
        with pytest.raises(TransportError, match="resource limit exceeded"):
            await carol.connect([yard_.way])
        yard_.relay._spent = {who: (size, at - 1800) for who, (size, at) in spent.items()}
        carol.forgive()
        assert await carol.connect([yard_.way]) == yard_.bob.peer_id


async def test_a_call_needs_a_reservation() -> None:
    async with yard() as yard_, open_host(seeded("c")) as carol:
        await carol.connect(yard_.middle.addresses())
        way = yard_.way.replace(yard_.bob.peer_id, carol.peer_id)
        with pytest.raises(TransportError, match="no reservation"):
            await yard_.alice.connect([way])


async def test_a_reservation_is_the_senders_whatever_its_message_says() -> None:
    """N5 of the audit: four bogus names of one peer filled a stock relay for an hour."""
    async with yard(RelayLimits(reservations_max=2)) as yard_, open_host(seeded("m")) as mallory:
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
    async with yard(RelayLimits(reservations_max=1)) as yard_, open_host(seeded("c")) as carol:
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
    async with open_host(strict) as host, open_host(seeded("m")) as mallory:
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
        assert await receive_exactly(stream, 5) == b"alive"


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


# ---- vouchers

RELAY, OTHER = IdentityKey.from_bytes(b"r" * 32), IdentityKey.from_bytes(b"o" * 32)
BOB = IdentityKey.from_bytes(b"b" * 32).peer_id


def test_a_voucher_is_believed_by_the_peer_it_is_for_until_it_expires() -> None:
    circuit.check_voucher(circuit.voucher(RELAY, BOB, 100), relay=RELAY.peer_id, peer=BOB, now=99.9)


class Keyed:
    """As much of a stock host as signs a voucher."""

    pair = create_new_key_pair(b"r" * 32)

    def get_id(self) -> ID:
        return ID.from_pubkey(self.pair.public_key)

    def get_private_key(self) -> PrivateKey:
        return self.pair.private_key


def test_vouchers_are_those_of_libp2p() -> None:
    """Theirs is believed by us, and ours by their code."""
    limits = resources.RelayLimits(duration=120, data=1 << 17, max_circuit_conns=4,
                                   max_reservations=4)  # fmt: skip
    theirs = resources.Reservation(ID.from_base58(BOB), limits, Keyed())  # type: ignore[arg-type]
    assert theirs.voucher
    circuit.check_voucher(theirs.voucher, relay=RELAY.peer_id, peer=BOB, now=theirs.created_at)
    opened = unmarshal_envelope(circuit.voucher(RELAY, BOB, 1_800_000_000))
    opened.validate(resources.RELAY_RSVP_DOMAIN)
    assert opened.payload_type == resources.VOUCHER_PAYLOAD_TYPE
    told = circuit_pb2.Voucher.FromString(opened.raw_payload)
    assert (ID(told.relay), ID(told.peer)) == (Keyed().get_id(), ID.from_base58(BOB))
    assert told.expiration == 1_800_000_000


def resealed(domain: bytes = circuit.VOUCHER_DOMAIN, kind: bytes = circuit.VOUCHER_TYPE) -> bytes:
    """A voucher that is right in itself, under another heading."""
    payload = protobuf.only_bytes(protobuf.fields(circuit.voucher(RELAY, BOB, 100)), 3)
    parts = b"".join(protobuf.varint(len(part)) + part for part in (domain, kind, payload))
    fields = {1: ED25519_KEY + RELAY.public, 2: kind, 3: payload, 5: RELAY.sign(parts)}
    return b"".join(protobuf.field(number, value) for number, value in fields.items())


FALSE_VOUCHERS = {
    "another signer": circuit.voucher(OTHER, BOB, 100),
    "for another": circuit.voucher(RELAY, OTHER.peer_id, 100),
    "expired": circuit.voucher(RELAY, BOB, 49),
    "another domain": resealed(domain=b"libp2p-peer-record"),
    "another type": resealed(kind=b"\x03\x01"),
    "cut off": circuit.voucher(RELAY, BOB, 100)[:-1],
    "nonsense": b"\x0a\x02hi",
}


@pytest.mark.parametrize("name", FALSE_VOUCHERS)
def test_a_false_voucher_is_a_fault(name: str) -> None:
    with pytest.raises(RemoteError):
        circuit.check_voucher(FALSE_VOUCHERS[name], relay=RELAY.peer_id, peer=BOB, now=50.0)


@given(st.data())
def test_no_bit_of_a_voucher_can_be_changed(data: st.DataObject) -> None:
    raw = bytearray(circuit.voucher(RELAY, BOB, 100))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(RemoteError):
        circuit.check_voucher(bytes(raw), relay=RELAY.peer_id, peer=BOB, now=50.0)


@pytest.mark.parametrize("honest", [True, False])
async def test_a_relay_that_vouches_falsely_is_not_used(
    honest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It vouches for somebody else; and whoever held a place there gives it up."""
    async with yard() as yard_, open_host(seeded("c")) as carol:

        def vouch(key: IdentityKey, peer: str, expires_s: int) -> bytes:
            return circuit.voucher(key, peer if honest else OTHER.peer_id, expires_s)

        monkeypatch.setattr(relay_module, "voucher", vouch)
        await carol.connect(yard_.middle.addresses())
        await carol.identified(yard_.middle.peer_id)
        held = reservations(carol)
        assert await held.tend() == honest
        assert held.relays == ((yard_.middle.peer_id,) if honest else ())
        await held.tend()
        assert yard_.relay.peers  # it was asked once, and is not asked again soon
        before = yard_.held._held[yard_.middle.peer_id]
        before.renew = 0.0
        assert await yard_.held.tend() != honest
        assert bool(yard_.held.relays) == honest
        for accuser in (carol, yard_.bob):
            faults, _ = accuser._gate._faults.get(yard_.middle.peer_id, (0.0, 0.0))
            assert faults == (0 if honest else 1)
