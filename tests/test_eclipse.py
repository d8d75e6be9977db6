"""A reader whom liars surround: what they hide is found by one sampled peer that is honest."""

from __future__ import annotations

import random
from dataclasses import replace

from dht_swarm import MODEL, Peer, Swarm, announcement, open_swarm, wall
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.dht.kad import HEARD_BYTES_MAX, KadDirectory
from potluck.dht.keyspace import spans_of
from potluck.dht.message import Contact, Find, Found
from potluck.dht.network import PER_NETWORK, Prefixes, prefixes_of
from potluck.dht.record import Record, sign_fact
from potluck.dht.shelf import PLACE_RECORDS_MAX


def contact(peer: Peer) -> Contact:
    return Contact(peer.id, peer.host.addresses())


async def two_swarms(swarm: Swarm) -> tuple[list[Peer], list[Peer]]:
    """Honest peers, all announced, and liars, who know and name one another alone."""
    honest = [await swarm.join() for _ in range(6)]
    await swarm.all_announce()
    swarm.peers.clear()
    liars = [await swarm.join() for _ in range(8)]
    return honest, liars


async def test_who_joined_by_liars_alone_finds_the_honest_by_one_sampled_peer(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm() as swarm:
        honest, liars = await two_swarms(swarm)
        reader = await swarm.join(serve=False, by=liars[0])
        assert await reader.directory.find(MODEL) == ()
        reader.directory.ask_also(lambda: (contact(liars[3]), contact(honest[4])))
        found = {told.peer for told in await reader.directory.find(MODEL)}
        assert found == {peer.id for peer in honest}


async def test_a_sampled_peer_tells_what_its_registry_holds_though_it_keeps_nothing(
    autojump_clock: MockClock,
) -> None:
    """Of all whom the reader knows nobody has it."""
    async with open_swarm() as swarm:
        liars = [await swarm.join() for _ in range(8)]
        swarm.peers.clear()
        key = IdentityKey.from_bytes(b"h" * 32)
        hidden = sign_fact(key, announcement(key.peer_id), boot=1, seq=1, now=wall())
        far = await swarm.join()
        reader = await swarm.join(serve=False, by=liars[0])
        far.directory.beside.append(lambda place: [hidden] if place == spans_of(MODEL) else [])
        assert await reader.directory.find(MODEL) == ()
        reader.directory.ask_also(lambda: (contact(far),))
        assert [told.peer for told in await reader.directory.find(MODEL)] == [key.peer_id]


def answer(directory: KadDirectory, have: bytes = b"") -> Found:
    found = directory._answer("somebody", Find(1, spans_of(MODEL), True, have))
    assert isinstance(found, Found)
    return found


async def test_of_a_large_registry_a_sample_is_told_and_never_what_the_keeper_has_told(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(1) as swarm:
        directory = swarm.peers[0].directory
        dice = random.Random(3)
        keys = [IdentityKey.from_bytes(dice.randbytes(32)) for _ in range(200)]
        records = [
            sign_fact(key, announcement(key.peer_id), boot=1, seq=1, now=wall()) for key in keys
        ]
        for record in records[:5]:
            directory._shelf.put(record)
        directory.beside.append(lambda place: records)
        seen: set[bytes] = set()
        for _ in range(20):
            told = answer(directory).records
            assert len(told) == len(set(told)) and {one.raw for one in records[:5]} <= set(told)
            assert sum(map(len, told[5:])) <= HEARD_BYTES_MAX
            seen.update(told)
        assert len(seen) > 5 + 2 * len(told)
        have = b"".join(one.digest[:8] for one in records)
        assert answer(directory, have).records == ()


async def test_what_the_registry_has_newer_is_told_beside_what_is_kept(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(1) as swarm:
        directory = swarm.peers[0].directory
        key = IdentityKey.from_bytes(b"h" * 32)
        older, newer = (
            sign_fact(key, announcement(key.peer_id), boot=1, seq=seq, now=wall()) for seq in (1, 2)
        )
        directory._shelf.put(older)
        directory.beside.append(lambda place: [newer])
        assert set(answer(directory).records) == {older.raw, newer.raw}


async def test_a_crowd_that_puts_from_one_network_leaves_the_place_to_others(
    autojump_clock: MockClock,
) -> None:
    """What they announce is another network for each; the road shows one."""
    async with open_swarm(1) as swarm:
        keeper, dice = swarm.peers[0], random.Random(4)
        crowd = prefixes_of("/ip4/8.8.8.8/tcp/1")

        def put(where: Prefixes, number: int) -> str:
            key = IdentityKey.from_bytes(dice.randbytes(32))
            swarm.net.stands[key.peer_id] = where
            said = (f"/ip4/{20 + number % 200}.{number // 200}.1.1/tcp/1/p2p/{key.peer_id}",)
            fact = replace(announcement(key.peer_id), addresses=said)
            record: Record = sign_fact(key, fact, boot=1, seq=1, now=wall())
            keeper.directory._take(key.peer_id, record.raw)
            return key.peer_id

        liars = {put(crowd, n) for n in range(PLACE_RECORDS_MAX + 20)}
        others = [
            put(prefixes_of(f"/ip4/{20 + n % 200}.{n // 200}.1.1/tcp/1"), n)
            for n in range(PLACE_RECORDS_MAX)
        ]
        kept = {record.slot.peer for record in keeper.directory._shelf.at(spans_of(MODEL), wall())}
        assert len(kept & liars) <= PER_NETWORK
        assert len(kept & set(others)) >= PLACE_RECORDS_MAX - PER_NETWORK
