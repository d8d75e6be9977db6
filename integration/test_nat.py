"""Homes behind NATs, with real processes: the pairs that are hardest, and what changes on the way.

The whole matrix is `python -m integration.nat_lab`; it takes some minutes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from potluck.node.net.ways import relays_told

from . import nat_change, nat_session
from .nat_ground import Ground, Kind, open_ground, why_not, why_not_six
from .nat_town import READY_S, Peer, Town, open_town, started

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no NATs here: {why_not()}")

RTT_S = 0.04  # from everybody to the relays
DIRECT_S = 30.0  # issue B's bar
RELAYED_S = 15.0  # in which a pair that theory keeps apart stays so


def home(made: Town, name: str, kind: Kind) -> Peer:
    made.ground.home(name, kind)
    return made.start(name, "--join", *made.join)


def until(true: Any, within_s: float) -> float:
    """Seconds until `true()` is."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within_s, "it did not come in time"
        time.sleep(0.1)
    return time.monotonic() - began


def reserved(peer: Peer) -> bool:
    return bool(peer.tell(do="report")["nat"]["relays"])


@pytest.mark.parametrize(
    ("left", "right", "direct"),
    [("port", "double", True), ("address", "symmetric", True), ("symmetric", "port", False)],
)
def test_a_pair_meets_over_a_relay_and_goes_direct_if_theory_allows(
    tmp_path: Path, left: Kind, right: Kind, direct: bool
) -> None:
    with open_town(tmp_path, RTT_S) as made:
        alice, bob = home(made, "alice", left), home(made, "bob", right)
        until(lambda: reserved(bob), READY_S)
        where = bob.tell(do="report")["addresses"]
        found = alice.tell(
            do="meet", peer=bob.peer, addresses=where, within_s=DIRECT_S if direct else RELAYED_S
        )
        assert found["relayed"] and found["talks"]
        assert found["connected_s"] < 10
        assert (found["direct_s"] is not None) == direct


@pytest.mark.skipif(why_not_six() is not None, reason=f"no IPv6 here: {why_not_six()}")
def test_with_ipv6_homes_go_direct_through_their_firewalls(tmp_path: Path) -> None:
    """Their IPv4 never could; a client listens nowhere until it punches."""
    with open_town(tmp_path, RTT_S, six=True) as made:
        for name in ("alice", "bob"):
            made.ground.home_six(name, "dual")
        alice = made.start("alice", "--listen", "--join", *made.join)
        bob = made.start_six("bob")
        until(lambda: reserved(bob), READY_S)
        # else its record would promise that it can be dialed
        until(lambda: len(relays_told(bob.tell(do="report")["addresses"])) == 2, READY_S)
        told = bob.tell(do="report")["addresses"]
        assert any(one.startswith("/ip6/") and "p2p-circuit" in one for one in told)
        found = alice.tell(do="meet", peer=bob.peer, addresses=told, within_s=DIRECT_S)
        assert found["relayed"] and found["talks"] and found["direct_s"] is not None


def test_a_home_knows_its_nat(tmp_path: Path) -> None:
    with open_town(tmp_path, RTT_S) as made:
        peers = {kind: home(made, kind, kind) for kind in ("port", "symmetric")}
        for kind, expected in (("port", "endpoint-independent"), ("symmetric", "per-destination")):
            peer = peers[kind]  # type: ignore[index]
            until(lambda peer=peer: peer.tell(do="report")["nat"]["kind"] != "unknown", READY_S)
            told = peer.tell(do="report")["nat"]
            assert (told["kind"], told["reachability"]) == (expected, "private")


def test_a_peer_whose_address_changes_is_back_within_30_s(tmp_path: Path) -> None:
    """From one address of the LAN to another, as by a new lease."""
    with open_town(tmp_path, RTT_S) as made:
        alice, bob = home(made, "alice", "port"), home(made, "bob", "port")
        until(lambda: reserved(bob), READY_S)
        inside = f"{made.ground.prefix}bob"
        for command in (
            "ip addr del 192.168.1.2/24 dev eth0",
            "ip addr add 192.168.1.77/24 dev eth0",
            "ip route add default via 192.168.1.1",
        ):
            made.ground.inside(inside, *command.split())

        def back() -> bool:
            told = bob.tell(do="report")
            if not told["nat"]["relays"] or not any("192.168.1.77" in a for a in told["addresses"]):
                return False
            found = alice.tell(do="meet", peer=bob.peer, addresses=told["addresses"], within_s=0.1)
            return bool(found["talks"])

        assert until(back, 30) < 30


@pytest.mark.parametrize("change", ["cable", "suspend"])
def test_who_has_moved_or_slept_is_back_within_30_s_unasked(tmp_path: Path, change: str) -> None:
    found = nat_change.measure(change, tmp_path, directory=True)
    assert found["back_s"] is not None and found["back_s"] < nat_change.BAR_S


def test_neighbours_meet_without_a_bootstrap(tmp_path: Path) -> None:
    with open_ground() as ground:
        near, far = ground.add("near"), ground.add("far")
        _cable(ground, near, far)
        with (
            started(ground, near, tmp_path / "near.log", "--directory") as one,
            started(ground, far, tmp_path / "far.log", "--directory") as other,
        ):
            until(lambda: one.peer in other.tell(do="report")["connected"], READY_S)


def test_a_session_leaves_its_relay_and_the_text_is_the_same(tmp_path: Path) -> None:
    found = nat_session.measure("port", "port", runs=1, tokens=80, logs=tmp_path)
    assert found["equal"] == 1
    assert found["moved"] == 1
    assert all(0 < before < 80 for run in found["runs"] for before in run["tokens_before"])


def _cable(ground: Ground, near: str, far: str) -> None:
    ground.wire(near, "eth0", "192.168.7.1", far, "eth0", "192.168.7.2")
    ground.inside(near, "ip", "route", "add", "default", "dev", "eth0")
