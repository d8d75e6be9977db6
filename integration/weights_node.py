"""A process that brings one weight file here, from peers and the hub, and gives it to others.

python integration/weights_node.py HOME FACT [--join ADDRESS] [--poison]

FACT is the file's name, size and sha256, as JSON. It says where it listens, then what came, each as
a line of JSON. A line `upload N` on stdin bounds what it gives, in bytes a second; stdin's end ends
it. --poison: once it has all, other bytes leave it than were asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import trio

from potluck.node.bench.hub import COMMIT, MODEL
from potluck.node.compute.digests import FileFact
from potluck.node.home import prepare_home
from potluck.node.identity import load_or_create
from potluck.node.member import open_member
from potluck.node.net.nat import NatConfig
from potluck.node.weights.library import Library, hold_weights
from potluck.node.weights.poison import Poisoners
from potluck.node.weights.service import open_weights


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def poison(library: Library) -> None:
    """From now on what is given is wrong in its first byte."""
    right = library.get

    def wrong(name: bytes) -> bytes | None:
        raw = right(name)
        return raw and bytes((raw[0] ^ 1,)) + raw[1:]

    library.get = wrong  # type: ignore[method-assign]


async def main(home: Path, fact: FileFact, join: list[str], *, lies: bool) -> None:
    prepare_home(home)
    key = load_or_create(home)
    poisoners = Poisoners(home)
    with hold_weights(home):
        async with (
            open_member(
                key, listen=("/ip4/127.0.0.1/tcp/0",), join=join, boot=int(time.time()),
                serve=True, nat=NatConfig(lan=False),
            ) as member,
            open_weights(member.host, member.directory, key, home, poisoners) as weights,
        ):  # fmt: skip
            if lies:  # as early as it has anything
                poison(weights.library)
            member.host.shun(poisoners.banned)
            poisoners.caught.append(lambda peer: member.host.shun(poisoners.banned))
            say(peer=key.peer_id, addresses=member.host.addresses())
            began_s = time.monotonic()
            await trio.to_thread.run_sync(weights.ready, MODEL, COMMIT, fact, [(0, fact.size)])
            counts = weights.puller.counts
            came = counts.peers - counts.false
            say(seconds=time.monotonic() - began_s, peers=came, root=counts.root)
            while line := await trio.to_thread.run_sync(sys.stdin.readline):
                weights.uplink.bytes_s = float(line.split()[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("fact", type=json.loads)
    parser.add_argument("--join", action="append", default=[])
    parser.add_argument("--poison", action="store_true")
    asked = parser.parse_args()
    trio.run(lambda: main(asked.home, FileFact(*asked.fact), asked.join, lies=asked.poison))
