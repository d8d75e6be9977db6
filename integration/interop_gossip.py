"""Our own gossip with js-libp2p's, whose messages are not signed either."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import trio

from potluck.node.net.gossip import Gossiper
from potluck.node.net.host import HostConfig, open_host
from potluck.swarm.recent import Verdict
from potluck.swarm.topics import Message

from .interop_lab import Figures, Lab, Watch, p50
from .js_peer import JsPeer, open_js_peer

MESSAGES = 20  # one after the other
LARGE_BYTES = 8000  # more than is sent without asking first who has it
TOPIC = "/interop/unsigned"


async def case_our_gossip(lab: Lab) -> Figures:
    """Each hears what the other publishes, once, in the mesh of both; what one missed it asks for;
    what is wrong is not passed on, and costs js nothing but its place here."""
    heard: list[str] = []
    changed = trio.Event()

    def judge(message: Message) -> Verdict:
        nonlocal changed
        text = message.data.decode()
        heard.append(text)
        changed.set()
        changed = trio.Event()
        return "wrong" if text.startswith("lie") else "pass"

    async def until(holds: Callable[[], bool]) -> None:
        while not holds():
            with trio.move_on_after(0.1):
                await changed.wait()

    ours: list[float] = []
    theirs: list[float] = []
    async with (
        open_js_peer(lab.folder, "unsigned") as js,
        open_host(HostConfig(seed=random.randbytes(32))) as host,
        trio.open_nursery() as nursery,
    ):
        gossip = Gossiper(host, judge, random.Random(1), admits=lambda topic: True)
        gossip.subscribe([TOPIC])
        nursery.start_soon(gossip.run)
        await js.do("subscribe", topic=TOPIC)
        await host.connect(js.addresses)
        await until(lambda: gossip.mesh(TOPIC) == (js.peer,))
        await js.do("mesh", topic=TOPIC, peer=host.peer_id)
        for number in range(MESSAGES):
            with Watch(theirs):
                sent_to = await js.do("publish", topic=TOPIC, text=f"js {number}")
                await until(lambda number=number: f"js {number}" in heard)
            assert sent_to == [host.peer_id]
        for number in range(MESSAGES):
            with Watch(ours):
                gossip.publish(TOPIC, f"us {number}".encode())
                told = await js.do("heard", topic=TOPIC, count=number + 1)
        assert told == [f"us {number}" for number in range(MESSAGES)], told
        await js.do("publish", topic=TOPIC, text="x" * LARGE_BYTES)
        await until(lambda: "x" * LARGE_BYTES in heard)
        assert len(heard) == len(set(heard)) == MESSAGES + 1
        score = gossip.score(js.peer)
        protocol = await js.do("gossipProtocol", peer=host.peer_id)
        await _lies(js, gossip, until)
        nursery.cancel_scope.cancel()
    return {
        "protocol": protocol,
        "messages_each_way": MESSAGES,
        "us_to_js_p50_ms": p50(ours),
        "js_to_us_p50_ms": p50(theirs),
        "score_of_js": round(score, 2),
    }


Until = Callable[[Callable[[], bool]], Awaitable[None]]


async def _lies(js: JsPeer, gossip: Gossiper, until: Until) -> None:
    for number in range(3):
        await js.do("publish", topic=TOPIC, text=f"lie {number}")
    await until(lambda: js.peer not in gossip.neighbours())
