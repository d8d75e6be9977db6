"""WebSockets: the same connections inside, on the same ports; nonsense ends only itself."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from net_hosts import echoing, talk
from net_pairs import ALICE, sockets
from wsproto import ConnectionType, WSConnection
from wsproto.events import BytesMessage, Ping, Request
from wsproto.utilities import generate_accept_token

from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError, TransportError
from potluck.node.net import websocket
from potluck.node.net.address import parse
from potluck.node.net.carrier import SocketCarrier
from potluck.node.net.host import Host
from potluck.node.net.relay import Relay
from potluck.node.net.reservations import Reservations
from potluck.node.net.websocket import WebSocketCarrier

PLAIN, WS = "/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws"
MIB = 1024 * 1024
SOON_S = 10.0


def over(connected: Host, peer: str) -> str:
    (connection,) = connected.connections(peer)
    return type(connection.mux._link.carrier).__name__


# ---- hosts


async def test_two_hosts_talk_over_a_websocket() -> None:
    async with echoing("a", WS) as alice, echoing("b") as bob:
        (address,) = alice.addresses()
        assert "/ws/p2p/" in address
        await bob.connect([address])
        for size in (1, 1000, 3 * MIB):
            await talk(bob, alice.peer_id, os.urandom(size))
        assert over(bob, alice.peer_id) == over(alice, bob.peer_id) == "WebSocketCarrier"
        await bob.identified(alice.peer_id)
        claims = bob.claims(alice.peer_id)
        assert claims is not None and [one.over for one in claims.addresses] == ["ws"]


@pytest.mark.parametrize("listen", [PLAIN, WS])
@pytest.mark.parametrize("dial", ["", "/ws"])
async def test_one_port_serves_both(listen: str, dial: str) -> None:
    async with echoing("a", listen) as alice, echoing("b") as bob:
        port = alice.listeners[0].getsockname()[1]
        await bob.connect([f"/ip4/127.0.0.1/tcp/{port}{dial}/p2p/{alice.peer_id}"])
        await talk(bob, alice.peer_id, b"hello")
        assert (over(bob, alice.peer_id) == "WebSocketCarrier") == bool(dial)


async def test_the_two_ways_of_one_port_race_and_one_connection_is_left() -> None:
    async with echoing("a", WS) as alice, echoing("b") as bob:
        (ws,) = alice.addresses()
        await bob.connect([ws, ws.replace("/ws", "")])
        await talk(bob, alice.peer_id, b"hello")
        assert len(bob.connections()) == len(alice.connections()) == 1


REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
GARBAGE = {
    **{
        f"{name} that is no ASCII": REQUEST[:-2] + name.encode() + b": \xff\r\n\r\n"
        for name in ("Connection", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions")
    },
    "a host that is no name": REQUEST.replace(b"Host: x", b"Host: xn--\xff"),
    "a browser": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "no HTTP": b"GARBAGE" * 100,
    "endless headers": b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000,
    "no key": REQUEST.replace(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b""),
    "not masked": REQUEST + b"\x82\x05hello",
    "a text": REQUEST + b"\x81\x85\0\0\0\0hello",
    "a reserved kind": REQUEST + b"\x83\x85\0\0\0\0hello",
    "nothing of noise": REQUEST + b"\x82\x85\0\0\0\0hello",
    "a message of 2^63 bytes": REQUEST + b"\x82\xff" + b"\xff" * 8 + b"\0\0\0\0" + b"x" * 5000,
    "pings": REQUEST + b"\x89\x80\0\0\0\0" * 20_000,
    "goes away": REQUEST + b"\x88\x80\0\0\0\0",
    "half a request": REQUEST[:40],
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_ends_only_itself(name: str) -> None:
    async with echoing("a", WS) as alice, echoing("b") as bob:
        port = alice.listeners[0].getsockname()[1]
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        with suppress(trio.BrokenResourceError):  # it may be turned away before the end
            await stream.send_all(GARBAGE[name])
            await stream.send_eof()
        with trio.fail_after(SOON_S), suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
        await stream.aclose()
        with trio.fail_after(SOON_S):
            while alice._door.shaking:  # noqa: ASYNC110  # nothing tells when they are over
                await trio.sleep(0.005)
        await bob.connect(alice.addresses())
        await talk(bob, alice.peer_id, b"still there")


async def test_a_listener_that_speaks_no_websocket_is_said_so() -> None:
    async with echoing("b") as bob, trio.open_nursery() as nursery:

        async def refuse(stream: trio.SocketStream) -> None:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, refuse, [listener])
        port = listener.socket.getsockname()[1]
        with pytest.raises(TransportError, match="status 404"):
            await bob.connect([f"/ip4/127.0.0.1/tcp/{port}/ws/p2p/{ALICE.peer_id}"])
        nursery.cancel_scope.cancel()


async def test_a_server_whose_answer_is_no_ascii_is_no_websocket() -> None:
    async with echoing("b") as bob, trio.open_nursery() as nursery:

        async def agree(stream: trio.SocketStream) -> None:
            asked = (await stream.receive_some()).decode().partition("Sec-WebSocket-Key: ")[2]
            accepted = generate_accept_token(asked.partition("\r\n")[0].encode())
            answer = b"HTTP/1.1 101 .\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            answer += b"Sec-WebSocket-Accept: " + accepted + b"\r\n"
            await stream.send_all(answer + b"Sec-WebSocket-Protocol: \xff\r\n\r\n")

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, agree, [listener])
        port = listener.socket.getsockname()[1]
        with pytest.raises(TransportError, match="a WebSocket: "):
            await bob.connect([f"/ip4/127.0.0.1/tcp/{port}/ws/p2p/{ALICE.peer_id}"])
        nursery.cancel_scope.cancel()


# ---- the carrier alone


async def pair() -> tuple[WebSocketCarrier, WebSocketCarrier]:
    left, right = sockets()
    for sock in (left, right):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    dialer = WebSocketCarrier(SocketCarrier(left), dialer=True)
    listener = WebSocketCarrier(SocketCarrier(right), dialer=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dialer.open_, parse("/ip6/::1/tcp/1/ws"))
        nursery.start_soon(listener.open_, None)
    return dialer, listener


async def push(carrier: WebSocketCarrier, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[carrier.send(rest[:70_000]) :]
        except BlockingIOError:
            await carrier.writable()


async def pull(carrier: WebSocketCarrier, size: int, piece: int) -> bytes:
    found = bytearray()
    buffer = memoryview(bytearray(piece))
    while len(found) < size:
        await carrier.readable()
        found += buffer[: carrier.recv_into(buffer)]
    return bytes(found)


@pytest.mark.parametrize("piece", [1000, 300_000])
async def test_every_byte_goes_both_ways_through_full_sockets(piece: int) -> None:
    left, right = await pair()
    words = {left: os.urandom(400_000), right: os.urandom(500_000)}
    came: dict[WebSocketCarrier, bytes] = {}

    async def take(carrier: WebSocketCarrier, size: int) -> None:
        came[carrier] = await pull(carrier, size, piece)

    with trio.fail_after(SOON_S):
        async with trio.open_nursery() as nursery:
            for carrier, other in ((left, right), (right, left)):
                nursery.start_soon(push, carrier, words[carrier])
                nursery.start_soon(take, carrier, len(words[other]))
    assert came == {left: words[right], right: words[left]}
    left.close()
    with trio.fail_after(SOON_S):
        await right.readable()
    assert right.recv(1) == b""
    right.close()


async def test_a_ping_is_answered_between_messages_and_too_many_are_a_fault() -> None:
    near, far = sockets()
    carrier = WebSocketCarrier(SocketCarrier(near), dialer=False)
    client = WSConnection(ConnectionType.CLIENT)
    far.send(client.send(Request(host="x", target="/")))
    await carrier.open_(None)
    client.receive_data(far.recv(4096))
    list(client.events())
    far.send(client.send(Ping(b"alive?")) + client.send(BytesMessage(b"word")))
    await carrier.readable()
    assert carrier.recv(10) == b"word"
    client.receive_data(far.recv(4096))
    (pong,) = client.events()
    assert pong.payload == b"alive?"  # type: ignore[attr-defined]

    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    with pytest.raises(RemoteError, match="more answers than it reads"):
        while True:
            far.send(client.send(Ping(b"x" * 100)))
            with trio.move_on_after(0.05):
                await carrier.readable()
    carrier.close()
    far.close()


async def test_a_message_without_end_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "THEIR_BYTES_MAX", 1000)
    dialer, listener = await pair()
    part = dialer._protocol.send(BytesMessage(b"x" * 600, message_finished=False))
    dialer._below.send(part)
    await listener.readable()
    assert len(listener.recv(1000)) == 600
    dialer._below.send(dialer._protocol.send(BytesMessage(b"x" * 600, message_finished=False)))
    with pytest.raises(RemoteError, match="more than 1000 bytes"):
        await listener.readable()
    dialer.close()
    listener.close()


# ---- wss


def certified(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A web server's context for 127.0.0.1, and one that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a kitchen")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "web.pem"
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))


@asynccontextmanager
async def web_server(context: ssl.SSLContext, port: int) -> AsyncIterator[int]:
    """TLS in front of a port, as a web server at home would do it; its own port."""

    async def serve(outside: trio.SSLStream[trio.SocketStream]) -> None:
        inside = await trio.open_tcp_stream("127.0.0.1", port)

        async def copy(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream) -> None:
            with suppress(trio.BrokenResourceError):
                while data := await source.receive_some():
                    await sink.send_all(data)
            nursery.cancel_scope.cancel()

        try:
            with suppress(trio.BrokenResourceError):
                await outside.do_handshake()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(copy, outside, inside)
                    nursery.start_soon(copy, inside, outside)
        finally:
            inside.socket.close()
            outside.transport_stream.socket.close()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield listener.transport_listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_wss_is_dialed_through_a_web_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, trusting = certified(tmp_path)
    async with (
        echoing("a", WS) as alice,
        echoing("b") as bob,
        web_server(server, alice.listeners[0].getsockname()[1]) as port,
    ):
        address = f"/dns4/localhost/tcp/{port}/wss/p2p/{alice.peer_id}"
        with pytest.raises(TransportError, match="TLS"):
            await bob.connect([address])  # the system does not trust this one
        monkeypatch.setattr(websocket, "trusted", lambda: trusting)
        await bob.connect([address])
        await talk(bob, alice.peer_id, os.urandom(2 * MIB))


async def test_a_relay_behind_a_web_server_is_told_as_it_was_dialed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its bare TCP address a caller would meet the web server, and nobody would answer."""
    server, trusting = certified(tmp_path)
    monkeypatch.setattr(websocket, "trusted", lambda: trusting)
    async with (
        echoing("r", WS) as middle,
        echoing("a") as alice,
        echoing("b") as bob,
        web_server(server, middle.listeners[0].getsockname()[1]) as port,
    ):
        Relay(middle, IdentityKey.from_bytes(b"r" * 32)).open()
        await bob.connect([f"/dns4/localhost/tcp/{port}/tls/ws/p2p/{middle.peer_id}"])
        await bob.identified(middle.peer_id)
        held = Reservations(bob, wanted=1, source=lambda _: None, usable=lambda _: True)
        assert await held.tend()
        told = [str(one) for one in held.addresses()]
        (way,) = [one for one in told if f"/tcp/{port}/" in one]
        assert way == f"/dns4/localhost/tcp/{port}/tls/ws/p2p/{middle.peer_id}/p2p-circuit"
        assert await alice.connect([f"{way}/p2p/{bob.peer_id}"]) == bob.peer_id
        await talk(alice, bob.peer_id, b"hello")


async def test_from_our_port_a_websocket_is_dialed_as_one() -> None:
    async with echoing("a", WS) as alice, echoing("b", PLAIN) as bob:
        (address,) = alice.places()
        connection = await bob.dial_from(bob.listeners[0].getsockname(), alice.peer_id, address)
        assert over(bob, alice.peer_id) == "WebSocketCarrier"
        assert connection.listens_at == address
