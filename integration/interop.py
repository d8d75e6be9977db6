"""Whether js-libp2p, as it comes from npm, is a peer of ours: each case with what it took.

    js-libp2p (js/peer.mjs) ── loopback: TCP, noise, yamux ── Host ── py-libp2p's gossipsub, KadDHT

Both sides take both parts wherever a case has two. `python -m integration.interop` prints them.
Oracle: js-libp2p, which nobody here wrote. What speaks here for us beside node/net is py-libp2p's
gossipsub and Kademlia, run over our connections (node/net/plug.py, service.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio
from libp2p.peer.id import ID

from potluck.errors import RemoteError, TransportError
from potluck.node.net.host import Host, HostConfig, open_host
from potluck.node.net.identify import PING, PING_BYTES
from potluck.node.net.stream import Stream

from .interop_services import Services, digest_of, open_services
from .js_peer import JsError, JsPeer, install, open_js_peer

ECHO: Final = "/interop/echo/1"  # every byte comes back, at once
DIGEST: Final = "/interop/digest/1"  # after the end of what came: its SHA-256
RESET: Final = "/interop/reset/1"  # reset at the first byte
KIB: Final = 1024
SIZES: Final = {"1 KiB": KIB, "1 MiB": KIB * KIB, "8 MiB": 8 * KIB * KIB}
DIALS: Final = 10
PINGS: Final = 20
STREAMS: Final = 200  # at once; js-libp2p lets a connection have 1,000
STREAM_BYTES: Final = 16 * KIB
MESSAGES: Final = 20  # of gossip, one after the other
CASE_S: Final = 40.0

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lab:
    """Our host with what runs on it, and theirs."""

    host: Host
    js: JsPeer
    services: Services | None


@asynccontextmanager
async def open_lab(folder: Path, *, bare: bool = False) -> AsyncIterator[Lab]:
    """Both sides, not yet connected. Bare: without gossip and DHT, which dial when they like."""
    async with (
        open_host(HostConfig(seed=os.urandom(32))) as host,
        open_js_peer(folder, bare=bare) as js,
    ):
        host.handle(ECHO, _echo)
        host.handle(DIGEST, _digest)
        host.handle(RESET, _reset)
        services = None if bare else await open_services(host)
        host.learn(js.peer, js.addresses)
        yield Lab(host, js, services)


# ---- what our side answers


async def _echo(stream: Stream) -> None:
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


# ---- the cases


async def case_dial(lab: Lab) -> Figures:
    """Both dial; the connection is noise and yamux by js's own account; both hang up."""
    ours, theirs = [], []
    for _ in range(DIALS):
        with _Watch(ours):
            assert await lab.host.connect(lab.js.addresses) == lab.js.peer
        said = await lab.js.do("connection", peer=lab.host.peer_id)
        assert said == {"security": "/noise", "muxer": "/yamux/1.0.0", "direction": "inbound"}, said
        lab.host.disconnect(lab.js.peer)
        await lab.js.do("connected", peer=lab.host.peer_id, yes=False)
    for _ in range(DIALS):
        with _Watch(theirs):
            await lab.js.do("dial", address=lab.host.addresses()[0])
        said = await lab.js.do("connection", peer=lab.host.peer_id)
        assert said == {"security": "/noise", "muxer": "/yamux/1.0.0", "direction": "outbound"}
        assert lab.host.connected() == (lab.js.peer,)
        await lab.js.do("hangUp", peer=lab.host.peer_id)
        await _until(lambda: not lab.host.connected())
    return {"us_to_js_p50_ms": _p50(ours), "js_to_us_p50_ms": _p50(theirs)}


async def case_identify(lab: Lab) -> Figures:
    """Each knows the other's agent, protocols and addresses, and where it is seen from."""
    await lab.host.connect(lab.js.addresses)
    await lab.host.identified(lab.js.peer)
    told = lab.host.claims(lab.js.peer)
    said = await lab.js.do("identified", peer=lab.host.peer_id)
    assert told is not None
    assert told.agent.startswith("js-libp2p/3.3.11"), told.agent
    assert said["agent"].startswith("potluck/"), said
    assert {ECHO, PING, "/meshsub/1.2.0", "/ipfs/kad/1.0.0"} <= set(told.protocols)
    assert {ECHO, PING, "/meshsub/1.2.0", "/ipfs/kad/1.0.0"} <= set(said["protocols"])
    assert said["listens"], said
    assert told.addresses and told.observed is not None
    return {
        "js_agent": told.agent.split()[0],
        "js_protocols": len(told.protocols),
        "our_protocols": len(said["protocols"]),
    }


async def case_ping(lab: Lab) -> Figures:
    """Pings one after the other, each by js on a stream of its own, by us all on one."""
    theirs = [await lab.js.do("ping", peer=lab.host.peer_id) for _ in range(PINGS)]
    ours: list[float] = []
    stream = await lab.host.open_stream(lab.js.peer, PING)
    for _ in range(PINGS):
        data = os.urandom(PING_BYTES)
        with _Watch(ours):
            await stream.send(data)
            assert await _read(stream, PING_BYTES) == data
    await stream.close()
    return {"pings": PINGS, "us_to_js_p50_ms": _p50(ours), "js_to_us_p50_ms": _p50(theirs)}


async def case_echo(lab: Lab) -> Figures:
    """Bytes there and back, on a new stream each; the times are of the whole of it."""
    figures: Figures = {}
    for name, size in SIZES.items():
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(3):
            with _Watch(ours):
                await _echo_of(lab, size)
            theirs.append(await lab.js.do("echo", peer=lab.host.peer_id, bytes=size))
        figures[name] = {"us_to_js_p50_ms": _p50(ours), "js_to_us_p50_ms": _p50(theirs)}
    return figures


async def case_streams(lab: Lab) -> Figures:
    """Many streams at once on the one connection, and none left open after them."""
    took: list[float] = []
    with _Watch(took):
        async with trio.open_nursery() as nursery:
            for _ in range(STREAMS):
                nursery.start_soon(_echo_of, lab, STREAM_BYTES)
    arguments = {"peer": lab.host.peer_id, "count": STREAMS, "bytes": STREAM_BYTES}
    theirs = await lab.js.do("streams", **arguments)
    # gossip's two streams stay
    await _until(lambda: lab.host.streams <= 4)
    return {"streams": STREAMS, "us_to_js_ms": round(took[0], 1), "js_to_us_ms": round(theirs, 1)}


async def case_half_close(lab: Lab) -> Figures:
    """One side ends what it writes; the other has it all, and answers only then."""
    data = os.urandom(KIB * KIB)
    stream = await lab.host.open_stream(lab.js.peer, DIGEST)
    await stream.send(data)
    await stream.finish()  # type: ignore[attr-defined]  # MuxStream has it, the port does not
    assert await _read(stream, 32) == hashlib.sha256(data).digest()
    assert await stream.receive() == b""
    await stream.close()
    assert await lab.js.do("halfClose", peer=lab.host.peer_id, bytes=len(data)) is True
    return {"bytes": len(data)}


async def case_reset(lab: Lab) -> Figures:
    """A reset by either side is a reset for the other, and harms no other stream."""
    stream = await lab.host.open_stream(lab.js.peer, RESET)
    await stream.send(b"x")
    try:
        await stream.receive()
        raise AssertionError("a stream that js-libp2p had reset ended as if it were done")
    except TransportError as error:
        seen_by_us = str(error)
    seen_by_js = await lab.js.do("resetByThem", peer=lab.host.peer_id)
    assert seen_by_js == "StreamResetError", seen_by_js
    await lab.js.do("resetByUs", peer=lab.host.peer_id)
    ours = await lab.host.open_stream(lab.js.peer, ECHO)
    await ours.send(b"x")
    assert await _read(ours, 1) == b"x"
    await ours.reset()
    await _echo_of(lab, KIB)
    return {"seen_by_us": seen_by_us, "seen_by_js": seen_by_js}


async def case_unknown_protocol(lab: Lab) -> Figures:
    """What a side does not speak is refused in words, and the connection lives on."""
    try:
        await lab.js.do("echo", peer=lab.host.peer_id, bytes=1, protocol="/interop/none/1")
        raise AssertionError("js-libp2p was served a protocol that nobody speaks")
    except JsError as error:
        seen_by_js = str(error)
    stream = await lab.host.open_stream(lab.js.peer, "/interop/none/1")
    try:
        await stream.receive()
        raise AssertionError("we were served a protocol that nobody speaks")
    except (TransportError, RemoteError) as error:
        seen_by_us = str(error)
    await _echo_of(lab, KIB)
    return {"seen_by_us": seen_by_us, "seen_by_js": seen_by_js}


async def case_gossip(lab: Lab) -> Figures:
    """gossipsub: each hears what the other publishes, once, and in the mesh of both."""
    topic = "/interop/gossip"
    host, js, services = lab.host, lab.js, lab.services
    assert services is not None
    subscription = await services.pubsub.subscribe(topic)
    await js.do("subscribe", topic=topic)
    await services.pubsub.wait_for_subscription(ID.from_string(js.peer), topic)
    await js.do("subscriber", topic=topic, peer=host.peer_id)
    await js.do("mesh", topic=topic, peer=host.peer_id)
    await services.pubsub.wait_for_mesh(ID.from_string(js.peer), topic)
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(MESSAGES):
        with _Watch(theirs):
            sent_to = await js.do("publish", topic=topic, text=f"js {number}")
            message = await subscription.get()
        assert sent_to == [host.peer_id]
        assert message.data.decode() == f"js {number}" and str(ID(message.from_id)) == js.peer
    for number in range(MESSAGES):
        with _Watch(ours):
            await services.pubsub.publish(topic, f"us {number}".encode())
            await subscription.get()  # our own
            heard = await js.do("heard", topic=topic, count=number + 1)
    assert heard == [f"us {number}" for number in range(MESSAGES)]
    return {
        "protocol": await js.do("gossipProtocol", peer=host.peer_id),
        "messages_each_way": MESSAGES,
        "us_to_js_p50_ms": _p50(ours),
        "js_to_us_p50_ms": _p50(theirs),
    }


async def case_dht(lab: Lab) -> Figures:
    """Records of a public namespace, put and got by each at the other; forged ones are refused."""
    assert lab.services is not None
    js, dht = lab.js, lab.services.dht
    await js.do("dhtPeers", peer=lab.host.peer_id)
    assert await dht.add_peer(ID.from_string(js.peer))
    took: dict[str, list[float]] = {"we_put": [], "js_gets": [], "js_puts": [], "we_get": []}
    for number in range(5):
        key, value = _record(f"ours {number}")
        with _Watch(took["we_put"]):
            await dht.put_value(key, value)
        dht.value_store.remove(key.encode())  # so that js has the only copy
        with _Watch(took["js_gets"]):
            answer = await js.do("get", key=key)
        assert answer["found"][0] == {"value": value.hex(), "from": js.peer}, answer

        key, value = _record(f"theirs {number}")
        with _Watch(took["js_puts"]):
            answer = await js.do("put", key=key, value=value.hex())
        assert answer["kept"] >= 1, answer
        kept = dht.value_store.get(key.encode())
        assert kept is not None and kept.value == value
        dht.value_store.remove(key.encode())  # what js keeps itself remains
        with _Watch(took["we_get"]):
            assert await dht.get_value(key) == value
    return {**{f"{name}_p50_ms": _p50(times) for name, times in took.items()}, **await _forge(lab)}


async def _forge(lab: Lab) -> Figures:
    """Records whose name is not the digest of their value, sent all the same."""
    assert lab.services is not None
    js, dht = lab.js, lab.services.dht
    key, _ = _record("right")
    wrong = b"wrong"
    at_js = await dht.value_store._store_at_peer(ID.from_string(js.peer), key.encode(), wrong)
    assert not at_js and not (await js.do("get", key=key))["found"]
    await js.do("lenient", yes=True)
    await js.do("put", key=key, value=wrong.hex())
    assert dht.value_store.get(key.encode()) is None
    assert (await js.do("get", key=key))["found"][0]["from"] == js.peer  # it would tell anybody
    assert await dht.get_value(key) is None
    await js.do("lenient", yes=False)
    return {"forged_kept": 0}


def _record(text: str) -> tuple[str, bytes]:
    value = text.encode()
    return f"/interop/{digest_of(value)}", value


Case = Callable[[Lab], Awaitable[Figures]]

CASES: Final[dict[str, Case]] = {
    "dial": case_dial,
    "identify": case_identify,
    "ping": case_ping,
    "echo": case_echo,
    "streams": case_streams,
    "half_close": case_half_close,
    "reset": case_reset,
    "unknown_protocol": case_unknown_protocol,
    "gossip": case_gossip,
    "dht": case_dht,
}
BARE: Final = ("dial",)


# ---- small parts


class _Watch:
    """Adds the milliseconds that its body took to a list."""

    def __init__(self, times: list[float]) -> None:
        self._times = times

    def __enter__(self) -> None:
        self._began = trio.current_time()

    def __exit__(self, *_: object) -> None:
        self._times.append((trio.current_time() - self._began) * 1000)


async def _echo_of(lab: Lab, size: int) -> None:
    data = os.urandom(size)
    stream = await lab.host.open_stream(lab.js.peer, ECHO)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send, data)
        assert await _read(stream, size) == data
    await stream.close()


async def _read(stream: Stream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await stream.receive(min(1 << 18, size - len(data)))
        assert piece, f"the stream ended after {len(data)} of {size} bytes"
        data += piece
    return bytes(data)


async def _until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not holds():  # noqa: ASYNC110  # nothing tells when the other side's end has arrived
            await trio.sleep(0.002)


def _p50(times: list[float]) -> float:
    return round(statistics.median(times), 2)


async def run_case(lab: Lab, name: str) -> Figures:
    """One case, connected if need be. Raises what it found wrong, in CASE_S at most."""
    with trio.fail_after(CASE_S):
        if name != "dial" and not lab.host.connected():
            await lab.host.connect(lab.js.addresses)
        return await CASES[name](lab)


async def _figures(lab: Lab, name: str) -> Figures:
    try:
        return await run_case(lab, name)
    except (AssertionError, JsError, TransportError, trio.TooSlowError) as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def measure() -> dict[str, Any]:
    """Every case: its figures, or under `failed` what was wrong with it.

    Raises Unavailable when js-libp2p cannot be installed.
    """
    folder = install()

    async def all_cases() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for bare in (True, False):
            async with open_lab(folder, bare=bare) as lab:
                found["node"] = lab.js.version
                for name in CASES:
                    if (name in BARE) == bare:
                        found[name] = await _figures(lab, name)
        return found

    return trio.run(all_cases)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
