"""Whom one knows: joining does not wait for the dead, and who was lost is looked for."""

import trio
from dht_swarm import MemoryHost, open_swarm
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.dht.kad import open_directory
from potluck.dht.neighbours import GRACE_S, JOIN_MAX, REFRESH_BUCKET_S, SHUN_S


async def test_peers_that_lost_one_another_meet_again_without_a_bootstrap(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(2) as swarm:
        first, second = swarm.peers
        second.directory._neighbours._join = ()
        swarm.net.dead.update((first.id, second.id))
        await trio.sleep(600)
        assert first.directory.peers() == second.directory.peers() == ()
        swarm.net.dead.clear()
        await trio.sleep(30)
        assert first.directory.peers() == (second.id,)


async def test_joining_waits_a_second_for_the_silent_once_somebody_answered(
    autojump_clock: MockClock,
) -> None:
    """Five of six are switched off, and would be waited for ten seconds each."""
    async with open_swarm(6) as swarm:
        swarm.net.dead.update(peer.id for peer in swarm.peers[1:])
        key = IdentityKey.from_bytes(b"n" * 32)
        addresses = [address for peer in swarm.peers for address in peer.host.addresses()]
        begun = trio.current_time()
        async with open_directory(
            MemoryHost(swarm.net, key.peer_id), key, boot=1, bootstrap=addresses
        ) as directory:
            assert swarm.peers[0].id in directory.peers()
            assert trio.current_time() - begun < GRACE_S + 1.5


async def test_who_answered_lately_is_told_with_the_time(autojump_clock: MockClock) -> None:
    async with open_swarm(3) as swarm:
        await trio.sleep(5)
        known = swarm.peers[0].directory.answered()
        assert {one.peer for one in known} == {peer.id for peer in swarm.peers[1:]}
        assert all(one.addresses and one.seen_s > 1e9 for one in known)


async def test_a_swarm_that_grew_is_no_siege(autojump_clock: MockClock) -> None:
    """The first twelve saw a small swarm; 24 more come, and no place is besieged for anybody
    who looks again, so that no look-up asks more than once."""
    async with open_swarm(12) as swarm:
        await trio.sleep(SHUN_S / 10)
        for _ in range(24):
            await swarm.join()
        await trio.sleep(61)
        await swarm.peers[30].announce()
        for peer in swarm.peers[:12:3]:
            near = await peer.directory._neighbours.lookup(swarm.dice.randbytes(32))
            assert len(near) <= 20


async def test_upkeep_looks_only_as_deep_as_a_look_up_does_not_reach_by_itself(
    autojump_clock: MockClock,
) -> None:
    """Twenty are met around each place: of 48 peers, a quarter of the key space's at once."""
    async with open_swarm(48) as swarm:
        neighbours = swarm.peers[-1].directory._neighbours
        looked: list[int] = []
        place = neighbours._place_with_prefix
        neighbours._place_with_prefix = lambda bits: looked.append(bits) or place(bits)
        begun = trio.current_time()
        await trio.sleep(0.9 * REFRESH_BUCKET_S)
        buckets = neighbours.table.prefixes()
        assert len(buckets) >= 5 and looked[0] == 0
        assert len(looked) <= 3  # 24, 12 and 6 peers share no, one, two bits with us
        assert all(entry.heard_s > begun for entry in neighbours.table._entries())
        await trio.sleep(0.3 * REFRESH_BUCKET_S)
        assert looked.count(0) == 2  # and again in time


async def test_of_those_to_join_by_the_first_named_are_remembered(
    autojump_clock: MockClock,
) -> None:
    """Peers that come back are joined by too, again and again, and leave the owner's choice."""
    async with open_swarm(2) as swarm:
        first, second = swarm.peers
        neighbours = second.directory._neighbours
        chosen = neighbours._join
        assert chosen == first.host.addresses()
        for port in range(3 * JOIN_MAX):
            await neighbours.join([f"/ip4/127.0.0.1/tcp/{port}/p2p/{first.id}"])
        assert neighbours._join[: len(chosen)] == chosen and len(neighbours._join) == JOIN_MAX
