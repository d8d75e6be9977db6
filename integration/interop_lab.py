"""A host of ours and one of js-libp2p beside it, and what every case does with them."""

from __future__ import annotations

import hashlib
import os
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from potluck.crypto.keys import IdentityKey
from potluck.node.net.host import Host, HostConfig, open_host
from potluck.node.net.stream import Stream

from .interop_services import Services, open_services
from .js_peer import JsPeer, open_js_peer

ECHO: Final = "/interop/echo/1"  # every byte comes back, at once
DIGEST: Final = "/interop/digest/1"  # after the end of what came: its SHA-256
RESET: Final = "/interop/reset/1"  # reset at the first byte
KIB: Final = 1024
SIZES: Final = {"1 KiB": KIB, "1 MiB": KIB * KIB, "8 MiB": 8 * KIB * KIB}
SECURED: Final = {"security": "/noise", "muxer": "/yamux/1.0.0"}  # in js-libp2p's words

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lab:
    """Our host with what runs on it, and theirs."""

    folder: Path  # of js-libp2p
    key: IdentityKey  # of our host
    host: Host
    js: JsPeer
    services: Services | None


@asynccontextmanager
async def open_lab(folder: Path, *, bare: bool = False) -> AsyncIterator[Lab]:
    """Both sides, not yet connected. Bare: without gossip and DHT, which dial when they like."""
    key = IdentityKey.generate()
    async with (
        open_host(HostConfig(seed=key.seed())) as host,
        open_js_peer(folder, *(["bare"] if bare else [])) as js,
    ):
        host.handle(ECHO, echo)
        host.handle(DIGEST, _digest)
        host.handle(RESET, _reset)
        services = None if bare else await open_services(host)
        host.learn(js.peer, js.addresses)
        yield Lab(folder, key, host, js, services)


# ---- what our side answers


async def echo(stream: Stream) -> None:
    while piece := await stream.receive():
        await stream.send(piece)
    await stream.close()


async def _digest(stream: Stream) -> None:
    whole = hashlib.sha256()
    while piece := await stream.receive():
        whole.update(piece)
    await stream.send(whole.digest())
    await stream.close()


async def _reset(stream: Stream) -> None:
    await stream.receive()
    await stream.reset()


# ---- what the cases share


class Watch:
    """Adds the milliseconds that its body took to a list."""

    def __init__(self, times: list[float]) -> None:
        self._times = times

    def __enter__(self) -> None:
        self._began = trio.current_time()

    def __exit__(self, *_: object) -> None:
        self._times.append((trio.current_time() - self._began) * 1000)


async def echo_of(host: Host, peer: str, size: int) -> None:
    data = os.urandom(size)
    stream = await host.open_stream(peer, ECHO)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send, data)
        assert await read_exactly(stream, size) == data
    await stream.close()


async def read_exactly(stream: Stream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await stream.receive(min(1 << 18, size - len(data)))
        assert piece, f"the stream ended after {len(data)} of {size} bytes"
        data += piece
    return bytes(data)


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not holds():  # noqa: ASYNC110  # nothing tells when the other side's end has arrived
            await trio.sleep(0.002)


def p50(times: list[float]) -> float:
    return round(statistics.median(times), 2)
