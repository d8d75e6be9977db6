"""The directory over simulated swarms: up to 64 peers, a road of 20 ms, and deaths."""

from dataclasses import replace

import pytest
import trio
from dht_swarm import MODEL, OTHER_MODEL, MemoryHost, announcement, open_swarm, wall
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.dht.directory import Directory
from potluck.dht.kad import open_directory
from potluck.dht.memory import MemoryDirectory, MemoryShelf
from potluck.dht.record import TTL_MAX_S
from potluck.errors import TransportError


@pytest.mark.parametrize("count", [1, 2, 3, 8, 21])
async def test_whoever_announces_is_found_by_all(count: int, autojump_clock: MockClock) -> None:
    async with open_swarm(count) as swarm:
        everybody = {peer.id for peer in swarm.peers}
        await swarm.all_announce()
        assert await swarm.found_by_all() == [everybody] * count
        offers = await swarm.peers[-1].directory.models()
        assert [(offer.name, set(offer.peers)) for offer in offers] == [("org/name", everybody)]


async def test_a_newcomer_is_seen_within_a_second(autojump_clock: MockClock) -> None:
    async with open_swarm(8) as swarm:
        begun = trio.current_time()
        newcomer = await swarm.join()
        assert await newcomer.announce() == 8
        assert trio.current_time() - begun < 1
        for peer in swarm.peers:
            (told,) = await peer.directory.find(MODEL)
            assert told.peer == newcomer.id and told.addresses == newcomer.host.addresses()


async def test_64_peers_find_every_record_in_a_few_round_trips(autojump_clock: MockClock) -> None:
    """A round trip is 40 ms. A look-up needs one or two, and one more to open streams to those
    who have not been asked before (40 ms for the stream)."""
    async with open_swarm(64) as swarm:
        for peer in swarm.peers[::4]:
            await peer.announce()
        everybody = {peer.id for peer in swarm.peers[::4]}
        took = []
        for peer in swarm.peers[::6]:
            begun = trio.current_time()
            assert {told.peer for told in await peer.directory.find(MODEL)} == everybody
            took.append(trio.current_time() - begun)
        assert sorted(took)[len(took) // 2] < 0.3


async def test_after_30_percent_died_at_once_the_living_are_found(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(40) as swarm:
        await swarm.all_announce()
        swarm.kill(0.3)
        living = {peer.id for peer in swarm.peers}
        took = []
        for peer in swarm.peers[::3]:
            begun = trio.current_time()
            assert living <= {told.peer for told in await peer.directory.find(MODEL)}
            took.append(trio.current_time() - begun)
        assert sorted(took)[len(took) // 2] < 0.5


async def test_a_reader_never_gets_an_older_word_than_the_last(autojump_clock: MockClock) -> None:
    async with open_swarm(6) as swarm:
        owner, reader = swarm.peers[2], swarm.peers[4]
        for stop in range(8, 13):
            await owner.announce(stop=stop)
            (told,) = await reader.directory.find(MODEL)
            assert told.stop == stop


async def test_what_is_not_announced_again_expires(autojump_clock: MockClock) -> None:
    async with open_swarm(4) as swarm:
        await swarm.peers[1].announce()
        await trio.sleep(TTL_MAX_S - 1)
        assert await swarm.peers[2].directory.find(MODEL)
        await trio.sleep(1.1)
        assert not await swarm.peers[2].directory.find(MODEL)
        assert not await swarm.peers[1].directory.find(MODEL)
        assert not await swarm.peers[2].directory.models()


async def test_what_is_kept_stays_and_what_is_withdrawn_is_gone_at_once(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(5) as swarm, trio.open_nursery() as nursery:
        owner = swarm.peers[3].directory
        kept = await nursery.start(owner.keep, lambda: announcement(swarm.peers[3].id))
        assert kept == 4
        for _ in range(20):
            await trio.sleep(47)
            assert await swarm.peers[1].directory.find(MODEL)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await owner.withdraw()
            assert not await swarm.peers[1].directory.find(MODEL)
            assert not await swarm.peers[2].directory.models()


async def test_who_announced_while_alone_is_found_as_soon_as_others_come(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery, open_swarm(1) as swarm:
        first = swarm.peers[0]
        assert await nursery.start(first.directory.keep, lambda: announcement(first.id)) == 0
        newcomer = await swarm.join()
        assert len(await newcomer.directory.find(MODEL)) == 1
        await trio.sleep(1)
        swarm.net.dead.add(first.id)  # and now it is kept by the newcomer too
        assert len(await newcomer.directory.find(MODEL)) == 1
        nursery.cancel_scope.cancel()


async def test_a_peer_that_lost_everybody_joins_again(autojump_clock: MockClock) -> None:
    async with open_swarm(2) as swarm:
        first, second = swarm.peers
        swarm.net.dead.add(first.id)
        await trio.sleep(300)
        assert second.directory.peers() == ()
        swarm.net.dead.clear()
        await trio.sleep(30)
        assert second.directory.peers() == (first.id,)


async def test_two_models_do_not_mix(autojump_clock: MockClock) -> None:
    async with open_swarm(4) as swarm:
        await swarm.peers[0].announce()
        await swarm.peers[1].announce(model=OTHER_MODEL)
        await swarm.peers[1].announce()
        found = [await swarm.peers[2].directory.find(model) for model in (MODEL, OTHER_MODEL)]
        assert [len(told) for told in found] == [2, 1]
        offers = await swarm.peers[3].directory.models()
        assert [(offer.model, len(offer.peers)) for offer in offers] == [
            (MODEL, 2),
            (OTHER_MODEL, 1),
        ]


async def test_a_client_is_told_to_nobody(autojump_clock: MockClock) -> None:
    async with open_swarm(3) as swarm:
        client = await swarm.join(serve=False)
        await swarm.peers[1].announce()
        assert len(await client.directory.find(MODEL)) == 1
        assert all(client.id not in peer.directory.peers() for peer in swarm.peers)


async def test_who_still_looks_for_peers_when_the_directory_closes_finds_none(
    autojump_clock: MockClock,
) -> None:
    """Others of the host use it too, and end a moment later."""
    async with open_swarm(3) as swarm:
        await swarm.all_announce()
        key = IdentityKey.generate()
        host = MemoryHost(swarm.net, key.peer_id)
        addresses = swarm.peers[0].host.addresses()
        async with open_directory(
            host, key, boot=1, wall=wall, serve=False, bootstrap=addresses
        ) as directory:
            pass
        assert not await directory.find(MODEL)
        with pytest.raises(TransportError, match="closed"):
            await directory.bootstrap(addresses)


async def test_nobody_to_join_is_a_transport_error_and_no_group(autojump_clock: MockClock) -> None:
    async with open_swarm(2) as swarm:
        swarm.net.dead.add(swarm.peers[0].id)
        with pytest.raises(TransportError, match="no answer"):
            await swarm.join()
        key = IdentityKey.generate()
        with pytest.raises(ZeroDivisionError):
            async with open_directory(MemoryHost(swarm.net, key.peer_id), key, boot=1, wall=wall):
                raise ZeroDivisionError  # what the body raises passes as it is


async def test_the_directory_in_memory_behaves_the_same(autojump_clock: MockClock) -> None:
    shelf = MemoryShelf()
    keys = [IdentityKey.from_bytes(bytes([n]) * 32) for n in (1, 2)]
    one, two = (MemoryDirectory(key, shelf) for key in keys)
    directory: Directory = one
    assert await directory.announce(announcement(keys[0].peer_id)) == 1
    (told,) = await two.find(MODEL)
    assert told.peer == keys[0].peer_id and (await two.models())[0].peers == (told.peer,)
    await directory.announce(replace(announcement(keys[0].peer_id), stop=9))
    assert [told.stop for told in await two.find(MODEL)] == [9]
    await directory.withdraw()
    assert not await two.find(MODEL) and not await two.models()
    await directory.announce(announcement(keys[0].peer_id))
    await trio.sleep(TTL_MAX_S)
    assert not await two.find(MODEL)
