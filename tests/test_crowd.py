"""A besieged place is told from any other, and the region around it from the rest."""

import random

import pytest

from potluck.crypto.keys import IdentityKey
from potluck.dht.crowd import SPACE, is_besieged, siblings, size_seen
from potluck.dht.keyspace import distance, peer_point, shared_bits
from potluck.dht.message import CONTACTS_MAX, Contact

DICE = random.Random(8)
PEERS = [Contact(IdentityKey.from_bytes(DICE.randbytes(32)).peer_id, ()) for _ in range(4000)]


def nearest(peers: list[Contact], place: bytes) -> list[Contact]:
    return sorted(peers, key=lambda one: distance(peer_point(one.peer), place))[:CONTACTS_MAX]


@pytest.mark.parametrize("count", [30, 64, 300, 1000])
def test_the_size_of_a_swarm_is_seen_and_no_place_is_besieged_by_chance(count: int) -> None:
    peers, seen = PEERS[:count], []
    for _ in range(100):
        place = DICE.randbytes(32)
        near = nearest(peers, place)
        size = size_seen(place, near)
        assert size is not None and not is_besieged(place, near, count)
        seen.append(size)
    assert count / 1.4 < sorted(seen)[50] < count * 1.4


def test_twenty_ground_ids_are_seen() -> None:
    """The attacker tries 3,000 ids for 20 that stand closer than any of the 1,000 honest peers."""
    honest, place = PEERS[:1000], DICE.randbytes(32)
    besieged = nearest([*honest, *nearest(PEERS[1000:], place)], place)
    assert is_besieged(place, besieged, 1000)
    assert not is_besieged(place, nearest(honest, place), 1000)


def test_too_few_to_tell_is_no_siege() -> None:
    place = bytes(32)
    assert size_seen(place, PEERS[:7]) is None
    assert not is_besieged(place, PEERS[:7], 20.0)
    assert not is_besieged(place, nearest(PEERS, place), float("inf"))


@pytest.mark.parametrize("size", [20.0, 64.0, 5000.0, 1e9])
def test_siblings_stand_in_the_other_quarters_of_the_region(size: float) -> None:
    place = DICE.randbytes(32)
    others = siblings(place, size)
    depths = [shared_bits(place, other) for other in others]
    region = min(depths)
    assert depths == [region, region + 1, region]
    assert len({place, *others}) == 4
    assert SPACE / 2**region * size / SPACE >= CONTACTS_MAX / 2  # twenty peers, within a half
