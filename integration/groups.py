"""Issue F, bar 4 in group mode: what a round costs, and what the survivors of a death have.

    python -m integration.groups [--peers 8] [--count 1000000] [--bits 8] [--rounds 6] [--kill 2]
                                 [--mbit 50]                                    one JSON line

So many processes, each with a host of its own on loopback, whose sending is held to a rate, take
part in one run. In the middle of two of the rounds one of them is killed (-9). After every round
the survivors' state digests are compared. A round's time is from when all were told to begin until
the last of them is done; the formula's is what shares.py says of the bytes alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
import trio

from potluck.crypto.digest import digest
from potluck.crypto.keys import IdentityKey
from potluck.node.compute.average.codec import Bits, size_of
from potluck.node.net.host import Host, HostConfig, open_host
from potluck.node.net.identify import Claims
from potluck.node.net.stream import Stream
from potluck.node.runs.group import GroupExchange, Settings
from potluck.swarm.run.shares import seconds_a_byte

RUN = digest("bench run", b"groups")
CHUNK_BYTES = 16 * 1024
HERE = "/ip4/127.0.0.1/tcp/0"


class Paced:
    """A host that sends no more than `rate` bytes a second over all of its streams."""

    def __init__(self, host: Host, rate: int) -> None:
        self.host = host
        self.peer_id = host.peer_id
        self._rate = rate
        self._free_s = 0.0

    def handle(self, protocol: str, handler: Callable[[Stream], Awaitable[None]]) -> None:
        self.host.handle(protocol, handler)

    def unhandle(self, protocol: str) -> None:
        self.host.unhandle(protocol)

    async def dial_known(self, peer: str) -> None:
        await self.host.dial_known(peer)

    async def identified(self, peer: str) -> None:
        await self.host.identified(peer)

    def claims(self, peer: str) -> Claims | None:
        return self.host.claims(peer)

    async def open_stream(self, peer: str, protocol: str) -> Stream:
        return PacedStream(await self.host.open_stream(peer, protocol), self)

    async def turn(self, size: int) -> None:
        """Until these bytes would have left."""
        self._free_s = max(self._free_s, trio.current_time()) + size / self._rate
        await trio.sleep_until(self._free_s)


class PacedStream:
    def __init__(self, stream: Stream, host: Paced) -> None:
        self._stream = stream
        self._host = host
        self.peer = stream.peer
        self.receive = stream.receive
        self.broken = stream.broken
        self.close = stream.close
        self.reset = stream.reset

    async def send(self, *parts: bytes | bytearray | memoryview) -> None:
        data = memoryview(b"".join(parts))
        for at in range(0, len(data), CHUNK_BYTES):
            chunk = data[at : at + CHUNK_BYTES]
            await self._host.turn(len(chunk))
            await self._stream.send(chunk)


@dataclass(frozen=True)
class Wanted:
    """rate: bytes a second."""

    count: int = 1_000_000
    bits: Bits = 8
    rate: int = 50_000_000 // 8


@asynccontextmanager
async def open_member(
    number: int, wanted: Wanted, peers: Callable[[], Sequence[str]]
) -> AsyncIterator[tuple[Host, GroupExchange]]:
    """With a host, and the driver running."""
    key = IdentityKey.from_bytes(bytes([number + 1]) * 32)
    async with (
        open_host(HostConfig(seed=key.seed(), listen=(HERE,))) as host,
        trio.open_nursery() as nursery,
    ):
        group = GroupExchange(
            Paced(host, wanted.rate), key, RUN, torch.zeros(wanted.count),
            boot=1, peers=peers, rate=lambda: wanted.rate, settings=Settings(bits=wanted.bits),
        )  # fmt: skip
        await nursery.start(group.run)
        yield host, group
        nursery.cancel_scope.cancel()


async def member(number: int, wanted: Wanted, orders: int, told: int) -> None:
    """A process: says where it is, hears where the others are, then a line for each round."""
    parent = os.getppid()
    peers: list[str] = []
    async with (
        open_member(number, wanted, lambda: peers) as (host, group),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_until_orphaned, parent, nursery.cancel_scope)
        _say(told, {"peer": host.peer_id, "addresses": host.addresses()})
        await _obey(number, wanted, host, group, peers, orders, told)
        nursery.cancel_scope.cancel()


async def _obey(
    number: int,
    wanted: Wanted,
    host: Host,
    group: GroupExchange,
    peers: list[str],
    orders: int,
    told: int,
) -> None:
    dice = torch.Generator().manual_seed(number)
    weights = torch.zeros(wanted.count)
    async for order in _lines(orders):
        for peer, addresses in order.get("peers", {}).items():
            if peer != host.peer_id:
                host.learn(peer, addresses)
                peers.append(peer)
        if "round" not in order:
            continue
        weights = weights + 0.01 * torch.randn(wanted.count, generator=dice)
        found = await group.exchange(order["round"], weights, 100)
        weights = found.weights
        answer = {
            "state": group.place.state.hex(),
            "commits": group.place.commits,
            "members": len(found.peers) + 1,
            "sent_bytes": found.sent_bytes,
            "received_bytes": found.received_bytes,
        }
        _say(told, answer)


async def _until_orphaned(parent: int, scope: trio.CancelScope) -> None:
    """Whoever killed the parent wants none of us."""
    while os.getppid() == parent:  # noqa: ASYNC110  # nothing tells
        await trio.sleep(1)
    scope.cancel()


async def _lines(orders: int) -> AsyncIterator[dict[str, Any]]:
    waiting = bytearray()
    async for piece in trio.lowlevel.FdStream(orders):
        waiting += piece
        while (end := waiting.find(b"\n")) >= 0:
            yield json.loads(waiting[:end])
            del waiting[: end + 1]


def _say(told: int, what: dict[str, Any]) -> None:
    os.write(told, json.dumps(what).encode() + b"\n")


class Process:
    """One member, as its parent sees it: forked, so that what it needs is loaded once."""

    def __init__(self, number: int, wanted: Wanted) -> None:
        orders, self._orders = os.pipe()
        heard, told = os.pipe()
        self._heard = open(heard, "rb")  # noqa: SIM115  # until it is killed
        self._process = multiprocessing.get_context("fork").Process(
            target=_live, args=(number, wanted, orders, told), daemon=True
        )
        self._process.start()
        os.close(orders)
        os.close(told)

    def order(self, told: dict[str, Any]) -> None:
        os.write(self._orders, json.dumps(told).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        line = self._heard.readline()
        assert line, "a member ended by itself"
        found: dict[str, Any] = json.loads(line)
        return found

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._heard.close()
        os.close(self._orders)


def _live(number: int, wanted: Wanted, orders: int, told: int) -> None:
    torch.set_num_threads(1)
    trio.run(member, number, wanted, orders, told)


def measure(peers: int, wanted: Wanted, rounds: int, kills: int) -> dict[str, Any]:
    members: list[Process] = []
    try:
        for number in range(peers):
            members.append(Process(number, wanted))
        told = {one["peer"]: one["addresses"] for one in [one.hear() for one in members]}
        for one in members:
            one.order({"peers": told})
        return _rounds(members, wanted, rounds, kills)
    finally:
        for one in members:
            one.kill()


def _rounds(members: list[Process], wanted: Wanted, rounds: int, kills: int) -> dict[str, Any]:
    dice = Random(1)
    calm, harmed = [], []
    first: list[dict[str, Any]] = []
    equal = 0
    doomed_in = set(range(rounds // 2, rounds // 2 + kills))
    for number in range(rounds):
        began_s = time.monotonic()
        for one in members:
            one.order({"round": number})
        if number in doomed_in:
            time.sleep(dice.uniform(0.0, 0.5))  # somewhere in the round
            doomed = members.pop(dice.randrange(len(members)))
            doomed.kill()
        found = [one.hear() for one in members]
        spent_s = time.monotonic() - began_s
        (harmed if number in doomed_in else calm).append(spent_s)
        equal += len({one["state"] for one in found}) == 1
        if number == 1:
            first = found
    return _summary(len(first), wanted, first, calm[1:], harmed) | {
        "rounds": rounds,
        "rounds_with_equal_states": equal,
        "commits": found[0]["commits"],
        "killed": kills,
    }


def _summary(
    peers: int, wanted: Wanted, first: list[dict[str, Any]], calm: list[float], harmed: list[float]
) -> dict[str, Any]:
    size = size_of(wanted.count, wanted.bits)
    data_s = float(seconds_a_byte([wanted.rate] * peers) * size)
    return {
        "peers": peers,
        "numbers": wanted.count,
        "bits": wanted.bits,
        "mbit_s": wanted.rate * 8 / 1e6,
        "sent_bytes_per_number": round(
            statistics.mean(one["sent_bytes"] for one in first) / wanted.count, 4
        ),
        "formula_bytes_per_number": round(2 * (peers - 1) / peers * size / wanted.count, 4),
        "formula_s": round(data_s, 3),
        "round_s": [round(one, 3) for one in calm],
        "round_with_a_death_s": [round(one, 3) for one in harmed],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--bits", type=int, choices=(4, 8, 32), default=8)
    parser.add_argument("--mbit", type=float, default=50.0)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--kill", type=int, default=2)
    asked = parser.parse_args()
    wanted = Wanted(asked.count, asked.bits, int(asked.mbit * 1e6 / 8))
    print(json.dumps(measure(asked.peers, wanted, asked.rounds, asked.kill)))


if __name__ == "__main__":
    main()
