"""Punches that go wrong, over a relay: there alone is a word of them read.

One process, four hosts: a relay, a node that holds a place there, a hostile peer that comes through
it under a new identity each batch, and an honest one that gets an answer by the same way after each
batch. All places named are closed ports of this machine, so that nobody else is dialed.

    python -m integration.fuzz_punch --units 2000
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError, TransportError
from potluck.node.net import punch
from potluck.node.net.address import Address
from potluck.node.net.host import Host, HostConfig, open_host
from potluck.node.net.identify import PING, PING_BYTES
from potluck.node.net.mux_stream import MuxStream
from potluck.node.net.ports import Ports
from potluck.node.net.punch import Puncher
from potluck.node.net.relay import Relay
from potluck.node.net.reservations import Reservations
from potluck.node.net.stream import Stream

from .foe_nat import punch_words, spoiled

BATCH = 48  # as in enemy.py
AT_ONCE = 8
ROUND_S = 0.1  # of dialing closed ports; the rule is the same as with punch.py's own
ANSWER_S = 15.0
HONEST_S = 20.0


class TamePuncher(Puncher):
    """Dials nobody but this machine, whatever it is told."""

    def _worth(self, place: Address) -> bool:
        return super()._worth(place) and place.host == "127.0.0.1"


@asynccontextmanager
async def reached_by_relay() -> AsyncIterator[tuple[Host, str]]:
    """A node, and its address through a relay."""
    seed = bytes(range(32))
    async with (
        open_host(HostConfig(seed=seed)) as middle,
        open_host(HostConfig(seed=b"n" * 32)) as node,
    ):
        relay = Relay(middle, IdentityKey.from_bytes(seed))
        relay.open()
        TamePuncher(node, Ports(node, may_open=False, local=True), local=True)
        held = Reservations(node, wanted=1, source=lambda _: None, usable=lambda _: True)
        await node.connect(middle.addresses())
        await node.identified(middle.peer_id)
        await held.tend()
        yield node, f"{held.addresses()[0]}/p2p/{node.peer_id}"


async def attack(units: int, seed: int) -> dict[str, Any]:
    """Send so many spoiled punches. Raises whatever ends the node."""
    dice = random.Random(f"punch/{seed}")
    sent: Counter[str] = Counter()
    honest_s: list[float] = []
    began_s = time.monotonic()
    punch.ROUND_S = ROUND_S  # type: ignore[misc]
    async with reached_by_relay() as (node, way):
        while sent.total() < units:
            sent += await _batch(dice, node, way)
            honest_s.append(await _served(node, way))
        streams = node.streams
    return {
        "units": sent.total(),
        "by_kind": dict(sent),
        "seconds": round(time.monotonic() - began_s, 1),
        "honest_answers": len(honest_s),
        "honest_ms_max": round(1e3 * max(honest_s), 1),
        "streams_left": streams,
    }


async def _batch(dice: random.Random, node: Host, way: str) -> Counter[str]:
    sent: Counter[str] = Counter()
    async with open_host(HostConfig(seed=dice.randbytes(32), listen=())) as foe:

        async def answer(stream: Stream) -> None:
            """It takes the caller's part, and says what no caller says."""
            await stream.receive()
            sent["answers"] += 1
            await stream.send(spoiled(dice, punch_words(dice, foe.peer_id)))

        foe.handle(punch.PROTOCOL, answer)
        await foe.connect([way])
        turns = iter(range(BATCH))

        async def work() -> None:
            for _ in turns:
                sent["questions"] += 1
                with suppress(TransportError, RemoteError):  # banned, or its stream ended
                    await _ask(dice, foe, node.peer_id)

        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(work)
    return sent


async def _ask(dice: random.Random, foe: Host, peer: str) -> None:
    """As the called one: two messages, of which the second should be SYNC."""
    stream = await foe.open_stream(peer, punch.PROTOCOL)
    assert isinstance(stream, MuxStream)
    with trio.move_on_after(ANSWER_S):
        await stream.send(spoiled(dice, punch_words(dice, foe.peer_id)))
        await stream.send(spoiled(dice, punch_words(dice, foe.peer_id)))
        if dice.random() < 0.9:
            await stream.finish()
            while await stream.receive():
                pass
    await stream.reset()


async def _served(node: Host, way: str) -> float:
    """Seconds until somebody new had an answer from the node, by the relay."""
    began_s = time.monotonic()
    with trio.fail_after(HONEST_S):
        async with open_host(HostConfig(seed=random.randbytes(32), listen=())) as honest:
            await honest.connect([way])
            stream = await honest.open_stream(node.peer_id, PING)
            await stream.send(bytes(PING_BYTES))
            assert await stream.receive()
            await stream.close()
    return time.monotonic() - began_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    print(json.dumps(trio.run(attack, asked.units, asked.seed), indent=2))


if __name__ == "__main__":
    main()
