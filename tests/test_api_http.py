"""The HTTP server under the API: what h11 does not do by itself."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from potluck.errors import UserError
from potluck.node.api.http import (
    HEAD_BYTES_MAX,
    HEAD_S,
    SEND_S,
    ClientGone,
    Connection,
    Server,
    listen,
)

GET = b"GET /a?b=c HTTP/1.1\r\nhost: x\r\n\r\n"


class Echo:
    """Answers with what came. left: how many clients were found gone."""

    def __init__(self) -> None:
        self.left = 0
        self.lost = trio.Event()
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["path"] == "/fault":
            raise ZeroDivisionError("broken")
        if scope["path"] == "/early":
            await self.reply(send, 413, b"too much")
            return
        if scope["path"] == "/endless":
            await self.endless(send)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                raise ClientGone
            body, more = body + message["body"], message["more_body"]
        if scope["path"] == "/wait":
            assert (await receive())["type"] == "http.disconnect"
            self.left += 1
            raise ClientGone
        await self.reply(send, 200, body)

    async def reply(self, send: Any, status: int, body: bytes) -> None:
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def endless(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 99, "more_body": True})
        except ClientGone:
            self.lost.set()
            raise


@asynccontextmanager
async def talking(echo: Echo, *, lockstep: bool = False) -> AsyncIterator[Any]:
    pair = trio.testing.lockstep_stream_pair if lockstep else trio.testing.memory_stream_pair
    ours, theirs = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(echo, theirs).run)
        yield ours
        await ours.aclose()


async def read(stream: Any) -> tuple[int, dict[str, str], bytes]:
    """One response with a content-length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += (got := await stream.receive_some())
        assert got, data
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    while len(body) < int(headers.get("content-length", "0")):
        body += await stream.receive_some()
    return int(first.split()[1]), headers, body


async def test_one_connection_carries_many_requests() -> None:
    echo = Echo()
    async with talking(echo) as stream:
        for number in range(5):
            await stream.send_all(GET)
            assert await read(stream) == (200, {"content-length": "0"}, b"")
            body = b"y" * (number * 40_000)
            head = f"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            await stream.send_all(head.encode() + body)
            assert (await read(stream))[2] == body
    assert echo.scopes[0]["path"] == "/a" and echo.scopes[0]["query_string"] == b"b=c"


async def test_requests_sent_ahead_are_answered_in_order() -> None:
    async with talking(Echo()) as stream:
        post = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n"
        await stream.send_all(b"".join(post + b"%d" % number for number in range(9)))
        data = b""
        while data.count(b"HTTP/1.1 200") < 9 or not data.endswith(b"8"):
            data += await stream.receive_some()
        bodies = [part.partition(b"\r\n\r\n")[2] for part in data.split(b"HTTP/1.1 200")[1:]]
        assert bodies == [b"%d" % number for number in range(9)]


async def test_a_client_that_asks_to_go_on_is_told_to() -> None:
    async with talking(Echo()) as stream:
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n"
        await stream.send_all(head)
        assert (await read(stream))[0] == 100
        await stream.send_all(b"ok")
        assert (await read(stream))[2] == b"ok"


async def test_chunks_are_put_together() -> None:
    async with talking(Echo()) as stream:
        head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        for part in (head, b"2\r\nab\r\n", b"1\r\nc\r\n", b"0\r\n\r\n"):
            await stream.send_all(part)
        assert (await read(stream))[2] == b"abc"


async def test_head_gets_no_body() -> None:
    async with talking(Echo()) as stream:
        await stream.send_all(b"HEAD /early HTTP/1.1\r\nhost: x\r\n\r\n")
        data = await stream.receive_some()
        assert b" 413 " in data and b"content-length: 8" in data and data.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x00\x01\x02 nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no host
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * HEAD_BYTES_MAX, 431),
    ],
)
async def test_what_is_no_request_is_told_so(sent: bytes, status: int) -> None:
    async with talking(Echo()) as stream:
        await stream.send_all(sent)
        found, headers, body = await read(stream)
        assert (found, headers["connection"]) == (status, "close")
        assert json.loads(body)["error"]["code"] == "bad_http"


async def test_an_answer_before_the_whole_body_closes_and_is_still_read() -> None:
    async with talking(Echo()) as stream:
        head = b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"
        await stream.send_all(head + b"z" * 1000)
        status, headers, body = await read(stream)
        assert (status, headers["connection"], body) == (413, "close", b"too much")
        await stream.send_all(b"z" * 1000)  # nobody minds
        assert await stream.receive_some() == b""


async def test_a_body_that_is_no_http_does_not_change_the_answer_before_it() -> None:
    """What would be read of it is read when the answer is sent, and only to know that it ended."""
    async with talking(Echo()) as stream:
        head = b"POST /early HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        await stream.send_all(head + b"zz no number\r\n")
        status, headers, body = await read(stream)
        assert (status, headers["connection"], body) == (413, "close", b"too much")
        assert await stream.receive_some() == b""


async def test_a_fault_of_one_connection_ends_no_other(capfd: pytest.CaptureFixture[str]) -> None:
    bound = await listen("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server(Echo(), bound).run)
        async with (
            await trio.open_tcp_stream("127.0.0.1", bound.port) as other,
            await trio.open_tcp_stream("127.0.0.1", bound.port) as broken,
        ):
            await other.send_all(GET)
            assert (await read(other))[0] == 200
            await broken.send_all(b"GET /fault HTTP/1.1\r\nhost: x\r\n\r\n")
            with trio.fail_after(10):
                assert await broken.receive_some() == b""
            await other.send_all(GET)
            assert (await read(other))[0] == 200
        nursery.cancel_scope.cancel()
    assert "ZeroDivisionError" in capfd.readouterr().err


async def test_a_client_that_leaves_is_noticed_while_it_is_answered() -> None:
    echo = Echo()
    async with talking(echo) as stream:
        await stream.send_all(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert echo.left == 0
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert echo.left == 1


async def test_a_client_that_leaves_in_its_body_is_noticed() -> None:
    echo = Echo()
    async with talking(echo) as stream:
        await stream.send_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nab")
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
    assert echo.left == 1


async def test_a_client_that_stops_reading_is_given_up(autojump_clock: MockClock) -> None:
    echo, began_s = Echo(), trio.current_time()
    async with talking(echo, lockstep=True) as stream:
        await stream.send_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        await stream.receive_some(10)
        await echo.lost.wait()
    assert trio.current_time() - began_s == pytest.approx(SEND_S)


async def test_a_silent_client_is_closed(autojump_clock: MockClock) -> None:
    began_s = trio.current_time()
    async with talking(Echo()) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\n")
        assert await stream.receive_some() == b""
    assert trio.current_time() - began_s >= HEAD_S


async def test_a_port_that_is_taken_is_told_and_real_sockets_work() -> None:
    bound = await listen("127.0.0.1", 0)
    with pytest.raises(UserError, match="give another --port"):
        await listen("127.0.0.1", bound.port)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server(Echo(), bound).run)
        async with await trio.open_tcp_stream("127.0.0.1", bound.port) as stream:
            await stream.send_all(GET)
            assert (await read(stream))[0] == 200
        nursery.cancel_scope.cancel()


async def test_a_server_that_retires_gives_its_last_answers_and_takes_nothing_new() -> None:
    bound = await listen("127.0.0.1", 0)
    server = Server(Echo(), bound)
    post = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        busy = await trio.open_tcp_stream("127.0.0.1", bound.port)
        idle = await trio.open_tcp_stream("127.0.0.1", bound.port)
        for stream in (busy, idle):
            await stream.send_all(GET)
            assert (await read(stream))[0] == 200
        await busy.send_all(post + b"a")
        while len(server._app.scopes) < 3:  # type: ignore[attr-defined]
            await trio.testing.wait_all_tasks_blocked()
        server.retire()
        assert await idle.receive_some() == b""
        await busy.send_all(b"bc")
        assert (await read(busy))[2] == b"abc"
        assert await busy.receive_some() == b""
        with pytest.raises(OSError):
            await trio.open_tcp_stream("127.0.0.1", bound.port)
        await busy.aclose()
        await idle.aclose()
