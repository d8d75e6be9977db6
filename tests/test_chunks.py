"""Providers of chunks: thousands in bulk, and nobody fills another's shelf."""

import random
from dataclasses import replace

import pytest
import trio
from dht_swarm import EPOCH_S, MODEL, MemoryHost, announcement, open_swarm, wall
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.dht.chunks import KEEPERS, region_bits
from potluck.dht.kad import open_directory
from potluck.dht.keyspace import distance, peer_point, shared_bits
from potluck.dht.memory import MemoryDirectory, MemoryShelf
from potluck.dht.message import CONTACTS_MAX, Contact
from potluck.dht.record import CHUNK_TTL_MAX_S, Provider, sign_fact
from potluck.dht.shelf import ENTRY_BYTES, Limits, Shelf
from potluck.errors import Refused, UserError

DICE = random.Random(6)
CHUNKS = [DICE.randbytes(32) for _ in range(500)]


async def test_500_chunks_of_two_providers_are_found_by_all_in_one_go(
    autojump_clock: MockClock,
) -> None:
    """The first has all, the second every other; a third peer reads."""
    async with open_swarm(12) as swarm:
        one, two, reader = swarm.peers[1], swarm.peers[2], swarm.peers[9]
        begun = trio.current_time()
        assert await one.directory.provide(CHUNKS) == 500
        assert await two.directory.provide(CHUNKS[::2]) == 250
        found = await reader.directory.providers([*CHUNKS, bytes(32)])
        assert trio.current_time() - begun < 10
        assert found.pop(bytes(32)) == ()
        for number, chunk in enumerate(CHUNKS):
            peers = {told.peer for told in found[chunk]}
            assert peers == ({one.id, two.id} if number % 2 == 0 else {one.id})
        (told,) = found[CHUNKS[1]]
        assert told.addresses == one.host.addresses()


async def test_a_chunk_is_at_its_closest_peers_alone(autojump_clock: MockClock) -> None:
    async with open_swarm(30) as swarm:
        assert await swarm.peers[0].directory.provide(CHUNKS[:40]) == 40
        held = sum(len(peer.directory._chunks.shelf) for peer in swarm.peers[1:])
        assert held <= 40 * KEEPERS
        found = await swarm.peers[17].directory.providers(CHUNKS[:40])
        assert all(len(told) == 1 for told in found.values())


async def test_providers_survive_half_an_hour_or_the_death_of_30_percent(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(30) as swarm:
        owner = swarm.peers[0]  # whom `kill` spares
        await owner.directory.provide(CHUNKS[:100])
        swarm.kill(0.3)
        found = await swarm.peers[-1].directory.providers(CHUNKS[:100])
        assert sum(len(told) == 1 for told in found.values()) >= 99
        await trio.sleep(CHUNK_TTL_MAX_S + 60)
        found = await swarm.peers[-1].directory.providers(CHUNKS[:100])
        assert not any(found.values())
        assert all(len(peer.directory._chunks.shelf) == 0 for peer in swarm.peers)


async def test_chunks_move_no_span_record(autojump_clock: MockClock) -> None:
    async with open_swarm(4) as swarm:
        await swarm.all_announce()
        await swarm.peers[1].directory.provide(CHUNKS)
        assert len(await swarm.peers[3].directory.find(MODEL)) == 4
        assert all(len(peer.directory._shelf) == 8 for peer in swarm.peers)


def test_one_peer_fills_no_more_than_its_bytes() -> None:
    key = IdentityKey.from_bytes(b"k" * 32)
    records = [
        sign_fact(key, Provider(chunk, ()), boot=1, seq=1, now=EPOCH_S) for chunk in CHUNKS[:30]
    ]
    size = len(records[0].raw) + ENTRY_BYTES
    shelf = Shelf("me", salt=b"s", limits=Limits(peer_places_max=99, peer_bytes_max=10 * size + 9))
    for record in records[:10]:
        shelf.put(record)
    with pytest.raises(Refused, match="bytes"):
        shelf.put(records[10])
    shelf.put(sign_fact(key, Provider(CHUNKS[3], ()), boot=1, seq=2, now=EPOCH_S + 1))
    assert shelf.bytes_held == 10 * size
    shelf.forget_expired(EPOCH_S + CHUNK_TTL_MAX_S + 2)
    assert shelf.bytes_held == 0
    shelf.put(replace(records[10]))


def test_a_region_holds_all_peers_of_its_prefix() -> None:
    """Of 300 peers: whoever shares the region's prefix is among the 20 closest."""
    peers = [IdentityKey.from_bytes(DICE.randbytes(32)).peer_id for _ in range(300)]
    for _ in range(50):
        place = DICE.randbytes(32)
        ranked = sorted(peers, key=lambda peer: distance(peer_point(peer), place))
        near = [Contact(peer, ()) for peer in ranked[:CONTACTS_MAX]]
        bits = region_bits(place, near, known=60)
        inside = {peer for peer in peers if shared_bits(peer_point(peer), place) >= bits}
        assert inside <= {contact.peer for contact in near}
        assert len(inside) >= 2
    assert region_bits(place, near[:19], known=19) == 0
    assert region_bits(place, near[:19], known=20) >= bits


async def test_the_directory_in_memory_provides_the_same(autojump_clock: MockClock) -> None:
    shelf = MemoryShelf()
    one, two = (MemoryDirectory(IdentityKey.from_bytes(seed * 32), shelf) for seed in (b"1", b"2"))
    assert await one.provide(CHUNKS[:3]) == 3
    found = await two.providers(CHUNKS[:4])
    assert [len(found[chunk]) for chunk in CHUNKS[:4]] == [1, 1, 1, 0]


async def test_two_homes_with_one_key_are_noticed(autojump_clock: MockClock) -> None:
    """The one that started first has the lower boot number: nobody takes its records any more."""
    async with open_swarm(5) as swarm, trio.open_nursery() as nursery:
        first = swarm.peers[2]
        with pytest.RaisesGroup(pytest.RaisesExc(UserError, match="a home was copied")):
            async with trio.open_nursery() as keeping:
                await keeping.start(first.directory.keep, lambda: announcement(first.id))
                await trio.sleep(10)
                host = MemoryHost(swarm.net, first.id)
                swarm.net.hosts["other"] = host
                async with open_directory(
                    host, first.key, boot=int(wall()) + 20, wall=wall,
                    bootstrap=swarm.peers[0].host.addresses(),
                ) as copy:  # fmt: skip
                    await copy.announce(announcement(first.id))
                await trio.sleep(60)
                raise AssertionError("not noticed within a minute")
        nursery.cancel_scope.cancel()
