"""Services of py-libp2p survive what peers send them; in py-libp2p each of these ends the host."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import Service
from trio.testing import wait_all_tasks_blocked

from potluck.errors import TransportError
from potluck.node.net.host import Host, HostConfig, open_host

TOPIC = "news"
KAD = "/ipfs/kad/1.0.0"


@dataclass(frozen=True, slots=True)
class Gossiper:
    host: Host
    pubsub: Any
    news: Any  # what is heard of the topic


@asynccontextmanager
async def gossiper(letter: str) -> AsyncIterator[Gossiper]:
    async with open_host(HostConfig(seed=letter.encode() * 32)) as host:
        router = GossipSub([PROTOCOL_ID_V12], 6, 4, 12, heartbeat_interval=1)
        pubsub = Pubsub(host.libp2p.host, router)
        await host.libp2p.start(pubsub)
        await host.libp2p.start(router)
        await pubsub.wait_until_ready()
        yield Gossiper(host, pubsub, await pubsub.subscribe(TOPIC))


def framed(rpc: bytes) -> bytes:
    size = len(rpc)
    prefix = bytearray()
    while size >= 128:
        prefix.append(size & 127 | 128)
        size >>= 7
    return bytes([*prefix, size]) + rpc


def with_a_key_that_is_none() -> bytes:
    """From a peer id that holds no key, so that the message's own key is parsed."""
    message = rpc_pb2.Message(
        data=b"x",
        topicIDs=[TOPIC],
        from_id=b"\x12\x20" + b"\x07" * 32,
        seqno=b"\x01",
        signature=b"\x01",
        key=b"\xff\xff\xff",
    )
    return framed(rpc_pb2.RPC(publish=[message]).SerializeToString())


def with_control_of_nonsense() -> bytes:
    control = rpc_pb2.ControlMessage(
        iwant=[rpc_pb2.ControlIWant(messageIDs=[b"\xff\xfe"])],
        ihave=[rpc_pb2.ControlIHave(topicID=TOPIC, messageIDs=[b"("])],
        prune=[rpc_pb2.ControlPrune(topicID="?", peers=[rpc_pb2.PeerInfo(peerID=b"\x00")])],
    )
    return framed(rpc_pb2.RPC(control=control).SerializeToString())


def noise(number: int) -> bytes:
    return framed(random.Random(number).randbytes(number))


MALFORMED = {
    "no protobuf": framed(b"\xff" * 9),
    "a key that is none": with_a_key_that_is_none(),
    "control of nonsense": with_control_of_nonsense(),
    "a signed record that is none": framed(rpc_pb2.RPC(senderRecord=b"\x01").SerializeToString()),
    "a length that never ends": b"\xff" * 20,
    "cut short": framed(b"x" * 200)[:50],
    "empty": framed(b""),
}


async def hears(listener: Gossiper, speaker: Gossiper, text: bytes) -> None:
    with trio.fail_after(5):
        await speaker.pubsub.publish(TOPIC, text)
        while (await listener.news.get()).data != text:
            pass


async def send_and_finish(
    host: Host, peer: str, data: bytes, protocol: str = PROTOCOL_ID_V12
) -> None:
    """On a stream of its own, until the other side has dealt with it."""
    stream = await host.open_stream(peer, protocol)
    with suppress(TransportError):  # reset, as it should
        await stream.send(data)
        await stream.finish()  # type: ignore[attr-defined]  # MuxStream has it, the port does not
        while await stream.receive():
            pass
    await wait_all_tasks_blocked(0.01)  # tasks that the message began


@pytest.mark.parametrize("what", MALFORMED)
async def test_gossip_goes_on_after_a_malformed_message(what: str) -> None:
    async with (
        gossiper("a") as alice,
        gossiper("b") as bob,
        open_host(HostConfig(seed=b"m" * 32)) as mallory,
    ):
        await alice.host.connect(bob.host.addresses())
        await bob.pubsub.wait_for_subscription(ID.from_string(alice.host.peer_id), TOPIC)
        await alice.pubsub.wait_for_subscription(ID.from_string(bob.host.peer_id), TOPIC)
        await mallory.connect(bob.host.addresses())
        with trio.fail_after(5):
            await send_and_finish(mallory, bob.host.peer_id, MALFORMED[what])
        await hears(bob, alice, b"to bob")
        await hears(alice, bob, b"from bob")


async def test_gossip_goes_on_after_noise() -> None:
    """60 streams of random bytes, fewer than end in a ban; most make the parser raise."""
    async with gossiper("a") as alice, gossiper("b") as bob:
        await alice.host.connect(bob.host.addresses())
        await bob.pubsub.wait_for_subscription(ID.from_string(alice.host.peer_id), TOPIC)
        async with open_host(HostConfig(seed=b"m" * 32)) as mallory:
            await mallory.connect(bob.host.addresses())
            for number in range(1, 61):
                with trio.fail_after(5):
                    await send_and_finish(mallory, bob.host.peer_id, noise(number))
        await hears(bob, alice, b"to bob")


async def test_a_dht_answers_after_nonsense() -> None:
    async with open_host(HostConfig(seed=b"b" * 32)) as bob:
        dht = KadDHT(bob.libp2p.host, DHTMode.SERVER)
        await bob.libp2p.start(dht)
        async with open_host(HostConfig(seed=b"m" * 32)) as mallory:
            await mallory.connect(bob.addresses())
            for number in range(1, 60):
                with trio.fail_after(5):
                    await send_and_finish(mallory, bob.peer_id, noise(number), KAD)
            stream = await mallory.open_stream(bob.peer_id, KAD)
            ask = Message(type=Message.FIND_NODE, key=b"\x12\x20" + b"\x07" * 32)
            await stream.send(framed(ask.SerializeToString()))
            with trio.fail_after(5):
                assert await stream.receive()
            assert mallory.connected() == (bob.peer_id,)


class Restless(Service):  # type: ignore[misc]
    """Has a loop that falls the first time, tasks that fall each time, and lives on."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds = 0
        self.went_on = trio.Event()

    async def run(self) -> None:
        self.manager.run_daemon_task(self.loop)
        self.manager.run_task(self.fall)
        self.manager.run_task(self.miss)
        await self.manager.wait_finished()

    async def fall(self) -> None:
        raise ValueError("what a peer sent")

    async def miss(self) -> None:
        raise TransportError("a peer that cannot be dialed")

    async def loop(self) -> None:
        self.rounds += 1
        if self.rounds == 1:
            raise KeyError("what a peer said before")
        self.went_on.set()
        await trio.sleep_forever()


async def test_a_loop_of_a_service_that_falls_starts_anew(autojump_clock: object) -> None:
    service = Restless()
    async with open_host(HostConfig(seed=b"a" * 32)) as host:
        await host.libp2p.start(service)
        with trio.fail_after(5):
            await service.went_on.wait()
        assert service.manager.is_running
    assert service.rounds == 2
