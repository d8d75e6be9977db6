"""A peer that says two things at once is banned by daemons that only read it, and stays banned.

Three real nodes of the demo model, and a light one that they joined by. A fifth peer, here, signs
two announcements for one time and puts the one at the first node, the other at the second: none of
them is told both.

python -m integration.test_equivocation      the figures of one run, as JSON
"""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from potluck.crypto.keys import IdentityKey
from potluck.dht.kad import KadDirectory, open_directory
from potluck.dht.message import Contact, Kept, Put
from potluck.dht.record import sign_fact
from potluck.errors import TransportError
from potluck.node.library import DEMO_FOLDER
from potluck.node.net.host import Host, HostConfig, open_host

from .forgery import announcement
from .ground import Node, open_node
from .test_bootstrap import open_bootstrap
from .waiting import comes_true

MET_S = 60.0
BANNED_S = 60.0  # records are read each 15 s, and compared each 5
HERE = "/ip4/127.0.0.1/tcp/0"


def open_three(folder: Path, stack: ExitStack) -> list[Node]:
    _, light = stack.enter_context(open_bootstrap(folder / "light"))
    nodes: list[Node] = []
    for name in ("one", "two", "three"):
        join = nodes[0].addresses if nodes else light["addresses"]
        node = open_node(folder / name, DEMO_FOLDER, "--name", "demo", join=join)
        nodes.append(stack.enter_context(node))
    return nodes


async def say_two_things(
    key: IdentityKey, host: Host, directory: KadDirectory, nodes: list[Node]
) -> None:
    """One to each of the first two, as to keepers of one's record."""
    fact = announcement(str(nodes[0].facts["model"]), key.peer_id)
    fact = replace(fact, addresses=host.addresses()[:1])
    for node, rate in zip(nodes[:2], (10.0, 99.0), strict=True):
        told = replace(fact, decode_tokens_s=rate)
        record = sign_fact(key, told, boot=int(time.time()), seq=7, now=time.time())
        contact = Contact(node.peer, tuple(node.addresses))
        answer = await directory._neighbours.ask(contact, Put(0, (record.raw,)))
        assert isinstance(answer, Kept) and answer.kept == (True,)


async def refused(host: Host, node: Node) -> bool:
    """Whether a node sends us away: our end of the handshake is over before it is."""
    try:
        await host.connect(node.addresses)
        await comes_true(lambda: node.peer not in host.connected(), 10)
    except (TransportError, TimeoutError) as error:
        return isinstance(error, TransportError)
    return True


async def measure(folder: Path) -> dict[str, Any]:
    key = IdentityKey.generate()
    with ExitStack() as stack:
        nodes = await trio.to_thread.run_sync(open_three, folder, stack)
        met_s = await comes_true(
            lambda: all(n.counts()["gossips"] == 3 for n in nodes), MET_S, blocks=True
        )
        async with (
            open_host(HostConfig(seed=key.seed(), listen=(HERE,))) as host,
            open_directory(host, key, boot=int(time.time()), bootstrap=nodes[0].addresses) as kad,
        ):
            await say_two_things(key, host, kad, nodes)
            banned = f"banned={key.peer_id}"
            banned_s = await comes_true(lambda: all(banned in node.log for node in nodes), BANNED_S)
            await comes_true((folder / "light" / "bans" / key.peer_id).is_file, 10)
            sent_away_s = await comes_true(lambda: not host.connected(), 10)
            before = [node.counts()["bans"] for node in nodes]
            await trio.to_thread.run_sync(nodes[2].end)
            again = open_node(folder / "three", DEMO_FOLDER, join=nodes[0].addresses)
            third = await trio.to_thread.run_sync(stack.enter_context, again)
            return {
                "met_s": round(met_s, 2),
                "banned_by_all_s": round(banned_s, 2),
                "sent_away_s": round(sent_away_s, 2),
                "bans": before,
                "bans_after_restart": third.counts()["bans"],
                "refused_after_restart": await refused(host, third),
                "proof_on_disk": (folder / "three" / "bans" / key.peer_id).is_file(),
                "others_live": all(node.lives for node in nodes[:2]),
            }


@pytest.mark.slow
async def test_who_says_two_things_is_banned_by_all_and_after_a_restart_too(
    tmp_path: Path,
) -> None:
    found = await measure(tmp_path)
    assert found["bans"] == [1, 1, 1]
    assert found["bans_after_restart"] == 1 and found["proof_on_disk"]
    assert found["refused_after_restart"] and found["others_live"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(trio.run(measure, Path(folder))))


if __name__ == "__main__":
    main()
