"""The routing table: old friends stay, the dead go, no landlord fills a bucket."""

import random

from hypothesis import given
from hypothesis import strategies as st

from potluck.crypto.keys import IdentityKey
from potluck.dht.keyspace import distance, peer_point
from potluck.dht.message import Contact
from potluck.dht.table import BUCKET_SIZE, FAILURES_MAX, RoutingTable

DICE = random.Random(3)
PEERS = [IdentityKey.from_bytes(DICE.randbytes(32)).peer_id for _ in range(400)]
ME = PEERS.pop()
POINT = peer_point(ME)
FAR = [
    peer for peer in PEERS if distance(peer_point(peer), POINT) >> 255
]  # one bucket: half of all


def at(peer: str, address: str = "/ip4/127.0.0.1/tcp/1") -> Contact:
    return Contact(peer, (f"{address}/p2p/{peer}",))


@given(st.sets(st.sampled_from(PEERS), max_size=60), st.binary(min_size=32, max_size=32))
def test_the_closest_are_those_of_brute_force(peers: set[str], place: bytes) -> None:
    table = RoutingTable(ME)
    for peer in sorted(peers):
        table.heard(at(peer), 0.0)
    kept = table.peers()
    nearest = sorted(kept, key=lambda peer: distance(peer_point(peer), place))[:20]
    assert [contact.peer for contact in table.closest(place)] == nearest
    if len(peers) <= BUCKET_SIZE:
        assert set(kept) == peers


def test_a_full_bucket_keeps_the_old_and_a_spare_follows_the_dead() -> None:
    table = RoutingTable(ME)
    old, late = FAR[:BUCKET_SIZE], FAR[BUCKET_SIZE]
    assert all(table.heard(at(peer), 0.0) for peer in old)
    assert not table.heard(at(late), 1.0)
    assert late not in table and len(table) == BUCKET_SIZE
    for _ in range(FAILURES_MAX):
        assert old[3] in table
        table.failed(old[3])
    assert old[3] not in table and late in table


def test_one_lost_answer_is_no_death_but_comes_last() -> None:
    table = RoutingTable(ME)
    for peer in PEERS[:10]:
        table.heard(at(peer), 0.0)
    nearest = table.closest(POINT)[0].peer
    table.failed(nearest)
    assert table.closest(POINT)[-1].peer == nearest
    table.touch(nearest, 1.0)
    assert table.closest(POINT)[0].peer == nearest


def test_a_member_that_failed_gives_way_to_a_newcomer() -> None:
    table = RoutingTable(ME)
    for peer in FAR[:BUCKET_SIZE]:
        table.heard(at(peer), 0.0)
    table.failed(FAR[0])
    assert table.heard(at(FAR[30]), 1.0)
    assert FAR[0] not in table


def test_we_are_not_our_own_neighbour() -> None:
    table = RoutingTable(ME)
    assert not table.heard(at(ME), 0.0)
    assert table.peers() == ()


def test_a_full_bucket_is_shared_between_networks() -> None:
    """A landlord with 60 peers in one /24 comes first; twelve homes come after him: all get in, and
    he keeps what is left over. The other way round he gets two at most."""
    landlord = [at(peer, f"/ip4/8.8.8.{n}/tcp/1") for n, peer in enumerate(FAR[:60])]
    homes = [at(peer, f"/ip4/9.{n}.9.9/tcp/1") for n, peer in enumerate(FAR[60:80])]
    table = RoutingTable(ME)
    for contact in [*landlord, *homes[:12]]:
        table.heard(contact, 0.0)
    assert all(contact.peer in table for contact in homes[:12]) and len(table) == BUCKET_SIZE
    table = RoutingTable(ME)
    for contact in [*homes[:18], *landlord, *homes[18:]]:
        table.heard(contact, 0.0)
    assert sum(contact.peer in table for contact in landlord) == 2


def test_a_full_bucket_is_shared_between_wide_networks_too() -> None:
    """He has a /24 for each of his peers, and one /16 for all."""
    landlord = [at(peer, f"/ip4/8.8.{n}.8/tcp/1") for n, peer in enumerate(FAR[:60])]
    homes = [at(peer, f"/ip4/9.{n}.9.9/tcp/1") for n, peer in enumerate(FAR[60:80])]
    table = RoutingTable(ME)
    for contact in [*homes[:18], *landlord, *homes[18:]]:
        table.heard(contact, 0.0)
    assert sum(contact.peer in table for contact in landlord) == 2


def test_the_stalest_is_who_was_silent_for_longest() -> None:
    table = RoutingTable(ME)
    assert table.stalest() is None
    for when, peer in enumerate(PEERS[:5]):
        table.heard(at(peer), float(when))
    table.touch(PEERS[0], 9.0)
    assert table.stalest() == (at(PEERS[1]), 1.0)


def test_the_spares_are_bounded() -> None:
    table = RoutingTable(ME)
    for peer in FAR:
        table.heard(at(peer), 0.0)
    assert sum(map(len, table._spares.values())) == BUCKET_SIZE
