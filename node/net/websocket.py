"""A connection inside a WebSocket, for networks that let nothing else through.

Source: RFC 6455; github.com/libp2p/specs, websockets. The byte stream of Noise and yamux goes in
binary messages, whose borders mean nothing:

    dialer                                  listener
    GET / HTTP/1.1, Upgrade: websocket ──▶
                                       ◀──  101 Switching Protocols
    messages: multistream, Noise, yamux ◀─▶

A listener tells it from a bare connection by the first byte, so one port serves both. `wss` is the
same inside TLS, which is dialed only: it needs a name and a certificate, and whoever has them has a
web server in front. The certificate is checked, though Noise proves the peer without it.
"""

from __future__ import annotations

import socket
import ssl
from abc import ABC, abstractmethod
from contextlib import ExitStack
from functools import cache
from typing import Final

import wsproto
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)

from ...errors import RemoteError, TransportError
from .address import Address
from .carrier import BufferedCarrier, Carrier, SocketCarrier
from .guard import foreign

FIRST_BYTE: Final = b"G"  # of GET; a bare connection begins with multistream's length, 19
RECEIVE_BYTES: Final = 256 * 1024
MESSAGE_BYTES_MAX: Final = 256 * 1024  # sent: a batch of Noise's
THEIR_BYTES_MAX: Final = 16 * 1024 * 1024  # received in one message; pieces go on as they come
CONTROL_BYTES_MAX: Final = 4096  # answers to pings that the peer does not read


async def speaks_first(carrier: SocketCarrier) -> bool:
    """Whether the dialer of a fresh connection wants a WebSocket. Waits for its first byte."""
    while True:
        await carrier.readable()
        try:
            return carrier.sock.recv(1, socket.MSG_PEEK) == FIRST_BYTE
        except BlockingIOError:
            continue


class _Wrapping(BufferedCarrier, ABC):
    """A road inside another one: what is sent goes in wraps, which leave whole before the next."""

    def __init__(self, below: Carrier) -> None:
        super().__init__()
        self.local_host = below.local_host
        self._below = below
        self._leaving = memoryview(b"")  # a wrap under way
        self._taken = 0  # bytes of the caller's that it holds

    @abstractmethod
    def _wrapped(self, data: bytes | bytearray | memoryview) -> tuple[bytes, int]:
        """The next wrap, and how many of these bytes are in it."""

    def send(self, data: bytes | bytearray | memoryview, /) -> int:
        """As a socket's."""
        if not self._leaving:
            wrap, self._taken = self._wrapped(data)
            self._leaving = memoryview(wrap)
        self._drain()
        return self._taken

    def _drain(self) -> None:
        while self._leaving:
            self._leaving = self._leaving[self._below.send(self._leaving) :]

    async def writable(self) -> None:
        await self._below.writable()

    def path_rtt_s(self) -> float:
        return self._below.path_rtt_s()

    def close(self) -> None:
        self._below.close()


class WebSocketCarrier(_Wrapping):
    """One WebSocket as a road; ready once `open_` has returned."""

    def __init__(self, below: Carrier, *, dialer: bool) -> None:
        super().__init__(below)
        kind = wsproto.ConnectionType.CLIENT if dialer else wsproto.ConnectionType.SERVER
        self._protocol = wsproto.WSConnection(kind)
        self._control = bytearray()  # whole frames that go before the next message
        self._message_bytes = 0

    def _wrapped(self, data: bytes | bytearray | memoryview) -> tuple[bytes, int]:
        piece = bytes(data[:MESSAGE_BYTES_MAX])
        frame = bytes(self._control) + self._protocol.send(BytesMessage(data=piece))
        self._control.clear()
        return frame, len(piece)

    async def readable(self) -> None:
        while not self._arrived and not self._ended:
            await self._below.readable()
            self._hear()

    async def open_(self, address: Address | None) -> None:
        """Shake hands: as the dialer of an address or, with None, as the dialed.

        Raises TransportError, RemoteError.
        """
        if address is not None:
            host = f"[{address.host}]" if address.kind == "ip6" else address.host
            asked = Request(host=f"{host}:{address.port}", target="/")
            self._control += self._protocol.send(asked)
        while self._protocol.state is not ConnectionState.OPEN:
            while self._control:
                await self._below.writable()
                self._push_control()
            await self._below.readable()
            self._hear()
            if self._ended:
                raise TransportError("connection closed in the WebSocket handshake")
        while self._control:
            await self._below.writable()
            self._push_control()

    # ---- inside

    def _push_control(self) -> None:
        """What nobody's message carries along. Never in the middle of one."""
        try:
            while self._control and not self._leaving:
                del self._control[: self._below.send(self._control)]
        except BlockingIOError:
            return  # it goes with the next message

    def _hear(self) -> None:
        """Take what has come. Raises RemoteError."""
        try:
            data = self._below.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise TransportError(f"connection broke: {error}") from error
        if not data:
            self._ended = True
            return
        pieces: list[bytes] = []
        with foreign("a WebSocket"):  # of many kinds: a header that is no ASCII, say
            self._protocol.receive_data(data)
            for event in self._protocol.events():
                self._handle(event, pieces)
        self._arrived = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _handle(self, event: wsproto.events.Event, pieces: list[bytes]) -> None:
        match event:
            case BytesMessage():
                pieces.append(bytes(event.data))
                self._message_bytes += len(event.data)
                if self._message_bytes > THEIR_BYTES_MAX:
                    raise RemoteError(f"a message of more than {THEIR_BYTES_MAX} bytes")
                if event.message_finished:
                    self._message_bytes = 0
            case TextMessage():
                raise RemoteError("a text in a WebSocket of bytes")
            case Request():
                self._answer(self._protocol.send(AcceptConnection()))
            case RejectConnection():
                raise TransportError(f"no WebSocket there: status {event.status_code}")
            case Ping():
                self._answer(self._protocol.send(event.response()))
            case CloseConnection():
                self._ended = True
                if self._protocol.state is ConnectionState.REMOTE_CLOSING:
                    self._answer(self._protocol.send(event.response()))
            case _:
                pass  # a pong, or the acceptance

    def _answer(self, frame: bytes) -> None:
        self._control += frame
        if len(self._control) > CONTROL_BYTES_MAX:
            raise RemoteError("a peer that asks for more answers than it reads")
        self._push_control()


class TlsCarrier(_Wrapping):
    """TLS, dialed; ready once `open_` has returned."""

    def __init__(self, below: SocketCarrier, name: str, context: ssl.SSLContext) -> None:
        super().__init__(below)
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._came, self._goes, server_hostname=name)

    def _wrapped(self, data: bytes | bytearray | memoryview) -> tuple[bytes, int]:
        taken = self._tls.write(data)
        return self._goes.read(), taken

    async def readable(self) -> None:
        while not self._arrived and not self._ended:
            try:
                self._arrived = memoryview(self._tls.read(RECEIVE_BYTES))
                self._ended = not self._arrived
            except ssl.SSLWantReadError:
                await self._below.readable()
                self._fill()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                self._ended = True  # cut short or not: what is inside has its own seals
            except ssl.SSLError as error:
                raise TransportError(f"TLS broke: {error.reason}") from error

    async def open_(self) -> None:
        """Shake hands. Raises TransportError, also when the certificate is not to be trusted."""
        done = False
        while not done:
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                raise TransportError(f"TLS: {error.reason or error}") from error
            self._leaving = memoryview(bytes(self._leaving) + self._goes.read())
            while self._leaving:
                await self._below.writable()
                try:
                    self._drain()
                except BlockingIOError:
                    continue
            if not done:
                await self._below.readable()
                self._fill()
                if self._came.eof:
                    raise TransportError("connection closed in the TLS handshake")

    def _fill(self) -> None:
        try:
            data = self._below.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise TransportError(f"connection broke: {error}") from error
        if data:
            self._came.write(data)
        else:
            self._came.write_eof()


async def accept_websocket(below: SocketCarrier) -> WebSocketCarrier:
    """The carrier of a dialer that began with GET. Raises TransportError, RemoteError."""
    carrier = WebSocketCarrier(below, dialer=False)
    await carrier.open_(None)
    return carrier


async def carry(sock: socket.socket, address: Address) -> Carrier:
    """What carries bytes over a connected socket: it alone or, if the address says so, a WebSocket.

    Raises TransportError, RemoteError; the socket is closed then, as when cancelled.
    """
    bare = SocketCarrier(sock)
    if address.over == "tcp":
        return bare
    below: Carrier = bare
    with ExitStack() as otherwise:
        otherwise.callback(bare.close)
        if address.over == "wss":
            below = tls = TlsCarrier(bare, address.host, trusted())
            await tls.open_()
        carrier = WebSocketCarrier(below, dialer=True)
        await carrier.open_(address)
        otherwise.pop_all()
    return carrier


@cache
def trusted() -> ssl.SSLContext:
    """Whom the system trusts. Reading its certificates takes some 20 ms, once."""
    return ssl.create_default_context()
