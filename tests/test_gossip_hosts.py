"""Gossip between hosts: no bytes end it, nuisances are sent off, py-libp2p's own is a neighbour.

What ends, fills or misuses a stock py-libp2p is tried here on ours, each with the same bytes.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from net_hosts import seeded, until
from stock import at, stock_host
from test_service import MALFORMED
from test_service import noise as noise_of

from potluck.errors import TransportError
from potluck.node.net.gossip import Gossiper
from potluck.node.net.gossip_wire import RPC_BYTES_MAX, pack
from potluck.node.net.host import Host, open_host
from potluck.swarm.recent import SERVED_MAX, Verdict
from potluck.swarm.topics import EVIDENCE, PROTOCOL, Message, Rpc, id_of


@dataclass
class Peer:
    host: Host
    gossip: Gossiper
    heard: list[bytes] = field(default_factory=list)

    async def hears(self, text: bytes) -> None:
        await until(lambda: text in self.heard)


@asynccontextmanager
async def gossiper(letter: str, verdict: Verdict = "pass", **limits: Any) -> AsyncIterator[Peer]:
    """A host that wants the news; a lie is what begins so."""
    async with open_host(seeded(letter, **limits)) as host, trio.open_nursery() as nursery:

        def judge(message: Message) -> Verdict:
            peer.heard.append(message.data)
            return "wrong" if message.data.startswith(b"lie") else verdict

        peer = Peer(host, Gossiper(host, judge, random.Random(letter)))
        peer.gossip.subscribe([EVIDENCE])
        nursery.start_soon(peer.gossip.run)
        yield peer
        nursery.cancel_scope.cancel()


async def meet(*peers: Peer) -> None:
    """Each dials the first; until they know what the others want."""
    first, *others = peers
    for other in others:
        await other.host.connect(first.host.addresses())
    for other in others:
        await until(lambda other=other: other.host.peer_id in first.gossip.subscribed(EVIDENCE))
        await until(lambda other=other: first.host.peer_id in other.gossip.subscribed(EVIDENCE))


async def says(host: Host, peer: str, *rpcs: Rpc | bytes) -> None:
    """On a stream of its own, until the other side has dealt with it."""
    stream = await host.open_stream(peer, PROTOCOL)
    with suppress(TransportError), trio.move_on_after(5):
        await stream.send(*(pack(rpc) if isinstance(rpc, Rpc) else rpc for rpc in rpcs))
        await stream.finish()  # type: ignore[attr-defined]  # MuxStream has it, the port does not
        while await stream.receive():
            pass


async def test_what_one_says_all_hear_though_not_all_are_connected() -> None:
    async with gossiper("a") as alice, gossiper("b") as bob, gossiper("c") as carol:
        await meet(bob, alice, carol)
        alice.gossip.publish(EVIDENCE, b"news")
        await carol.hears(b"news")
        assert carol.heard == [b"news"] and alice.heard == []


async def test_who_comes_a_moment_later_hears_of_it() -> None:
    async with gossiper("a") as alice, gossiper("b") as bob:
        alice.gossip.publish(EVIDENCE, b"news")
        await meet(alice, bob)
        await bob.hears(b"news")


@pytest.mark.parametrize("what", MALFORMED)
async def test_gossip_goes_on_after_a_malformed_message(what: str) -> None:
    """H3 of the audit: each of these ends a stock host."""
    async with gossiper("a") as alice, gossiper("b") as bob:
        await meet(alice, bob)
        async with open_host(seeded("m")) as mallory:
            await mallory.connect(bob.host.addresses())
            await says(mallory, bob.host.peer_id, MALFORMED[what])
        alice.gossip.publish(EVIDENCE, b"to bob")
        await bob.hears(b"to bob")
        bob.gossip.publish(EVIDENCE, b"to alice")
        await alice.hears(b"to alice")


async def test_gossip_goes_on_after_noise() -> None:
    async with gossiper("a") as alice, gossiper("b", faults_max=1000) as bob:
        await meet(alice, bob)
        async with open_host(seeded("m")) as mallory:
            await mallory.connect(bob.host.addresses())
            for number in range(1, 100):
                await says(mallory, bob.host.peer_id, noise_of(number))
            assert bob.gossip.score(mallory.peer_id) < 0
        alice.gossip.publish(EVIDENCE, b"to bob")
        await bob.hears(b"to bob")


async def test_an_oversized_word_ends_its_stream_before_it_is_whole() -> None:
    async with gossiper("b") as bob, open_host(seeded("m")) as mallory:
        await mallory.connect(bob.host.addresses())
        await says(mallory, bob.host.peer_id, Rpc(messages=(Message(EVIDENCE, bytes(60_000)),)))
        await says(mallory, bob.host.peer_id, b"\xff\xff\x7f" + bytes(2 * RPC_BYTES_MAX))
        assert bob.heard == [] and bob.gossip.score(mallory.peer_id) < 0


async def test_many_tiny_words_wait_and_nobody_waits_for_them() -> None:
    """Each empty one is a byte long; 65,536 of them took a second, in which nothing else ran."""
    async with gossiper("a") as alice, gossiper("b") as bob:
        await meet(alice, bob)
        async with open_host(seeded("m")) as mallory:
            await mallory.connect(bob.host.addresses())
            stream = await mallory.open_stream(bob.host.peer_id, PROTOCOL)
            first, last = (
                pack(Rpc(messages=(Message(EVIDENCE, text),))) for text in (b"first", b"last")
            )
            await stream.send(first, bytes(65_536), last)
            await bob.hears(b"first")
            alice.gossip.publish(EVIDENCE, b"news")
            await bob.hears(b"news")
            assert b"last" not in bob.heard
            await stream.reset()


async def test_a_liar_is_sent_off_and_may_not_come_back_at_once() -> None:
    async with gossiper("a") as alice, gossiper("b") as bob:
        await meet(alice, bob)
        async with open_host(seeded("m")) as mallory:
            await mallory.connect(bob.host.addresses())
            lies = tuple(Message(EVIDENCE, b"lie %d" % number) for number in range(3))
            await says(mallory, bob.host.peer_id, Rpc(messages=lies))
            await until(lambda: mallory.peer_id not in bob.gossip.neighbours())
            await says(mallory, bob.host.peer_id, Rpc(messages=(Message(EVIDENCE, b"lie again"),)))
            assert b"lie again" not in bob.heard
        assert not any(text.startswith(b"lie") for text in alice.heard)
        alice.gossip.publish(EVIDENCE, b"news")
        await bob.hears(b"news")


async def test_a_request_for_one_message_many_times_is_answered_few_times() -> None:
    """Of a stock router 0.94 MB of this call forth 40 MB."""
    async with gossiper("a") as alice, gossiper("b") as bob:
        await meet(alice, bob)
        bob.gossip.publish(EVIDENCE, bytes(4000))
        await alice.hears(bytes(4000))
        async with open_host(seeded("m")) as mallory:
            answers: list[bytes] = []

            async def listen(stream: Any) -> None:
                while piece := await stream.receive():
                    answers.append(bytes(piece))

            mallory.handle(PROTOCOL, listen)
            await mallory.connect(bob.host.addresses())
            greedy = Rpc(iwant=(id_of(bytes(4000)),) * 500)
            await says(mallory, bob.host.peer_id, *[greedy] * 20)
            bob.gossip.publish(EVIDENCE, b"end")
            await alice.hears(b"end")
            assert 4000 <= sum(map(len, answers)) < (SERVED_MAX + 1) * 4100


async def test_a_neighbour_that_does_not_read_costs_a_bounded_queue() -> None:
    async with gossiper("a") as alice, gossiper("b") as bob, open_host(seeded("m")) as mallory:
        await meet(alice, bob)

        async def deaf(stream: Any) -> None:
            await trio.sleep_forever()

        mallory.handle(PROTOCOL, deaf)
        await mallory.connect(bob.host.addresses())
        wants = Rpc(subscriptions=((EVIDENCE, True),))
        with trio.move_on_after(1):
            await says(mallory, bob.host.peer_id, wants)
        for number in range(300):
            bob.gossip.publish(EVIDENCE, number.to_bytes(2) + bytes(5000))
            await trio.lowlevel.checkpoint()
        await alice.hears((0).to_bytes(2) + bytes(5000))


async def test_when_a_connection_ends_so_does_the_neighbour_and_nothing_is_left() -> None:
    async with gossiper("b") as bob:
        for _ in range(5):
            async with gossiper("a") as alice:
                await meet(bob, alice)
            await until(lambda: not bob.gossip.neighbours())
        await until(lambda: bob.host.streams == 0)
        assert bob.gossip._lines == {}


@asynccontextmanager
async def stock_gossip(letter: str) -> AsyncIterator[tuple[Any, Any]]:
    """py-libp2p's own host and router; its messages unsigned, as ours are."""
    async with stock_host(letter) as host:
        router = GossipSub([PROTOCOL_ID_V12], 6, 4, 12, heartbeat_interval=1)
        pubsub = Pubsub(host, router, strict_signing=False,
                        msg_id_constructor=lambda message: id_of(message.data))  # fmt: skip
        async with background_trio_service(pubsub), background_trio_service(router):
            await pubsub.wait_until_ready()
            yield pubsub, host


async def test_a_stock_gossipsub_is_a_neighbour() -> None:
    """It hears what we say and we what it says, in one mesh; it names no sender."""
    async with gossiper("a") as alice, stock_gossip("s") as (pubsub, host):
        news = await pubsub.subscribe(EVIDENCE)
        await host.connect(at(alice.host.addresses()[0]))
        await pubsub.wait_for_subscription(ID.from_string(alice.host.peer_id), EVIDENCE)
        await until(lambda: alice.gossip.mesh(EVIDENCE) == (str(host.get_id()),))
        alice.gossip.publish(EVIDENCE, b"from us")
        with trio.fail_after(10):
            assert (await news.get()).data == b"from us"
        unsigned = rpc_pb2.Message(data=b"from it", topicIDs=[EVIDENCE])
        pubsub.router.send_rpc(ID.from_string(alice.host.peer_id), rpc_pb2.RPC(publish=[unsigned]))
        await alice.hears(b"from it")
