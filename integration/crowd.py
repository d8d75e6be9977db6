"""A thousand streams at once, each tenth read slowly: the honest ones do not notice.

Two processes on loopback. First 900 streams each ask and are answered many times; then the same
with 100 more whose reader takes what it is sent a little at a time, while the other end
always has more for it; then without them again, since a machine's speed drifts by a tenth within
seconds. The honest throughput of both is compared, and the memory of the process that serves is
watched.

    python -m integration.crowd
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

import psutil
import trio

from potluck.node.net.host import Host, HostConfig, open_host
from potluck.node.net.stream import Stream

ECHO = "/potluck/test/echo/1"
FLOOD = "/potluck/test/flood/1"
STREAMS = 1000
SLOW_SHARE = 10  # each tenth
REQUESTS = 20  # of each honest stream, in one round
BODY = b"x" * 1024
ROUNDS = 16  # in the crowd; half as many before, and after
SIP_BYTES = 4096
SIP_EVERY_S = 0.5


async def echo(stream: Stream) -> None:
    while data := await stream.receive():
        await stream.send(data)


async def flood(stream: Stream) -> None:
    """Always more to send than the reader takes: it is the window that has to hold us back."""
    while True:
        await stream.send(bytes(65536))


async def serve() -> None:
    async with open_host(HostConfig(seed=b"s" * 32)) as host:
        host.handle(ECHO, echo)
        host.handle(FLOOD, flood)
        print(json.dumps(host.addresses()), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


async def _sip(host: Host, peer: str) -> None:
    stream = await host.open_stream(peer, FLOOD)
    while True:
        await stream.receive(SIP_BYTES)
        await trio.sleep(SIP_EVERY_S)  # what makes it a slow reader


async def _ask(stream: Stream) -> None:
    for _ in range(REQUESTS):
        await stream.send(BODY)
        got = 0
        while got < len(BODY):
            piece = await stream.receive()
            if not piece:
                raise AssertionError("an honest stream was closed")
            got += len(piece)


async def _round(streams: list[Stream]) -> float:
    """Requests a second of all honest streams together."""
    began_s = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(_ask, stream)
    return len(streams) * REQUESTS / (time.perf_counter() - began_s)


async def _measure(addresses: list[str], server: psutil.Process) -> dict[str, Any]:
    slow = STREAMS // SLOW_SHARE
    async with open_host(HostConfig(seed=b"c" * 32, listen=())) as host:
        peer = await host.connect(addresses)
        streams = [await host.open_stream(peer, ECHO) for _ in range(STREAMS - slow)]
        await _round(streams)  # opens them, and warms both ends
        alone = [await _round(streams) for _ in range(ROUNDS // 2)]
        before = server.memory_info().rss
        async with trio.open_nursery() as nursery:
            for _ in range(slow):
                nursery.start_soon(_sip, host, peer)
            beside = [await _round(streams) for _ in range(ROUNDS)]
            after, own = server.memory_info().rss, psutil.Process().memory_info().rss
            nursery.cancel_scope.cancel()
        alone += [await _round(streams) for _ in range(ROUNDS // 2)]
    quiet, crowded = statistics.median(alone), statistics.median(beside)
    return {
        "streams": STREAMS,
        "slow_readers": slow,
        "honest_requests_s_alone": round(quiet),
        "honest_requests_s_beside": round(crowded),
        "share_kept": round(crowded / quiet, 3),
        "server_growth_mib": round((after - before) / 2**20, 1),
        "client_rss_mib": round(own / 2**20, 1),
    }


def measure() -> dict[str, Any]:
    """Start the serving process, and measure against it."""
    command = [sys.executable, "-m", "integration.crowd", "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdin is not None
        addresses = json.loads(child.stdout.readline())
        try:
            return trio.run(_measure, addresses, psutil.Process(child.pid))
        finally:
            child.kill()


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        trio.run(serve)
    else:
        print(json.dumps(measure(), indent=1))
