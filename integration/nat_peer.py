"""One peer of the NAT laboratory: a host with all that crosses NATs, told what to do line by line.

{"do": "report"}                                  what it knows of itself
{"do": "meet", "peer": ..., "addresses": [...]}   connect, and wait for the direct path
{"do": "talk", "peer": ...}                       a word there and back, as the peer is known
{"do": "part", "peer": ...}                       disconnect
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import structlog
import trio

from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError, TransportError
from potluck.node.member import open_member
from potluck.node.net.host import Host, HostConfig, open_host
from potluck.node.net.nat import NatConfig, start_nat
from potluck.node.net.peers import Connection
from potluck.node.net.stream import Stream

ECHO = "/potluck/echo/1"
CONNECT_S = 10.0
DIRECT_S = 30.0
TALK_S = 2.0
LOOK_S = 0.02


async def echo(stream: Stream) -> None:
    while piece := await stream.receive():
        await stream.send(piece)


async def call(host: Host, peer: str) -> bool:
    """Whether a word comes back."""
    stream = await host.open_stream(peer, ECHO)
    await stream.send(b"a word")
    heard = bytearray()
    while len(heard) < 6:
        piece = await stream.receive()
        if not piece:
            return False
        heard += piece
    await stream.close()
    return bytes(heard) == b"a word"


async def meet(
    host: Host, peer: str, addresses: list[str], within_s: float = DIRECT_S
) -> dict[str, Any]:
    """Connect, talk, wait until the path is direct, talk again."""
    began = trio.current_time()
    found: dict[str, Any] = {"connected_s": None, "direct_s": None, "relayed": None, "talks": False}
    ways = [one.relay is not None for one in host.connections(peer)]

    def note(connection: Connection) -> None:
        if connection.mux.peer == peer:
            ways.append(connection.relay is not None)

    host.came.append(note)
    with trio.move_on_after(CONNECT_S):
        try:
            await host.connect(addresses)
            found["talks"] = await call(host, peer)
            found["connected_s"] = round(trio.current_time() - began, 3)
        except (TransportError, RemoteError) as error:
            found["error"] = str(error)
    host.came.remove(note)
    found["relayed"] = bool(ways) and ways[0]  # at first: it may have been punched by now
    best = host.best(peer)
    with trio.move_on_at(began + within_s):
        while best is not None and best.relay is not None:
            await trio.sleep(LOOK_S)
            best = host.best(peer)
        if best is not None:
            found["direct_s"] = round(trio.current_time() - began, 3)
            found["talks"] = await call(host, peer)
    return found


async def talk(host: Host, peer: str) -> dict[str, Any]:
    """Whether a word comes back soon, and whether a relay passes it on."""
    talks = False
    with trio.move_on_after(TALK_S):
        with suppress(TransportError, RemoteError):
            talks = await call(host, peer)
    return {"talks": talks, "relay": host.relay_of(peer)}


async def obey(host: Host, order: dict[str, Any]) -> dict[str, Any]:
    match order["do"]:
        case "meet":
            more = {"within_s": order["within_s"]} if "within_s" in order else {}
            return await meet(host, order["peer"], order["addresses"], **more)
        case "talk":
            return await talk(host, order["peer"])
        case "part":
            host.disconnect(order["peer"])
            return {}
        case _:
            facts = {"peer": host.peer_id, "addresses": host.addresses()}
            facts["connected"] = host.connected()
            return {**facts, "nat": asdict(host.nat)}


async def serve(host: Host) -> None:
    host.handle(ECHO, echo)
    print(json.dumps({"peer": host.peer_id, "addresses": host.addresses()}), flush=True)
    async for line in trio.wrap_file(sys.stdin):
        print(json.dumps(await obey(host, json.loads(line))), flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", nargs="*", default=["/ip4/0.0.0.0/tcp/4001"])
    parser.add_argument("--relay", default="auto", choices=("auto", "yes", "no"))
    parser.add_argument("--join", nargs="*", default=[])
    parser.add_argument("--directory", action="store_true", help="keep records, too")
    parser.add_argument("--log", default="info")
    asked = parser.parse_args()
    level = {"debug": 10, "info": 20, "warning": 30}[asked.log]
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    key = IdentityKey.generate()
    nat = NatConfig(relay=asked.relay)
    if asked.directory:
        async with open_member(
            key, listen=tuple(asked.listen), join=asked.join, boot=1, serve=True, nat=nat
        ) as member:
            await serve(member.host)
        return
    async with open_host(HostConfig(seed=key.seed(), listen=tuple(asked.listen))) as host:
        start_nat(host, key, nat)
        for peer in dict.fromkeys(address.rpartition("/")[2] for address in asked.join):
            await host.connect([one for one in asked.join if one.endswith(peer)])
        await serve(host)


if __name__ == "__main__":
    trio.run(main)
