"""A client that has gone: what it left behind is not computed, however much that is."""

from __future__ import annotations

import trio
import trio.testing
from sim.adding_engine import WIDTH, AddingEngine, InstantDevice
from sim.memory_host import MemoryNet

from potluck.crypto.keys import IdentityKey
from potluck.node.frames import FrameStream
from potluck.node.server import Server
from potluck.swarm.admission import Admission, AdmissionConfig
from potluck.swarm.blocks import BlockRange
from potluck.swarm.wire import PROTOCOL, Open, Opened, Step

MODEL = "ab" * 32
TOKENS = 8


async def test_who_sends_all_its_session_may_hold_and_leaves_is_noticed_while_it_waits(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Two steps ahead are as many bytes as the session has: the third is not read any more."""
    net = MemoryNet(nursery)
    node, client = net.host("node"), net.host("client")
    device = InstantDevice(AddingEngine(BlockRange(0, 6), "adding"), step_s=10.0)
    admission = Admission(AdmissionConfig(1000))
    server = Server(device.engine, device, admission, MODEL, IdentityKey.generate())
    node.handle(PROTOCOL, server.serve)
    frames = FrameStream(await client.open_stream("node", PROTOCOL))
    await frames.send(Open(bytes(16), MODEL, 0, 6, TOKENS, "f32"))
    assert isinstance((await frames.receive() or [None])[0], Opened)
    device.waiting = 1  # somebody else's step
    for _ in range(4):
        await frames.send(Step(0, (TOKENS // 2,), 1), bytes(TOKENS // 2 * WIDTH * 4))
    await trio.sleep(5)
    assert server.sessions == 1
    await frames.reset()
    await trio.testing.wait_all_tasks_blocked()
    assert server.sessions == admission.sessions == 0
    assert device.ran == [] and device.waiting == 1
