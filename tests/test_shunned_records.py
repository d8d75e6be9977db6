"""What a convicted peer says is kept, handed out and believed by nobody who knows of it."""

from __future__ import annotations

from collections.abc import Callable

from dht_swarm import MODEL, Peer, open_swarm, wall
from testimonies import announced
from trio.testing import MockClock

from potluck.dht.keyspace import spans_of
from potluck.dht.message import Find, Found, Put
from potluck.dht.record import Record
from potluck.node.client import shun_liars
from potluck.node.trust.book import Trust

CHUNK = bytes(32)


def of(*convicted: Peer) -> Callable[[str], bool]:
    return lambda peer: peer in {one.id for one in convicted}


async def test_a_keeper_hands_out_no_more_what_a_convicted_peer_said(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(6) as swarm:
        await swarm.all_announce()
        *keepers, mallory = swarm.peers
        await mallory.directory.provide([CHUNK])
        refused: list[Record] = []
        for keeper in keepers:
            keeper.directory.shun(of(mallory))
            keeper.directory.refused.append(refused.append)
        honest = {keeper.id for keeper in keepers}
        client = await swarm.join(serve=False)  # it knows of no ban
        assert {told.peer for told in await client.directory.find(MODEL)} == honest
        assert {peer for offer in await client.directory.models() for peer in offer.peers} == honest
        assert await client.directory.providers([CHUNK]) == {CHUNK: ()}
        assert all(mallory.id not in keeper.directory.peers() for keeper in keepers)
        assert await mallory.announce() == 0 == await mallory.directory.provide([CHUNK])
        assert {record.slot.peer for record in refused} == {mallory.id}
        for keeper in keepers:  # nor does it come back as a neighbour, by having asked
            assert mallory.id not in keeper.directory.peers()


async def test_who_is_convicted_later_is_forgotten_with_all_it_said(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(2) as swarm:
        alice, mallory = swarm.peers
        convicted: set[str] = set()
        alice.directory.shun(convicted.__contains__)
        assert await mallory.announce() == 1 == await mallory.directory.provide([CHUNK])

        def held() -> list[int]:
            asked = Find(1, spans_of(MODEL), True, b"")
            answer = alice.directory._answer("somebody", asked)
            assert isinstance(answer, Found)
            return [len(answer.records), len(answer.closer)]

        assert held() == [1, 1]
        convicted.add(mallory.id)
        alice.directory.forget(mallory.id)
        assert held() == [0, 0]
        assert not alice.directory._chunks.shelf.peers()


async def test_a_client_reads_nothing_of_whom_its_home_banned_though_all_keep_it(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(4) as swarm:
        await swarm.all_announce()
        mallory = swarm.peers[2]
        await mallory.directory.provide([CHUNK])
        client, trust = await swarm.join(serve=False), Trust(clock=wall)
        shun_liars(client.directory, trust)
        assert len(await client.directory.find(MODEL)) == 4
        trust.convict(mallory.id)
        found = {told.peer for told in await client.directory.find(MODEL)}
        assert found == {peer.id for peer in swarm.peers[:4] if peer is not mallory}
        assert await client.directory.providers([CHUNK]) == {CHUNK: ()}


async def test_a_client_without_a_node_convicts_who_contradicts_himself_before_it(
    autojump_clock: MockClock,
) -> None:
    """Two keepers each hold one of two records of one name."""
    async with open_swarm(3) as swarm:
        mallory = await swarm.join()
        for keeper, stop in zip(swarm.peers[1:3], (4, 8), strict=True):
            raw = announced(mallory.key, stop=stop, now=wall()).raw
            keeper.directory._answer(mallory.id, Put(1, (raw,)))
        client, trust = await swarm.join(serve=False), Trust(clock=wall)
        shun_liars(client.directory, trust)
        assert await client.directory.find(MODEL) == ()
        assert trust.banned(mallory.id)
