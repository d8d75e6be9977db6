"""HTTP/1.1 for one ASGI application, on trio: h11 speaks, this waits.

Where a general server shields its sends, here each has a deadline: a client that stops reading is
given up, and what was made for it ends. Whatever is read has a limit, and so has the number of
connections.

    connection ── request ──▶ app(scope, receive, send) ──▶ response ──┐
        ▲                         receive says http.disconnect once    │ keep-alive
        │                         the client is gone                   │
        └──────────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

import json
import socket
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import h11
import trio

from ...errors import UserError
from ..log import get_logger
from .problem import Problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = get_logger()

CONNECTIONS_MAX = 1024  # of which each holds a descriptor and a few KiB
HEAD_BYTES_MAX = 32 * 1024
HEAD_S = 30.0  # for a request to begin, and its head to end, on an open connection
SEND_S = 30.0  # a client that takes nothing for so long is gone
LINGER_S = 1.0  # to read what a client still sends, so that it reads our last words
READ_BYTES = 64 * 1024


class ClientGone(Exception):
    """The client left, or takes nothing any more."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Where we listen."""

    listeners: list[trio.SocketListener]
    port: int


async def listen(host: str, port: int) -> Bound:
    """Bind. Raises UserError when the address is not ours or the port is taken."""
    try:
        listeners = await trio.open_tcp_listeners(port, host=host or None)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host or 'every address'}, port {port}: {error.strerror or error}; "
            "give another --port or --host"
        ) from error
    for one in listeners:
        one.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Bound(list(listeners), int(listeners[0].socket.getsockname()[1]))


class Server:
    """Serves an application to whoever connects."""

    def __init__(self, app: App, bound: Bound) -> None:
        self._app = app
        self._bound = bound
        self._accepting = trio.CancelScope()
        self._connections: set[Connection] = set()

    async def run(self) -> None:
        """Until cancelled; after `retire`, until the last answer is given."""
        async with trio.open_nursery() as nursery:
            try:
                with self._accepting:
                    await trio.serve_listeners(
                        self._handle, self._bound.listeners, handler_nursery=nursery
                    )
            finally:
                for one in self._bound.listeners:
                    one.socket.close()

    def retire(self) -> None:
        """Take nothing new; what is being answered is answered."""
        self._accepting.cancel()
        for one in self._connections:
            one.retire()

    async def _handle(self, stream: trio.SocketStream) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            await stream.aclose()
            return
        connection = Connection(self._app, stream)
        self._connections.add(connection)
        try:
            await connection.run()
        except Exception:  # the edge: whatever is wrong with one connection, the others go on
            log.error("a connection broke by our own fault", error=traceback.format_exc())
        finally:
            self._connections.remove(connection)


class Connection:
    """One client's connection, and the requests on it, one after another."""

    def __init__(self, app: App, stream: trio.abc.HalfCloseableStream) -> None:
        self._app = app
        self._stream = stream
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._start: Message | None = None
        self._gone = False
        self._bodiless = False  # HEAD: the answer is its head alone
        self._idle = trio.CancelScope()  # while the next request is waited for
        self._retired = False
        self._early = False  # the next request has begun to come before this one was answered

    async def run(self) -> None:
        try:
            while not self._retired and await self._one():
                self._http.start_next_cycle()
        except (ClientGone, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except h11.RemoteProtocolError as error:
            await self._complain(error)
        finally:
            with trio.CancelScope(shield=True):
                await self._close()

    def retire(self) -> None:
        """The answer at hand is the last."""
        self._retired = True
        self._idle.cancel()

    async def _one(self) -> bool:
        """Answer a request; False when there is none, or no other can follow."""
        event: object = None
        with trio.move_on_after(HEAD_S) as self._idle:
            event = await self._next()
        if not isinstance(event, h11.Request):
            return False
        self._start, self._early = None, False
        self._bodiless = event.method == b"HEAD"
        await self._app(_scope(event), self._receive, self._send)
        again = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        return again and not self._retired

    async def _next(self) -> object:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._http.they_are_waiting_for_100_continue:
                await self._write(h11.InformationalResponse(status_code=100, headers=[]))
            self._http.receive_data(await self._read())

    async def _read(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(READ_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    async def _receive(self) -> Message:
        """The body, piece by piece; then `http.disconnect` once the client is gone."""
        if self._http.their_state is h11.SEND_BODY:
            try:
                event = await self._next()
            except h11.RemoteProtocolError:
                return self._disconnect()
            if isinstance(event, h11.Data):
                return {"type": "http.request", "body": bytes(event.data), "more_body": True}
            if isinstance(event, h11.EndOfMessage):
                return {"type": "http.request", "body": b"", "more_body": False}
            return self._disconnect()
        while not self._gone and not self._early:
            data = await self._read()
            if not data:
                return self._disconnect()
            self._http.receive_data(data)
            self._early = True  # one read of it is enough: the rest may wait in the socket
        if self._gone:
            return self._disconnect()
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    def _disconnect(self) -> Message:
        self._gone = True
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        """Raises ClientGone."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        out = b""
        if self._start is not None:
            headers = list(self._start.get("headers", ()))
            if not self._all_read():
                headers.append((b"connection", b"close"))
            out += self._bytes(
                h11.Response(status_code=self._start["status"], headers=headers, reason=b"")
            )
            self._start = None
        body = bytes(message.get("body", b""))
        if body and not self._bodiless:
            out += self._bytes(h11.Data(data=body))
        if not message.get("more_body", False):
            out += self._bytes(h11.EndOfMessage())
        await self._write_bytes(out)

    def _all_read(self) -> bool:
        """Whether the request has ended, which one without a body does by its head. One whose rest
        is no HTTP never does; its answer is told all the same."""
        if self._http.their_state is not h11.SEND_BODY:
            return self._http.their_state is not h11.ERROR
        try:
            return isinstance(self._http.next_event(), h11.EndOfMessage)
        except h11.RemoteProtocolError:
            return False

    def _bytes(self, event: h11.Event) -> bytes:
        return self._http.send(event) or b""

    async def _write(self, event: h11.Event) -> None:
        await self._write_bytes(self._bytes(event))

    async def _write_bytes(self, data: bytes) -> None:
        try:
            with trio.fail_after(SEND_S):
                await self._stream.send_all(data)
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._gone = True
            raise ClientGone from error

    async def _complain(self, error: h11.RemoteProtocolError) -> None:
        """Say what is wrong with what came, if an answer has not begun."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        status = error.error_status_hint
        problem = Problem(status, f"this is no HTTP request: {error}", code="bad_http")
        body = json.dumps(problem.body).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        with suppress(ClientGone):
            await self._write(h11.Response(status_code=status, headers=headers))
            await self._write(h11.Data(data=body))
            await self._write(h11.EndOfMessage())

    async def _close(self) -> None:
        """Closed at once with bytes unread, a socket would reset, and our last words be lost."""
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            if not self._gone:
                await self._stream.send_eof()
                with trio.move_on_after(LINGER_S):
                    while await self._read():
                        pass
        await trio.aclose_forcefully(self._stream)


def _scope(request: h11.Request) -> Scope:
    target = request.target.decode("latin-1")
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": request.http_version.decode(),
        "method": request.method.decode(),
        "path": path,
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "headers": [(name.lower(), value) for name, value in request.headers],
    }
