"""Noise: stock py-libp2p understands us, and nobody can be somebody else."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.peer.id import ID
from libp2p.security.noise.patterns import PatternXX
from net_pairs import ALICE, BOB, links, relayed, sockets

from potluck.errors import RemoteError, TransportError
from potluck.node.net import noise, protobuf
from potluck.node.net.carrier import SocketCarrier
from potluck.node.net.noise import (
    BATCH_MESSAGES_MAX,
    ED25519_KEY,
    HANDSHAKE_BYTES_MAX,
    IDENTITY_KEY,
    IDENTITY_SIGNATURE,
    PLAINTEXT_BYTES_MAX,
    SIGNED,
    Identity,
    Link,
    Scratch,
    Wire,
)

SIZES = (1, 2, 1000, PLAINTEXT_BYTES_MAX - 1, PLAINTEXT_BYTES_MAX, 3 * PLAINTEXT_BYTES_MAX + 7)


class StockWire:
    """A socket as py-libp2p's noise wants it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = trio.socket.from_stdlib_socket(sock)

    async def read(self, size: int) -> bytes:
        return await self._sock.recv(size)

    async def write(self, data: bytes) -> None:
        while data:
            data = data[await self._sock.send(data) :]


def stock(seed: bytes) -> PatternXX:
    keys = create_new_key_pair(seed)
    static = create_new_x25519_key_pair().private_key
    return PatternXX(ID.from_pubkey(keys.public_key), keys.private_key, static)


async def handshake_error(left: Identity, right: Identity, dialed: str | None = None) -> str:
    with pytest.raises(ExceptionGroup) as caught:
        await links(left, right, dialed=dialed)
    match, rest = caught.value.split((RemoteError, TransportError))
    assert match is not None and rest is None
    return str(match.exceptions[0])


@pytest.mark.parametrize("stock_dials", [True, False])
async def test_stock_py_libp2p_shakes_hands_and_talks_with_us(stock_dials: bool) -> None:
    """Every size that needs one message, a full one, or several, there and back."""
    left, right = sockets()
    theirs, wire = stock(b"s" * 32), Wire(SocketCarrier(right))
    found = {}

    async def stock_side() -> None:
        conn = StockWire(left)
        if stock_dials:
            found["stock"] = await theirs.handshake_outbound(conn, ID.from_string(ALICE.peer_id))
        else:
            found["stock"] = await theirs.handshake_inbound(conn)

    async def our_side() -> None:
        peer = None if stock_dials else str(theirs.local_peer)
        session = await noise.shake_hands(wire, ALICE, peer)
        await wire.flush()
        found["link"] = Link(wire, session, Scratch())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stock_side)
        nursery.start_soon(our_side)
    session, link = found["stock"], found["link"]
    assert link.peer == str(theirs.local_peer)
    assert str(session.get_remote_peer()) == ALICE.peer_id
    for size in SIZES:
        data = os.urandom(size)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.write, data)
            heard = b""
            while len(heard) < size:
                heard += b"".join(await link.receive())
        assert heard == data
        async with trio.open_nursery() as nursery:
            nursery.start_soon(push_all, link, data)
            assert await session.read(size) == data
    link.close()
    left.close()


async def push_all(link: Link, data: bytes) -> None:
    for at in range(0, len(data), PLAINTEXT_BYTES_MAX):
        while link.blocked:
            await link.resume()
        link.push([data[at : at + PLAINTEXT_BYTES_MAX]])
    while link.blocked:
        await link.resume()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3000), max_size=12), st.integers(0, 2**32))
def test_however_the_bytes_are_cut_on_the_way_the_messages_are_whole(
    sizes: list[int], seed: int
) -> None:
    trio.run(cut_on_the_way, sizes, random.Random(seed))


async def cut_on_the_way(sizes: list[int], dice: random.Random) -> None:
    def cut(data: bytes) -> Iterator[bytes]:
        while data:
            size = dice.choice((1, dice.randint(1, 100), dice.randint(1, 5000)))
            yield data[:size]
            data = data[size:]

    sent = [dice.randbytes(size) for size in sizes]
    async with relayed(cut) as over:
        left, right = await links(over=over)
        for start in range(0, len(sent), BATCH_MESSAGES_MAX):
            left.push(sent[start : start + BATCH_MESSAGES_MAX])
        heard: list[bytes] = []
        while len(b"".join(heard)) < sum(sizes):
            heard += await right.receive()
    assert heard == [piece for piece in sent if piece]


async def test_a_changed_bit_is_found() -> None:
    spoiling = False

    def change(data: bytes) -> Iterator[bytes]:
        yield data[:-1] + bytes((data[-1] ^ spoiling,))

    async with relayed(change) as over:
        left, right = await links(over=over)
        left.push([b"well"])
        assert await right.receive() == [b"well"]
        spoiling = True
        left.push([b"spoiled"])
        with pytest.raises(RemoteError, match="does not verify"):
            await right.receive()


async def test_a_connection_that_ends_says_so_to_whoever_waits() -> None:
    left, right = await links()
    left.close()
    with pytest.raises(TransportError, match="closed by the peer"):
        await right.receive()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed_under, right)
        await trio.testing.wait_all_tasks_blocked()
        right.close()


async def closed_under(link: Link) -> None:
    with pytest.raises(TransportError):
        await link.receive()


async def test_an_identity_cannot_be_borrowed() -> None:
    """Mallory shows Bob's public key, but can sign her static key only with her own."""
    mallory = Identity(b"m" * 32)
    mallory.payload = protobuf.field(IDENTITY_KEY, ED25519_KEY + BOB.key.public) + protobuf.field(
        IDENTITY_SIGNATURE, mallory.key.sign(SIGNED + b"s" * 32)
    )
    assert "does not own" in await handshake_error(ALICE, mallory, BOB.peer_id)
    assert "does not own" in await handshake_error(mallory, ALICE)


async def test_a_signature_of_another_run_is_worthless() -> None:
    """Bob's payload of an earlier run vouches for a static key that Mallory does not have."""
    replayed = Identity(b"m" * 32)
    replayed.payload = BOB.payload
    assert "does not own" in await handshake_error(ALICE, replayed, BOB.peer_id)


async def test_somebody_else_at_the_address_is_refused() -> None:
    carol = Identity(b"c" * 32)
    assert "answers where" in await handshake_error(ALICE, carol, BOB.peer_id)


async def test_dialing_oneself_is_refused() -> None:
    assert "this node itself" in await handshake_error(ALICE, ALICE)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff" * 40,
        protobuf.field(IDENTITY_KEY, b"\x08\x00\x12\x03rsa"),
        protobuf.field(IDENTITY_KEY, 7) + protobuf.field(IDENTITY_SIGNATURE, b"s" * 64),
        protobuf.field(IDENTITY_KEY, ED25519_KEY + b"k" * 31)
        + protobuf.field(IDENTITY_SIGNATURE, b"s" * 64),
        protobuf.field(IDENTITY_KEY, ED25519_KEY + BOB.key.public),
        protobuf.field(IDENTITY_KEY, ED25519_KEY + BOB.key.public)
        + protobuf.field(IDENTITY_SIGNATURE, b"short"),
    ],
)
async def test_a_payload_that_proves_nothing_is_refused(payload: bytes) -> None:
    nobody = Identity(b"n" * 32)
    nobody.payload = payload
    await handshake_error(ALICE, nobody)
    await handshake_error(nobody, ALICE)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_garbage_instead_of_a_handshake_is_a_peers_fault(garbage: bytes, dialing: bool) -> None:
    trio.run(garbage_handshake, garbage, dialing)


async def garbage_handshake(garbage: bytes, dialing: bool) -> None:
    near, far = sockets()
    with near, far:
        near.send(garbage)
        near.shutdown(socket.SHUT_WR)
        with pytest.raises((RemoteError, TransportError)):
            await noise.shake_hands(
                Wire(SocketCarrier(far)), ALICE, BOB.peer_id if dialing else None
            )


LOW_ORDER = (  # of which X25519 makes zero, whatever the other key (RFC 7748, section 6.1)
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
)


@pytest.mark.parametrize("dialing", [False, True])
@pytest.mark.parametrize("key", LOW_ORDER)
async def test_a_key_of_low_order_is_a_peers_fault(key: bytes, dialing: bool) -> None:
    await garbage_handshake((len(key) + 64 * dialing).to_bytes(2) + key + bytes(64), dialing)


async def test_a_huge_handshake_message_is_not_awaited() -> None:
    near, far = sockets()
    with near, far:
        near.send((HANDSHAKE_BYTES_MAX + 1).to_bytes(2))
        with pytest.raises(RemoteError, match=str(HANDSHAKE_BYTES_MAX + 1)):
            await noise.shake_hands(Wire(SocketCarrier(far)), ALICE, None)
