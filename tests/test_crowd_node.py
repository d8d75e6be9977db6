"""What a node knows of the whole swarm, beside its directory; over real hosts on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from types import SimpleNamespace

import trio
from dht_swarm import MODEL, announcement, open_swarm
from net_hosts import seeded, until
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.dht.kad import KadDirectory, open_directory
from potluck.dht.record import Record
from potluck.node.gossip.crowd import Crowd
from potluck.node.net.host import Host, open_host
from potluck.node.net.stream import Stream
from potluck.swarm.machine import Fired
from potluck.swarm.sampling_events import PROTOCOL, Heard, Member


async def test_a_reader_finds_what_a_registry_holds_though_no_keeper_has_it(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(3) as swarm:
        one, other, _ = swarm.peers
        signed: list[Record] = []
        one.directory.signed.append(signed.append)
        swarm.net.dead |= {peer.id for peer in swarm.peers if peer is not one}
        await one.announce()
        assert [record.slot.peer for record in signed] == [one.id] * 2  # and the list of models
        swarm.net.dead -= {other.id}
        swarm.net.dead |= {one.id}
        assert await other.directory.find(MODEL) == ()
        other.directory.beside.append(lambda place: [r for r in signed if r.slot.place == place])
        assert [told.peer for told in await other.directory.find(MODEL)] == [one.id]


@asynccontextmanager
async def crowded(letter: str, *join: str) -> AsyncIterator[tuple[Host, KadDirectory, Crowd]]:
    key = IdentityKey.from_bytes(letter.encode() * 32)
    async with (
        open_host(seeded(letter)) as host,
        open_directory(host, key, boot=1, bootstrap=join) as directory,
        trio.open_nursery() as nursery,
    ):
        member = SimpleNamespace(host=host, directory=directory)
        crowd = Crowd(member, Random(letter))  # type: ignore[arg-type]
        nursery.start_soon(crowd.run)
        yield host, directory, crowd
        nursery.cancel_scope.cancel()


async def test_nodes_meet_by_their_samplings_and_share_their_records() -> None:
    """Rounds are set off by hand: nobody waits five seconds."""
    async with (
        crowded("a") as (one, told, first),
        crowded("b", *one.addresses()) as (other, _, second),
    ):
        await until(lambda: second.sampler.contacts(9) == (one.peer_id,))  # by the first walk
        second.sampler._dispatch(Fired("round"))
        await until(lambda: second.sampler._machine.met(one.peer_id))
        await until(lambda: first.sampler.contacts(9) == (other.peer_id,))
        [member] = first.sampler._machine.members()
        assert f"{member.address}/p2p/{other.peer_id}" in other.addresses()
        await told.announce(announcement(one.peer_id))
        await second.registrar._compare(one.peer_id)
        assert second.registrar.digest() == first.registrar.digest()
        assert second.counts()["registered"] == 2
        await second.registrar._compare(one.peer_id)  # who holds the same says nothing
        second.shun(one.peer_id)
        assert second.counts() == {"sampled": 0, "lookouts": 0, "registered": 0}


async def test_who_does_not_sample_is_not_kept_and_blames_nobody() -> None:
    """A client, or an older version: it speaks other protocols."""
    async with crowded("a") as (one, _, crowd), open_host(seeded("b")) as plain:
        there = plain.addresses()[0].removesuffix(f"/p2p/{plain.peer_id}")
        crowd.sampler._dispatch(Heard((Member(plain.peer_id, there),)))
        assert crowd.sampler.contacts(1) == (plain.peer_id,)
        crowd.sampler._dispatch(Fired("round"))
        await until(lambda: crowd.sampler.contacts(1) == ())
        assert one.welcomes(plain.peer_id) and plain.welcomes(one.peer_id)


async def swallow(stream: Stream) -> None:
    while await stream.receive():
        pass


async def test_who_has_dialled_us_is_looked_for_where_it_is_said_to_be() -> None:
    """The connection that is there would bear out nothing, and the lie would stay."""
    async with crowded("a") as (one, _, crowd), open_host(seeded("b")) as other:
        other.handle(PROTOCOL, swallow)
        await other.connect(one.addresses())
        await until(lambda: one.connected() == (other.peer_id,))
        await one.identified(other.peer_id)
        crowd.sampler._dispatch(Heard((Member(other.peer_id, "/ip4/127.0.0.1/tcp/1"),)))
        assert crowd.sampler.contacts(1) == (other.peer_id,)
        crowd.sampler._dispatch(Fired("round"))
        await until(lambda: crowd.sampler.contacts(1) == ())
        assert one.connected() == (other.peer_id,)
