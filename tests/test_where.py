"""Which network a peer is in: what the road shows goes before what it says, and harms nobody."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import Network, router
from sim.memory_swarm import BLOCKS
from sim.memory_swarm import announcement as announced
from sim.parted import open_town, wall
from test_standing import ALICE, Clock, opening, told
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.dht.keyspace import peer_point
from potluck.dht.message import Contact
from potluck.dht.network import NOWHERE, networks_of, place_of, prefixes_of
from potluck.dht.record import sign_fact
from potluck.dht.table import BUCKET_SIZE, RoutingTable
from potluck.node.net.peers import Connection, Peers
from potluck.node.trust.standing import Standings

SEEN = prefixes_of("/ip4/9.9.9.9/tcp/1")
SAID = "/ip4/8.8.4.4/tcp/1"


def connection(peer: str, host: str, *, relay: str | None = None) -> Connection:
    mux: Any = SimpleNamespace(peer=peer, dialer=True, failure=None, leaving=False)
    return Connection(mux, 0.0, (host, 4001), relay=relay)


def where(*connections: Connection) -> tuple[str, str, str]:
    peers = Peers("me")
    for one in connections:
        peers._by_peer.setdefault(one.mux.peer, []).append(one)
    return peers.where("p")


@pytest.mark.parametrize("host", ["9.9.9.9", "::ffff:9.9.9.9"])
def test_a_direct_connection_shows_where_its_packets_come_from(host: str) -> None:
    assert where(connection("p", host)) == SEEN
    assert where(connection("other", host)) == NOWHERE


def test_a_relay_and_a_gateway_at_home_show_nothing_of_the_peer() -> None:
    assert where(connection("p", "9.9.9.9", relay="r")) == NOWHERE
    assert where(connection("p", "172.17.0.1")) == where(connection("p", "::1")) == NOWHERE
    both = connection("p", "8.8.8.8", relay="r"), connection("p", "127.0.0.1")
    assert where(*both, connection("p", "9.9.9.9")) == SEEN


@given(st.lists(st.sampled_from([SAID, "/ip4/10.0.0.1/tcp/1", "/ip4/7.7.7.7/tcp/1", "/memory/x"])))
def test_what_is_said_counts_only_until_the_road_shows_it(said: list[str]) -> None:
    assert place_of(said, SEEN) == SEEN and networks_of(said, SEEN) == {SEEN}
    assert place_of(said, NOWHERE) == place_of(said)
    assert networks_of(said, NOWHERE) == networks_of(said)


def test_a_bucket_counts_a_crowd_where_the_road_shows_it() -> None:
    """Each says to be in a network of its own: a newcomer takes the place of one of them."""
    me = IdentityKey.from_bytes(b"m" * 32).peer_id
    made = (IdentityKey.from_bytes(n.to_bytes(32)).peer_id for n in range(200))
    table = RoutingTable(me)
    far = [peer for peer in made if table._index(int.from_bytes(peer_point(peer))) == 0]
    crowd, newcomer = far[:BUCKET_SIZE], far[BUCKET_SIZE]
    for number, peer in enumerate(crowd):
        assert table.heard(Contact(peer, (f"/ip4/{20 + number}.1.1.1/tcp/1",)), 0.0, seen=SEEN)
    assert table.heard(Contact(newcomer, ("/ip4/99.1.1.1/tcp/1",)), 1.0)
    assert newcomer in table and len(table) == BUCKET_SIZE


def test_attesters_of_one_network_are_one_whatever_they_announce() -> None:
    seen = {ALICE.peer_id: SEEN}
    standings = Standings(
        lambda peer: 0.7, where=lambda peer: seen.get(peer, NOWHERE), wall=Clock()
    )
    standings.learn([told(host="8.8.4.4")])
    found = standings.of(ALICE.peer_id, opening(0, 2))
    assert found is not None and found.network == SEEN[1]
    seen.clear()  # the connection is over: what it says, until there is another
    found = standings.of(ALICE.peer_id, opening(0, 2))
    assert found is not None and found.network == prefixes_of(SAID)[1]


async def test_a_route_and_an_audit_go_by_the_road() -> None:
    one = told(host="8.8.4.4")
    network = Network(one)
    made = router(network)
    assert made.place(one) == prefixes_of(SAID)
    network.stands[one.peer] = SEEN
    assert made.place(one) == SEEN
    view = await made.view(one.model, one.blocks)
    assert [span.network for span in view.spans] == [SEEN]


async def test_the_registry_counts_a_peer_where_the_road_shows_it(
    autojump_clock: MockClock,
) -> None:
    async with open_town(1) as town:
        citizen, key = town.citizens[0], IdentityKey.from_bytes(b"k" * 32)
        other = town.net.settle(key.peer_id, "/ip4/9.9.9.9/tcp/1")
        for seq, seen in ((1, NOWHERE), (2, SEEN)):
            if seen == SEEN:
                citizen.host.links[key.peer_id] = True
            fact = replace(announced(0, BLOCKS, other), addresses=(f"{SAID}/p2p/{key.peer_id}",))
            record = sign_fact(key, fact, boot=1, seq=seq, now=wall())
            citizen.registrar.hold(record)
            held = citizen.registrar._replica._held[record.slot]
            assert held.where == place_of((SAID,), seen)
