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
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from libp2p.peer.id import ID

from potluck.errors import RemoteError, TransportError
from potluck.node.net.identify import PING, PING_BYTES

from .interop_gossip import case_our_gossip
from .interop_lab import (
    DIGEST,
    ECHO,
    KIB,
    RESET,
    SECURED,
    SIZES,
    Figures,
    Lab,
    Watch,
    echo,
    echo_of,
    open_lab,
    p50,
    read_exactly,
    until,
)
from .interop_relay import case_relay, case_relay_limits, case_relay_of_js
from .interop_services import digest_of
from .js_peer import JsError, install, open_js_peer

DIALS: Final = 10
PINGS: Final = 20
STREAMS: Final = 200  # at once; js-libp2p lets a connection have 1,000
STREAM_BYTES: Final = 16 * KIB
MESSAGES: Final = 20  # of gossip, one after the other
CASE_S: Final = 40.0

# ---- the cases


async def case_dial(lab: Lab) -> Figures:
    """Both dial; the connection is noise and yamux by js's own account; both hang up."""
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(DIALS):
        with Watch(ours):
            assert await lab.host.connect(lab.js.addresses) == lab.js.peer
        said = await lab.js.do("connection", peer=lab.host.peer_id)
        assert said == {**SECURED, "direction": "inbound", "limits": None}, said
        lab.host.disconnect(lab.js.peer)
        await lab.js.do("connected", peer=lab.host.peer_id, yes=False)
    for _ in range(DIALS):
        with Watch(theirs):
            await lab.js.do("dial", address=lab.host.addresses()[0])
        said = await lab.js.do("connection", peer=lab.host.peer_id)
        assert said == {**SECURED, "direction": "outbound", "limits": None}, said
        assert lab.host.connected() == (lab.js.peer,)
        await lab.js.do("hangUp", peer=lab.host.peer_id)
        await until(lambda: not lab.host.connected())
    return {"us_to_js_p50_ms": p50(ours), "js_to_us_p50_ms": p50(theirs)}


async def case_websocket(lab: Lab) -> Figures:
    """A js that speaks WebSockets alone, as a browser does, dials our plain port and is dialed."""
    ours: list[float] = []
    theirs: list[float] = []
    async with open_js_peer(lab.folder, "bare", "web") as js:
        assert all("/ws/" in address for address in js.addresses), js.addresses
        with Watch(ours):
            assert await lab.host.connect(js.addresses) == js.peer
        said = await js.do("connection", peer=lab.host.peer_id)
        assert said == {**SECURED, "direction": "inbound", "limits": None}, said
        for size in SIZES.values():
            await echo_of(lab.host, js.peer, size)
        lab.host.disconnect(js.peer)
        await js.do("connected", peer=lab.host.peer_id, yes=False)
        with Watch(theirs):
            await js.do("dial", address=lab.host.addresses()[0].replace("/p2p/", "/ws/p2p/"))
        said = await js.do("connection", peer=lab.host.peer_id)
        assert said == {**SECURED, "direction": "outbound", "limits": None}, said
        took = {
            name: await js.do("echo", peer=lab.host.peer_id, bytes=SIZES[name]) for name in SIZES
        }
    return {"us_to_js_ms": p50(ours), "js_to_us_ms": p50(theirs), "echo_ms": took}


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


async def case_identify_push(lab: Lab) -> Figures:
    """A protocol that a side begins to serve is known to the other, unasked."""
    new = "/interop/new/1"
    host, js = lab.host, lab.js
    await host.identified(js.peer)
    await js.do("identified", peer=host.peer_id)
    ours: list[float] = []
    theirs: list[float] = []
    with Watch(ours):
        host.handle(new, echo)
        await js.do("speaks", peer=host.peer_id, protocol=new)
    with Watch(theirs):
        await js.do("serve", protocol=new)
        await until(lambda: (told := host.claims(js.peer)) is not None and new in told.protocols)
    told = host.claims(js.peer)
    assert told is not None and ECHO in told.protocols and told.agent.startswith("js-libp2p")
    return {"us_to_js_ms": p50(ours), "js_to_us_ms": p50(theirs)}


async def case_ping(lab: Lab) -> Figures:
    """Pings one after the other, each by js on a stream of its own, by us all on one."""
    theirs = [await lab.js.do("ping", peer=lab.host.peer_id) for _ in range(PINGS)]
    ours: list[float] = []
    stream = await lab.host.open_stream(lab.js.peer, PING)
    for _ in range(PINGS):
        data = os.urandom(PING_BYTES)
        with Watch(ours):
            await stream.send(data)
            assert await read_exactly(stream, PING_BYTES) == data
    await stream.close()
    return {"pings": PINGS, "us_to_js_p50_ms": p50(ours), "js_to_us_p50_ms": p50(theirs)}


async def case_echo(lab: Lab) -> Figures:
    """Bytes there and back, on a new stream each; the times are of the whole of it."""
    figures: Figures = {}
    for name, size in SIZES.items():
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(3):
            with Watch(ours):
                await echo_of(lab.host, lab.js.peer, size)
            theirs.append(await lab.js.do("echo", peer=lab.host.peer_id, bytes=size))
        figures[name] = {"us_to_js_p50_ms": p50(ours), "js_to_us_p50_ms": p50(theirs)}
    return figures


async def case_streams(lab: Lab) -> Figures:
    """Many streams at once on the one connection, and none left open after them."""
    took: list[float] = []
    with Watch(took):
        async with trio.open_nursery() as nursery:
            for _ in range(STREAMS):
                nursery.start_soon(echo_of, lab.host, lab.js.peer, STREAM_BYTES)
    arguments = {"peer": lab.host.peer_id, "count": STREAMS, "bytes": STREAM_BYTES}
    theirs = await lab.js.do("streams", **arguments)
    # gossip's two streams stay
    await until(lambda: lab.host.streams <= 4)
    return {"streams": STREAMS, "us_to_js_ms": round(took[0], 1), "js_to_us_ms": round(theirs, 1)}


async def case_half_close(lab: Lab) -> Figures:
    """One side ends what it writes; the other has it all, and answers only then."""
    data = os.urandom(KIB * KIB)
    stream = await lab.host.open_stream(lab.js.peer, DIGEST)
    await stream.send(data)
    await stream.finish()  # type: ignore[attr-defined]  # MuxStream has it, the port does not
    assert await read_exactly(stream, 32) == hashlib.sha256(data).digest()
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
    assert await read_exactly(ours, 1) == b"x"
    await ours.reset()
    await echo_of(lab.host, lab.js.peer, KIB)
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
    await echo_of(lab.host, lab.js.peer, KIB)
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
        with Watch(theirs):
            sent_to = await js.do("publish", topic=topic, text=f"js {number}")
            message = await subscription.get()
        assert sent_to == [host.peer_id]
        assert message.data.decode() == f"js {number}" and str(ID(message.from_id)) == js.peer
    for number in range(MESSAGES):
        with Watch(ours):
            await services.pubsub.publish(topic, f"us {number}".encode())
            await subscription.get()  # our own
            heard = await js.do("heard", topic=topic, count=number + 1)
    assert heard == [f"us {number}" for number in range(MESSAGES)]
    return {
        "protocol": await js.do("gossipProtocol", peer=host.peer_id),
        "messages_each_way": MESSAGES,
        "us_to_js_p50_ms": p50(ours),
        "js_to_us_p50_ms": p50(theirs),
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
        with Watch(took["we_put"]):
            await dht.put_value(key, value)
        dht.value_store.remove(key.encode())  # so that js has the only copy
        with Watch(took["js_gets"]):
            answer = await js.do("get", key=key)
        assert answer["found"][0] == {"value": value.hex(), "from": js.peer}, answer

        key, value = _record(f"theirs {number}")
        with Watch(took["js_puts"]):
            answer = await js.do("put", key=key, value=value.hex())
        assert answer["kept"] >= 1, answer
        kept = dht.value_store.get(key.encode())
        assert kept is not None and kept.value == value
        dht.value_store.remove(key.encode())  # what js keeps itself remains
        with Watch(took["we_get"]):
            assert await dht.get_value(key) == value
    return {**{f"{name}_p50_ms": p50(times) for name, times in took.items()}, **await _forge(lab)}


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
    "websocket": case_websocket,
    "identify": case_identify,
    "identify_push": case_identify_push,
    "ping": case_ping,
    "echo": case_echo,
    "streams": case_streams,
    "half_close": case_half_close,
    "reset": case_reset,
    "unknown_protocol": case_unknown_protocol,
    "gossip": case_gossip,
    "our_gossip": case_our_gossip,
    "dht": case_dht,
    "relay": case_relay,
    "relay_limits": case_relay_limits,
    "relay_of_js": case_relay_of_js,
}
# without gossip and DHT: these dial and ping peers when they like, and js-libp2p lets one ping
# go out at a time
BARE: Final = ("dial", "websocket", "our_gossip", "ping", "relay", "relay_limits", "relay_of_js")


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
    except ExceptionGroup as group:  # the same, from a nursery of a case
        return {"failed": repr(group.exceptions)}


def measure() -> dict[str, Any]:
    """Every case: its figures, or under `failed` what was wrong with it.

    Raises Unavailable when js-libp2p cannot be installed.
    """
    folder = install()

    async def all_cases() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for names in ([name for name in CASES if name not in BARE], *([name] for name in BARE)):
            async with open_lab(folder, bare=names[0] in BARE) as lab:
                found["node"] = lab.js.version
                for name in names:
                    found[name] = await _figures(lab, name)
        return found

    return trio.run(all_cases)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
