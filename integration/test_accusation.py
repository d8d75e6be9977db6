"""Work that was done wrong is accused, and the daemons that serve the same blocks find it so.

Three real nodes serve the demo model whole; one of them skips a block. A client, here, has signed
work of the liar and of an honest node, and accuses both: the two honest nodes compute it again, ban
the liar, and refute the other accusation, which costs the client a strike.

python -m integration.test_accusation      the figures of one run, as JSON
"""

from __future__ import annotations

import json
import random
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from potluck.crypto.keys import IdentityKey
from potluck.node.frames import FrameStream
from potluck.node.library import DEMO_FOLDER
from potluck.node.net.host import Host, HostConfig, open_host
from potluck.node.testnet.launcher import MARK
from potluck.node.testnet.lies import LIE
from potluck.node.trust.bans import Bans
from potluck.node.trust.book import Trust
from potluck.node.trust.evidence import Court
from potluck.node.trust.standing import Standings
from potluck.swarm.blocks import BlockRange
from potluck.swarm.ledger import Ledger, Work
from potluck.swarm.routing import Hop
from potluck.swarm.session_events import SendStep
from potluck.swarm.topics import topic_of
from potluck.swarm.wire import PROTOCOL, Open, Opened, Output, Receipts, Sign, Step

from .ground import ENVIRONMENT, Node, open_node
from .waiting import comes_true

MET_S = 60.0
JUDGED_S = 90.0  # fetched, computed, compared, on a machine that does other things as well
TOKENS = 32


def open_three(folder: Path, stack: ExitStack) -> list[Node]:
    """The last one lies."""
    nodes: list[Node] = []
    lying = {**ENVIRONMENT, LIE: "skip", MARK: str(folder)}
    for name, environment in (("one", ENVIRONMENT), ("two", ENVIRONMENT), ("liar", lying)):
        node = open_node(
            folder / name, DEMO_FOLDER, "--name", "demo", "--blocks", ":",
            join=nodes[0].addresses if nodes else [], environment=environment,
        )  # fmt: skip
        nodes.append(stack.enter_context(node))
    return nodes


async def work_of(host: Host, node: Node) -> Work:
    """A prompt of random rows, served and signed for by this node."""
    model, (start, stop) = str(node.facts["model"]), node.facts["blocks"]
    blocks, session = BlockRange(start, stop), secrets.token_bytes(16)
    await host.connect(node.addresses)
    frames = FrameStream(await host.open_stream(node.peer, PROTOCOL))
    frames.allow(1 << 24)
    await frames.send(Open(session, model, start, stop, 2 * TOKENS, "f32", receipts=True))
    opened, _ = await answer(frames, Opened)
    row_bytes = 4 * opened.width
    ledger = Ledger(session, model, blocks, opened.width, "f32", row_bytes, works=True)
    ledger.opened(1, Hop(node.peer, blocks), opened.opening, opened.numerics)
    rows = np.random.default_rng(1).normal(size=(TOKENS, opened.width)).astype("<f4").tobytes()
    ledger.sent(SendStep(1, 0, (TOKENS,), TOKENS, (rows,)))
    await frames.send(Step(0, (TOKENS,), TOKENS), rows)
    await frames.send(Sign())
    ledger.got(1, (await answer(frames, Output))[1])
    (work,) = ledger.signed(1, (await answer(frames, Receipts))[0].chunks)
    await frames.close()
    return work


async def answer(frames: FrameStream, kind: type) -> Any:
    with trio.fail_after(30):
        received = await frames.receive()
    assert received is not None and isinstance(received[0], kind), received
    return received


@asynccontextmanager
async def open_client(nodes: list[Node]) -> AsyncIterator[tuple[Host, Court]]:
    """Somebody in the gossip of the model's first segment."""
    key = IdentityKey.generate()
    async with open_host(HostConfig(seed=key.seed())) as host, trio.open_nursery() as nursery:
        trust = Trust()
        court = Court(host, key, trust, Bans(None), Standings(trust.trust), random.SystemRandom())
        nursery.start_soon(court.run, list)
        for node in nodes:
            await host.connect(node.addresses)
        topic = topic_of(str(nodes[0].facts["model"]), 0)
        await comes_true(lambda: len(court.gossip.subscribed(topic)) == len(nodes), MET_S)
        yield host, court
        nursery.cancel_scope.cancel()


async def measure(folder: Path) -> dict[str, Any]:
    with ExitStack() as stack:
        nodes = await trio.to_thread.run_sync(open_three, folder, stack)
        *honest, liar = nodes
        async with open_client(nodes) as (host, court):
            wrong, right = await work_of(host, liar), await work_of(host, honest[0])
            began_s = time.monotonic()
            await court.accuse(wrong, 0.3)
            banned = f"banned={liar.peer} grounds=recomputed"
            await comes_true(lambda: all(banned in node.log for node in honest), JUDGED_S)
            banned_s = time.monotonic() - began_s
            await court.accuse(right, 0.3)
            refuted = f"accused={honest[0].peer} verdict=right"
            await comes_true(lambda: refuted in honest[1].log, JUDGED_S)
            return {
                "numerics": wrong.numerics,
                "banned_by_both_s": round(banned_s, 2),
                "bans": [node.counts()["bans"] for node in honest],
                "the_accuser_is_heard_still": host.peer_id
                not in honest[1].log.partition("banned")[2],
            }


@pytest.mark.slow
async def test_wrong_work_is_found_wrong_and_right_work_right(tmp_path: Path) -> None:
    found = await measure(tmp_path)
    assert found["bans"] == [1, 1] and found["the_accuser_is_heard_still"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(trio.run(measure, Path(folder))))


if __name__ == "__main__":
    main()
