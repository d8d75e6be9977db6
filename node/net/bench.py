"""How fast streams are, next to trio's own TLS in the same minute: `potluck bench net`.

Two processes on loopback. Rounds of both roads alternate, so that a busy machine slows both; what
counts is the ratio. A request is n bytes there and n bytes back.
"""

import ipaddress
import math
import os
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any, Protocol

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ...errors import LocalError
from .host import Host, HostConfig, open_host
from .stream import Stream

ECHO = "/potluck/bench/echo/1"
SINK = "/potluck/bench/sink/1"
SIZE_BYTES = 8
KIB, MIB = 1024, 1024 * 1024
BULK_BYTES = 100 * MIB
CHUNK_BYTES = 1 * MIB
ROUNDS = 3
SMALL_REQUESTS = 300  # a round
LARGE_REQUESTS = 20
CONNECTS = 12

Bytes = bytes | bytearray | memoryview


class Road(Protocol):
    """Either kind of stream, as far as the measurements need it."""

    async def send(self, *parts: Bytes) -> None: ...
    async def receive(self, max_bytes: int = 65536) -> Bytes: ...


class _Tls:
    """trio's TLS stream with our two methods."""

    def __init__(self, stream: trio.SSLStream) -> None:
        self.stream = stream

    async def send(self, *parts: Bytes) -> None:
        await self.stream.send_all(b"".join(parts))

    async def receive(self, max_bytes: int = 65536) -> Bytes:
        return bytes(await self.stream.receive_some(max_bytes))


async def bench_net() -> dict[str, float]:
    """Measure both roads. Times in milliseconds, rates in MB/s, `_ratio` is ours over TLS's."""
    with tempfile.TemporaryDirectory() as folder:
        certificate = Path(folder) / "bench.pem"
        _make_certificate(certificate)
        context = ssl.create_default_context(cafile=str(certificate))
        async with _child(certificate) as (ours_at, tls_port):
            return await _measure(ours_at, tls_port, context)


async def _measure(ours_at: str, tls_port: int, context: ssl.SSLContext) -> dict[str, float]:
    found: dict[str, list[float]] = {}

    def note(name: str, values: list[float]) -> None:
        found.setdefault(name, []).extend(values)

    async with (
        open_host(HostConfig(seed=os.urandom(32))) as host,
        open_host(HostConfig(seed=os.urandom(32))) as other,
    ):
        peer = await host.connect([ours_at])
        tls = _Tls(await _open_tls(tls_port, context))
        ours = await host.open_stream(peer, ECHO)
        for _ in range(ROUNDS):
            for name, road in (("tls", tls), ("ours", ours)):
                note(f"{name}_1KiB", await _requests(road, KIB, SMALL_REQUESTS))
                note(f"{name}_1MiB", await _requests(road, MIB, LARGE_REQUESTS))
            note("ours_new_stream", await _new_streams(host, peer, SMALL_REQUESTS))
            note("tls_rate", [await _bulk(_Tls(await _open_tls(tls_port, context)))])
            note("ours_rate", [await _bulk(await host.open_stream(peer, SINK))])
            note("ours_beside_bulk", await _beside_bulk(host, peer, ours))
            note("tls_connect", await _timed(CONNECTS, lambda: _connect_tls(tls_port, context)))
            note("ours_connect", await _timed(CONNECTS, lambda: _connect(other, ours_at)))
    return _summary(found)


def _summary(found: dict[str, list[float]]) -> dict[str, float]:
    result: dict[str, float] = {}
    for name in ("connect", "1KiB", "1MiB"):
        for road in ("tls", "ours"):
            result[f"{road}_{name}_p50_ms"] = statistics.median(found[f"{road}_{name}"]) * 1e3
        result[f"{name}_ratio"] = result[f"ours_{name}_p50_ms"] / result[f"tls_{name}_p50_ms"]
    for road in ("tls", "ours"):
        result[f"{road}_MB_s"] = statistics.median(found[f"{road}_rate"]) / 1e6
    result["rate_ratio"] = result["ours_MB_s"] / result["tls_MB_s"]
    result["new_stream_p50_ms"] = statistics.median(found["ours_new_stream"]) * 1e3
    beside = sorted(found["ours_beside_bulk"])
    result["beside_bulk_p50_ms"] = statistics.median(beside) * 1e3
    result["beside_bulk_p99_ms"] = beside[math.ceil(0.99 * len(beside)) - 1] * 1e3
    return {name: round(value, 3) for name, value in result.items()}


# ---- the measurements


async def _timed(times: int, once: Callable[[], Awaitable[None]]) -> list[float]:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await once()
        taken.append(time.perf_counter() - began)
    return taken


async def _requests(road: Road, size: int, times: int) -> list[float]:
    body = os.urandom(size)

    async def once() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(road.send, size.to_bytes(SIZE_BYTES), body)
            await _skip(road, size)

    async def once_small() -> None:
        await road.send(size.to_bytes(SIZE_BYTES), body)
        await _skip(road, size)

    await once()
    return await _timed(times, once if size > KIB else once_small)


async def _new_streams(host: Host, peer: str, times: int) -> list[float]:
    body = os.urandom(KIB)

    async def once() -> None:
        stream = await host.open_stream(peer, ECHO)
        await stream.send(KIB.to_bytes(SIZE_BYTES), body)
        await _skip(stream, KIB)
        await stream.close()

    return await _timed(times, once)


async def _bulk(road: Road) -> float:
    """Bytes a second, until the other end has them all."""
    body = memoryview(os.urandom(CHUNK_BYTES))
    began = time.perf_counter()
    await road.send(BULK_BYTES.to_bytes(SIZE_BYTES))
    for _ in range(BULK_BYTES // CHUNK_BYTES):
        await road.send(body)
    await _skip(road, 1)
    return BULK_BYTES / (time.perf_counter() - began)


async def _beside_bulk(host: Host, peer: str, long: Road) -> list[float]:
    """Times of 1 KiB requests while 100 MiB go the same way on the same connection."""
    taken: list[float] = []
    async with trio.open_nursery() as nursery:

        async def bulk() -> None:
            stream = await host.open_stream(peer, SINK)
            await _bulk(stream)
            await stream.close()
            nursery.cancel_scope.cancel()

        nursery.start_soon(bulk)
        while True:
            taken += await _requests_in_a_row(long)
    return taken[:-1]


async def _requests_in_a_row(road: Road) -> list[float]:
    began = time.perf_counter()
    with trio.CancelScope(shield=True):  # an answer left unread would be taken for the next one's
        await road.send(KIB.to_bytes(SIZE_BYTES), bytes(KIB))
        await _skip(road, KIB)
    taken = time.perf_counter() - began
    await trio.lowlevel.checkpoint()
    return [taken]


async def _connect(host: Host, ours_at: str) -> None:
    """TCP, security, muxer and identify, as a new connection has them."""
    peer = await host.connect([ours_at])
    await host.identified(peer)
    host.disconnect(peer)


async def _connect_tls(port: int, context: ssl.SSLContext) -> None:
    stream = await _open_tls(port, context)
    await trio.aclose_forcefully(stream)


async def _open_tls(port: int, context: ssl.SSLContext) -> trio.SSLStream:
    stream = await trio.open_ssl_over_tcp_stream(
        "127.0.0.1", port, ssl_context=context, https_compatible=True
    )
    await stream.do_handshake()
    return stream


async def _skip(road: Road, size: int) -> None:
    while size:
        piece = await road.receive(256 * KIB)
        if not piece:
            raise LocalError("the other end of the benchmark stopped")
        size -= len(piece)


# ---- the other process


@asynccontextmanager
async def _child(certificate: Path) -> AsyncIterator[tuple[str, int]]:
    """The serving process: our address in it, and the TLS port."""
    command = [sys.executable, "-m", __name__, str(certificate)]
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, command, stdout=PIPE, stdin=PIPE, check=False)
        process: Any = await nursery.start(run)
        line = b""
        while not line.endswith(b"\n"):
            piece = await process.stdout.receive_some()
            if not piece:
                raise LocalError("the benchmark's second process did not start")
            line += piece
        ours_at, port = line.decode().split()
        yield ours_at, int(port)
        await process.stdin.aclose()


async def _serve(certificate: Path) -> None:
    """Echo and swallow on both roads until standard input closes."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def tls(stream: trio.SSLStream) -> None:
        road = _Tls(stream)
        try:
            await _answer(road)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.aclose_forcefully(stream)

    async with open_host(HostConfig(seed=os.urandom(32))) as host, trio.open_nursery() as nursery:
        host.handle(ECHO, _answer)
        host.handle(SINK, _answer_bulk)
        listeners = await trio.open_ssl_over_tcp_listeners(
            0, context, host="127.0.0.1", https_compatible=True
        )
        nursery.start_soon(trio.serve_listeners, tls, listeners)
        bound: Any = listeners[0].transport_listener
        port = bound.socket.getsockname()[1]
        print(host.addresses()[0], port, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


async def _answer(road: Road) -> None:
    """Each request opens with its size; bulk is swallowed, and answered by one byte."""
    left = b""
    while True:
        while len(left) < SIZE_BYTES:
            piece = await road.receive(256 * KIB)
            if not piece:
                return
            left += piece
        size, left = int.from_bytes(left[:SIZE_BYTES]), left[SIZE_BYTES:]
        pieces: list[Bytes] = [left[:size]]
        count, left = len(pieces[0]), left[size:]
        while count < size:
            piece = await road.receive(min(256 * KIB, size - count))
            if not piece:
                return
            count += len(piece)
            if size < BULK_BYTES:
                pieces.append(piece)
        await road.send(*pieces if size < BULK_BYTES else (b"!",))


async def _answer_bulk(stream: Stream) -> None:
    await _answer(stream)


def _make_certificate(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )


if __name__ == "__main__":
    trio.run(_serve, Path(sys.argv[1]))
