"""Meshes of gossip: who is in them, and who has to go."""

from __future__ import annotations

from gossips import NEWS, ear, network

from potluck.swarm.gossip import CAME_MAX, NEIGHBOURS_MAX
from potluck.swarm.gossip_events import Joined
from potluck.swarm.mesh import D_HIGH, D_LOW, D

# ---- networks


def test_a_mesh_takes_few_of_one_network_where_there_are_others() -> None:
    one = ear()
    for number in range(12):
        one.handle(Joined(f"crowd {number}", ("9", "9.9", "9.9.9"), False))
        one.hear(f"crowd {number}", subscriptions=((NEWS, True),))
    for number in range(10):
        one.handle(Joined(f"other {number}", network(number), False))
        one.hear(f"other {number}", subscriptions=((NEWS, True),))
    one.beat(1)
    mesh = one.machine.mesh(NEWS)
    assert len(mesh) >= D_LOW and sum(peer.startswith("crowd") for peer in mesh) <= 2
    for number in range(12):  # nor do they get in by asking
        one.hear(f"crowd {number}", 2.0, graft=(NEWS,))
    assert sum(peer.startswith("crowd") for peer in one.machine.mesh(NEWS)) <= 2


def test_a_crowd_of_one_network_has_a_bad_score_and_few_places() -> None:
    one = ear()
    crowd = ("9", "9.9", "9.9.9")
    taken = 0
    while one.machine.has_room(crowd, dialed=True):
        one.handle(Joined(f"crowd {taken}", crowd, False))
        taken += 1
    assert taken == 2
    for number in range(3):
        one.handle(Joined(f"more {number}", crowd, False))
    assert one.machine.score("crowd 0", 0.0) == -90.0


def test_places_are_bounded_and_some_are_kept_for_whom_we_dial() -> None:
    one = ear()
    for number in range(NEIGHBOURS_MAX):
        dialed = number >= CAME_MAX
        assert one.machine.has_room(network(number), dialed=dialed)
        assert one.machine.has_room(network(number), dialed=False) != dialed
        one.handle(Joined(str(number), network(number), dialed))
    assert not one.machine.has_room(network(999), dialed=True)


def test_a_mesh_has_some_that_we_dialed() -> None:
    one = ear()
    for number in range(20):
        one.handle(Joined(f"{number}", network(number), number >= 18))
        one.hear(f"{number}", subscriptions=((NEWS, True),))
    one.beat(1)
    assert {"18", "19"} <= set(one.machine.mesh(NEWS))
    for number in range(20):
        one.hear(f"{number}", 1.0, graft=(NEWS,))
    one.beat(2)
    assert {"18", "19"} <= set(one.machine.mesh(NEWS)) and len(one.machine.mesh(NEWS)) <= D_HIGH


def test_a_mesh_that_is_too_large_is_cut_to_the_best() -> None:
    one = ear()
    for number in range(20):
        one.handle(Joined(f"{number}", network(number), True))
        one.hear(f"{number}", subscriptions=((NEWS, True),), graft=(NEWS,))
    for number in range(4):
        one.told(f"{number}", bytes([number]))
    one.said.clear()
    one.beat(1)
    mesh = one.machine.mesh(NEWS)
    assert len(mesh) == D and {"0", "1", "2", "3"} <= set(mesh)
    assert sum(say.rpc.prune != () for say in one.said) == 20 - D
