"""Look-ups: they end, they find the closest, and a liar leads one path astray, not all."""

import math
import random
from collections.abc import Callable
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.crypto.keys import IdentityKey
from potluck.dht.keyspace import distance, peer_point
from potluck.dht.lookup import ASKS_MAX, PATHS, PATIENCE_S, Lookup
from potluck.dht.message import CONTACTS_MAX, Contact
from potluck.dht.network import NOWHERE, PER_NETWORK, prefixes_of
from potluck.dht.pace import PATIENCE_MAX_S, PATIENCE_MIN_S, Pace

DICE = random.Random(4)
PEERS = [Contact(IdentityKey.from_bytes(DICE.randbytes(32)).peer_id, ()) for _ in range(200)]
ME = PEERS.pop().peer


def nearest(peers: list[Contact], place: bytes, count: int = CONTACTS_MAX) -> list[Contact]:
    return sorted(peers, key=lambda contact: distance(peer_point(contact.peer), place))[:count]


def run(lookup: Lookup, answer: Callable[[Contact], list[Contact] | None]) -> list[Contact]:
    """Drive to the end: every answer comes at once; None is a failure. Returns whom it asked."""
    asked: list[Contact] = []
    for _ in range(1000):
        asking = lookup.next(0.0)
        if lookup.done():
            return asked
        assert asking, "neither done nor asking"
        for contact in asking:
            asked.append(contact)
            closer = answer(contact)
            if closer is None:
                lookup.failed(contact.peer)
            else:
                lookup.answered(contact.peer, closer)
    raise AssertionError("it does not end")


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 150), st.integers(1, 25), st.integers(0, 2**32))
def test_honest_peers_lead_to_the_closest(count: int, seeds: int, seed: int) -> None:
    """Everybody knows three quarters of all, and tells the 20 closest of them; whatever one starts
    from, nine tenths of the 20 closest are found, rounded down."""
    dice = random.Random(seed)
    peers, place = PEERS[:count], dice.randbytes(32)
    known = {peer: nearest(dice.sample(peers, count - count // 4), place) for peer in peers}
    lookup = Lookup(place, dice.sample(peers, min(seeds, count)), me=ME)
    asked = run(lookup, lambda contact: known[contact])
    assert len(asked) == len(set(asked)) <= PATHS * ASKS_MAX
    found = lookup.closest(CONTACTS_MAX)
    assert found == nearest(found, place)
    best = nearest(peers, place)
    assert len(set(found) & set(best)) >= math.floor(0.9 * len(best))


def test_the_dead_are_passed_over() -> None:
    place, peers = bytes(32), PEERS[:60]
    dead = set(peers[::3])
    lookup = Lookup(place, nearest(peers, place), me=ME)
    run(lookup, lambda contact: None if contact in dead else nearest(peers, place))
    living = nearest([peer for peer in peers if peer not in dead], place)
    assert len(set(lookup.closest(CONTACTS_MAX)) & set(living)) >= 15
    assert not set(lookup.closest(CONTACTS_MAX)) & dead


def test_liars_that_route_into_each_other_keep_their_own_paths_only() -> None:
    """A liar among twenty seeds names twenty others, closer than anybody: three paths are safe."""
    place = bytes(32)
    liars = nearest(PEERS, place, 100)  # the closest of all: they ground their ids
    honest = [peer for peer in PEERS if peer not in liars]
    seeds = [liars[0], *honest[:19]]
    lookup = Lookup(place, seeds, me=ME)
    run(lookup, lambda contact: liars[:20] if contact in liars else nearest(honest, place))
    found = [peer for peer in lookup.closest(CONTACTS_MAX) if peer in honest]
    assert set(nearest(honest, place, 15)) <= set(found)


def test_nobody_is_led_on_for_ever() -> None:
    """A liar names ever closer peers that name ever closer ones."""
    ladder = list(reversed(nearest(PEERS, bytes(32), 199)))
    steps = {one: [other] for one, other in pairwise(ladder)}
    lookup = Lookup(bytes(32), ladder[:1], me=ME)
    assert len(run(lookup, lambda contact: steps.get(contact, []))) <= PATHS * ASKS_MAX


def test_we_and_the_shunned_are_never_asked() -> None:
    shunned = {peer.peer for peer in PEERS[:5]}
    lookup = Lookup(bytes(32), PEERS[:8], me=ME, shunned=shunned)
    asked = run(lookup, lambda contact: [*PEERS[:9], Contact(ME, ())])
    assert {contact.peer for contact in asked} == {peer.peer for peer in PEERS[5:9]}


def test_a_slow_peer_holds_nobody_up_and_still_counts_when_it_answers() -> None:
    slow, quick = nearest(PEERS[:2], bytes(32))
    lookup = Lookup(bytes(32), [slow, quick], me=ME)
    assert set(lookup.next(0.0)) == {slow, quick}
    lookup.answered(quick.peer, [])
    assert not lookup.done() and lookup.wake_s() == PATIENCE_S
    assert lookup.next(PATIENCE_S) == [] and lookup.done()
    assert lookup.closest(2) == [quick]
    lookup.answered(slow.peer, [])
    assert lookup.closest(2) == [slow, quick]


def test_when_all_are_slow_somebody_is_waited_for() -> None:
    lookup = Lookup(bytes(32), PEERS[:1], me=ME)
    lookup.next(0.0)
    lookup.next(100.0)
    assert not lookup.done() and lookup.wake_s() == float("inf")
    lookup.failed(PEERS[0].peer)
    assert lookup.done() and lookup.closest(1) == []


def test_with_nobody_to_ask_a_lookup_is_over() -> None:
    lookup = Lookup(bytes(32), [], me=ME)
    assert lookup.next(0.0) == [] and lookup.done()


@given(st.lists(st.floats(0.0001, 5), min_size=20, max_size=40))
def test_patience_follows_the_road_within_bounds(times: list[float]) -> None:
    pace = Pace()
    assert pace.patience_s() == PATIENCE_MAX_S
    for seconds in times:
        pace.took(seconds)
        assert PATIENCE_MIN_S <= pace.patience_s() <= PATIENCE_MAX_S


def test_patience_settles_just_above_a_steady_road() -> None:
    pace = Pace()
    for _ in range(50):
        pace.took(0.12)
    assert 0.12 <= pace.patience_s() < 0.13


def test_whose_table_is_full_of_liars_finds_the_honest_by_one_sampled_peer() -> None:
    """All twenty seeds are liars, who name liars only; without the path apart nobody honest is
    even heard of."""
    place = bytes(32)
    liars = nearest(PEERS, place, 100)  # the closest of all: they ground their ids
    honest = [peer for peer in PEERS if peer not in liars]

    def answer(contact: Contact) -> list[Contact]:
        return liars[:20] if contact in liars else nearest(honest, place)

    found = {}
    for name, sampled in (("alone", []), ("sampled", [liars[50], honest[-1]])):
        lookup = Lookup(place, liars[:20], me=ME, sampled=sampled)
        asked = run(lookup, answer)
        assert len(asked) == len(set(asked)) <= (PATHS + 1) * ASKS_MAX
        found[name] = [peer for peer in lookup.closest(CONTACTS_MAX + 10) if peer in honest]
    assert found["alone"] == []
    assert nearest(honest, place, 1)[0] in found["sampled"]


def test_a_sampled_peer_costs_an_honest_swarm_few_questions_more() -> None:
    """How many more: itself, and those whom its path asks as each other does."""
    place, dice = bytes(32), random.Random(3)
    more = []
    for seed in range(20):
        table = random.Random(seed).sample(PEERS, 40)
        asked = [
            len(
                run(
                    Lookup(place, nearest(table, place), me=ME, sampled=sampled),
                    lambda contact: nearest(PEERS, place),
                )
            )
            for sampled in ([], dice.sample(PEERS, 4))
        ]
        more.append(asked[1] - asked[0])
    assert sum(more) / len(more) <= 12


def test_an_answer_counts_for_the_network_that_the_road_shows() -> None:
    """Liars who say to be in a hundred networks are, where they answer, in one."""
    place = bytes(32)
    liars = [
        Contact(peer.peer, (f"/ip4/{20 + n}.1.1.1/tcp/1/p2p/{peer.peer}",))
        for n, peer in enumerate(nearest(PEERS, place, 40))
    ]
    honest = [peer for peer in PEERS if peer.peer not in {liar.peer for liar in liars}]
    one = prefixes_of("/ip4/8.8.8.8/tcp/1")
    lookup = Lookup(place, [*liars[:10], *honest[:10]], me=ME)
    for _ in range(1000):
        asking = lookup.next(0.0)
        if lookup.done():
            break
        for contact in asking:
            lying = contact in liars
            closer = liars[:20] if lying else nearest(honest, place)
            lookup.answered(contact.peer, closer, seen=one if lying else NOWHERE)
    chosen = lookup.closest(10)
    assert sum(contact in liars for contact in chosen) <= PER_NETWORK
