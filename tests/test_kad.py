"""The directory on real hosts: libp2p on loopback, in one process, on the real clock."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import trio

from potluck.crypto.keys import IdentityKey
from potluck.dht.kad import KadDirectory, open_directory
from potluck.dht.message import PROTOCOL, Find, Put, to_frame
from potluck.dht.record import Announcement, sign_fact
from potluck.errors import TransportError
from potluck.node.net.host import Host, HostConfig, open_host

MODEL = "ab" * 32


@dataclass
class Peer:
    key: IdentityKey
    host: Host
    directory: KadDirectory

    def announcement(self) -> Announcement:
        return Announcement(
            model=MODEL, name="org/name", start=0, stop=8, blocks=16, state="online",
            device="cpu", dtype="float32", quantization="none", decode_tokens_s=900.0,
            prefill_tokens_s=9000.0, addresses=self.host.addresses(), cache_tokens_free=8192,
            context_tokens_max=2048, numerics="none", version="0.1.0",
        )  # fmt: skip


@asynccontextmanager
async def open_peer(*, boot: int = 1, join: "Peer | None" = None) -> AsyncIterator[Peer]:
    key = IdentityKey.generate()
    async with open_host(HostConfig(seed=key.seed())) as host:
        bootstrap = join.host.addresses() if join else ()
        async with open_directory(host, key, boot=boot, bootstrap=bootstrap) as directory:
            yield Peer(key, host, directory)


async def open_peers(stack: AsyncExitStack, count: int) -> list[Peer]:
    peers = [await stack.enter_async_context(open_peer())]
    while len(peers) < count:
        peers.append(await stack.enter_async_context(open_peer(join=peers[0])))
    return peers


async def test_six_peers_find_one_another_and_the_last_to_join_is_seen_within_a_second() -> None:
    async with AsyncExitStack() as stack:
        peers = await open_peers(stack, 5)
        for peer in peers:
            assert await peer.directory.announce(peer.announcement()) == 4
        begun_s = trio.current_time()
        peers.append(await stack.enter_async_context(open_peer(join=peers[2])))
        newcomer = peers[-1]
        assert await newcomer.directory.announce(newcomer.announcement()) == 5
        for peer in peers:
            found = await peer.directory.find(MODEL)
            assert {told.peer for told in found} == {peer.key.peer_id for peer in peers}
        assert trio.current_time() - begun_s < 1.0
        (offer,) = await newcomer.directory.models()
        assert offer.blocks == 16 and len(offer.peers) == 6


async def test_a_peer_that_is_gone_is_done_without() -> None:
    async with AsyncExitStack() as stack:
        peers = await open_peers(stack, 3)
        async with open_peer(join=peers[0]) as fourth:
            assert await fourth.directory.announce(fourth.announcement()) == 3
            assert await peers[1].directory.announce(peers[1].announcement()) == 3
        with trio.fail_after(2.0):
            assert await peers[1].directory.announce(peers[1].announcement()) == 2
            found = {told.peer for told in await peers[2].directory.find(MODEL)}
        assert found == {fourth.key.peer_id, peers[1].key.peer_id}  # it did not say that it leaves


async def test_a_stranger_that_talks_nonsense_or_is_silent_keeps_nobody_out() -> None:
    async with AsyncExitStack() as stack:
        peers = await open_peers(stack, 3)
        forger = IdentityKey.generate()
        forged = sign_fact(forger, peers[1].announcement(), boot=1, seq=1, now=0.0).raw
        stranger = await stack.enter_async_context(
            open_host(HostConfig(seed=IdentityKey.generate().seed()))
        )
        victim = peers[0]
        await stranger.connect(victim.host.addresses())
        for nonsense in (
            b"\xff" * 100,
            to_frame(Put(1, (forged,))),
            to_frame(Find(1, bytes(32), True, b""))[:-1] + b"\xc1",
        ):
            stream = await stranger.open_stream(victim.key.peer_id, PROTOCOL)
            try:
                await stream.send(nonsense)
                assert await stream.receive() == b""
            except TransportError:
                pass  # reset, as it should be
        silent = [await stranger.open_stream(victim.key.peer_id, PROTOCOL) for _ in range(20)]
        for stream in silent:
            await stream.send(b"\0")
        with trio.fail_after(2.0):
            assert await peers[1].directory.announce(peers[1].announcement()) == 2
            assert len(await peers[2].directory.find(MODEL)) == 1
