"""A node that leaves says so to its segment by gossip: real daemons, and one that listens."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from potluck.crypto.codec import decode
from potluck.crypto.keys import IdentityKey
from potluck.dht.reading import Checker
from potluck.dht.record import Announcement, read
from potluck.node.gossip.capability import Told
from potluck.node.library import DEMO_FOLDER
from potluck.node.net.gossip import Gossiper
from potluck.node.net.host import HostConfig, open_host
from potluck.swarm.recent import Verdict
from potluck.swarm.topics import CAPABILITY, MESSAGE_BYTES_MAX, Message, topic_of

from .ground import open_node
from .waiting import comes_true


@pytest.mark.slow
async def test_who_leaves_is_heard_to_leave_by_its_segment(tmp_path: Path) -> None:
    with ExitStack() as stack:
        one = stack.enter_context(open_node(tmp_path / "one", DEMO_FOLDER, "--blocks", ":"))
        two = stack.enter_context(
            open_node(tmp_path / "two", DEMO_FOLDER, "--blocks", ":", join=one.addresses)
        )
        checker, heard = Checker(), list[tuple[str, str]]()

        def judge(message: Message) -> Verdict:
            said = decode(message.data, Told, max_bytes=MESSAGE_BYTES_MAX)
            told = read(checker.check(said.record, None, time.time()), Announcement)
            heard.append((told.peer, told.state))
            return "pass"

        async with (
            open_host(HostConfig(seed=IdentityKey.generate().seed())) as host,
            trio.open_nursery() as nursery,
        ):
            gossip = Gossiper(host, judge, random.Random(1))
            topic = topic_of(str(one.facts["model"]), 0, CAPABILITY)
            gossip.subscribe([topic])
            nursery.start_soon(gossip.run)
            await host.connect(one.addresses)  # and not to the one that leaves
            await comes_true(lambda: one.peer in gossip.subscribed(topic))
            assert await trio.to_thread.run_sync(two.end) == 0
            await comes_true(lambda: (two.peer, "gone") in heard)
            nursery.cancel_scope.cancel()
