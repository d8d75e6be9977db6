"""Two ends of a connection in one process, for the tests of node/net."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from potluck.errors import TransportError
from potluck.node.net import noise
from potluck.node.net.carrier import SocketCarrier
from potluck.node.net.guard import Unread
from potluck.node.net.mux import Mux
from potluck.node.net.mux_config import MuxConfig
from potluck.node.net.mux_frame import DATA, Frame, FrameReader, header
from potluck.node.net.mux_stream import MuxStream
from potluck.node.net.noise import Identity, Link, Scratch, Wire
from potluck.node.net.stream import Stream

MIB = 1024 * 1024
ALICE = Identity(b"a" * 32)
BOB = Identity(b"b" * 32)


def sockets() -> tuple[socket.socket, socket.socket]:
    """A connected pair that does not block."""
    pair = socket.socketpair()
    for sock in pair:
        sock.setblocking(False)
    return pair


async def links(
    dialer: Identity = ALICE,
    listener: Identity = BOB,
    *,
    dialed: str | None = None,
    over: tuple[socket.socket, socket.socket] | None = None,
) -> tuple[Link, Link]:
    """Both ends after the noise handshake. Raises whatever either end raises."""
    left, right = (Wire(SocketCarrier(sock)) for sock in over or sockets())
    found: dict[str, Link] = {}

    async def shake(name: str, wire: Wire, me: Identity, peer: str | None) -> None:
        session = await noise.shake_hands(wire, me, peer)
        await wire.flush()
        found[name] = Link(wire, session, Scratch())

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shake, "left", left, dialer, dialed or listener.peer_id)
            nursery.start_soon(shake, "right", right, listener, None)
    finally:
        if len(found) < 2:
            left.carrier.close()
            right.carrier.close()
    return found["left"], found["right"]


@asynccontextmanager
async def relayed(
    change: Callable[[bytes], Iterable[bytes]],
) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """A pair of sockets with somebody between, who sends on what `change` makes of each read."""
    left, near = sockets()
    far, right = sockets()

    async def relay(source: socket.socket, sink: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(source.fileno())
            data = source.recv(1 << 20)
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            for piece in change(data):
                await trio.lowlevel.wait_writable(sink.fileno())
                assert sink.send(piece) == len(piece)
                await trio.testing.wait_all_tasks_blocked()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, near, far)
        nursery.start_soon(relay, far, near)
        yield left, right
        nursery.cancel_scope.cancel()
    for sock in (left, near, far, right):
        sock.close()


@dataclass
class Pair:
    """Two multiplexed ends, and the streams that each accepted."""

    alice: Mux
    bob: Mux
    to_alice: list[MuxStream] = field(default_factory=list)
    to_bob: list[MuxStream] = field(default_factory=list)
    nursery: trio.Nursery | None = None


def unread(connection: int = 64 * MIB, total: int = 256 * MIB) -> Unread:
    return Unread(connection_bytes_max=connection, total_bytes_max=total)


def make_mux(
    link: Link,
    accept: Callable[[MuxStream], None],
    *,
    dialer: bool,
    config: MuxConfig | None = None,
    bound: Unread | None = None,
) -> Mux:
    return Mux(
        link,
        dialer=dialer,
        config=config or MuxConfig(),
        unread=bound or unread(),
        accept=accept,
        rtt_s=0.001,
    )


@asynccontextmanager
async def muxes(
    config: MuxConfig | None = None,
    *,
    bound: Unread | None = None,
    serve: Callable[[MuxStream], Awaitable[None]] | None = None,
) -> AsyncIterator[Pair]:
    """Both ends running; `serve` is what Bob does with each of Alice's streams, in a task each."""
    left, right = await links()
    async with trio.open_nursery() as nursery:
        pair: Pair

        def to_bob(stream: MuxStream) -> None:
            pair.to_bob.append(stream)
            if serve is not None:
                nursery.start_soon(ended(serve), stream)

        alice = make_mux(left, lambda s: pair.to_alice.append(s), dialer=True, config=config)
        bob = make_mux(right, to_bob, dialer=False, config=config, bound=bound)
        pair = Pair(alice, bob, nursery=nursery)
        nursery.start_soon(alice.run)
        nursery.start_soon(bob.run)
        yield pair
        alice.close()
        bob.close()
        nursery.cancel_scope.cancel()


class RawPeer:
    """An end that sends what frames it likes, and does not answer unless told to."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._reader = FrameReader()

    async def say(self, *frames: bytes) -> None:
        """Send frames, packed into noise messages as they fit."""
        data = b"".join(frames)
        for at in range(0, len(data), noise.PLAINTEXT_BYTES_MAX):
            while self.link.blocked:
                await self.link.resume()
            self.link.push([data[at : at + noise.PLAINTEXT_BYTES_MAX]])

    async def hear(self) -> list[Frame]:
        """The frames that come next."""
        frames: list[Frame] = []
        while not frames:
            for piece in await self.link.receive():
                frames += self._reader.feed(piece)
        return frames


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    """A frame, for `RawPeer.say`."""
    return header(DATA, flags, stream_id, len(payload)) + payload


@asynccontextmanager
async def against_raw(
    config: MuxConfig | None = None,
    *,
    bound: Unread | None = None,
    serve: Callable[[MuxStream], Awaitable[None]] | None = None,
) -> AsyncIterator[tuple[RawPeer, Mux, list[MuxStream]]]:
    """A raw dialer, and our end with the streams it has accepted."""
    left, right = await links()
    accepted: list[MuxStream] = []
    async with trio.open_nursery() as nursery:

        def accept(stream: MuxStream) -> None:
            accepted.append(stream)
            if serve is not None:
                nursery.start_soon(ended(serve), stream)

        mux = make_mux(right, accept, dialer=False, config=config, bound=bound)
        nursery.start_soon(mux.run)
        yield RawPeer(left), mux, accepted
        mux.close()
        left.close()
        nursery.cancel_scope.cancel()


def ended(serve: Callable[[MuxStream], Awaitable[None]]) -> Callable[[MuxStream], Awaitable[None]]:
    """Such a handler, for which a stream that breaks is no failure of the test."""

    async def serve_until_it_breaks(stream: MuxStream) -> None:
        try:
            await serve(stream)
        except TransportError:
            return

    return serve_until_it_breaks


async def settled() -> None:
    """Wait until every task waits for something else than its turn."""
    await trio.testing.wait_all_tasks_blocked(0.005)


async def receive_exactly(stream: Stream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await stream.receive(size - len(data))
        assert piece, "the stream ended early"
        data += piece
    return bytes(data)


async def receive_all(stream: Stream) -> bytes:
    data = bytearray()
    while piece := await stream.receive():
        data += piece
    return bytes(data)


async def receive_fails(stream: MuxStream) -> None:
    with pytest.raises(TransportError):
        await stream.receive()


async def send_fails(stream: MuxStream, body: bytes) -> None:
    with pytest.raises(TransportError):
        await stream.send(body)


async def echo(stream: Stream) -> None:
    while piece := await stream.receive():
        await stream.send(piece)
    await stream.close()
