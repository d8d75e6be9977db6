"""Homes behind NATs, with real processes: the pairs that are hardest, and what changes on the way.

The whole matrix is `python -m integration.nat_lab`; it takes some minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from potluck.node.net.ways import relays_told

from . import nat_change, nat_session
from .nat_ground import Ground, Kind, open_ground, why_not, why_not_six
from .nat_town import READY_S, Peer, Town, open_town, started
from .waiting import until

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no NATs here: {why_not()}")

RTT_S = 0.04  # from everybody to the relays
DIRECT_S = 30.0  # issue B's bar
RELAYED_S = 15.0  # in which a pair that theory keeps apart stays so
HOMES: dict[str, Kind] = {
    "port": "port", "double": "double", "address": "address", "symmetric": "symmetric",
    "strict": "symmetric", "mover": "port",
}  # fmt: skip
PAIRS = (("port", "double", True), ("address", "symmetric", True), ("strict", "mover", False))
CHANGES = ("cable", "suspend")


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """Three relays, and a home of each name in HOMES that has a place at one."""
    with open_town(tmp_path_factory.mktemp("town"), RTT_S) as made:
        for name, kind in HOMES.items():
            made.ground.home(name, kind)
        with ThreadPoolExecutor(len(HOMES)) as pool:
            list(pool.map(lambda name: made.start(name, "--join", *made.join), HOMES))
        for name in HOMES:
            until(lambda name=name: reserved(made.peers[name]), READY_S)  # type: ignore[misc]
        yield made


def reserved(peer: Peer) -> bool:
    return bool(peer.tell(do="report")["nat"]["relays"])


def test_pairs_meet_over_a_relay_and_go_direct_if_theory_allows(town: Town) -> None:
    """All at once: one of them only shows that nothing comes of it for a while."""

    def meet(pair: tuple[str, str, bool]) -> dict[str, Any]:
        left, right, direct = pair
        callee = town.peers[right]
        return town.peers[left].tell(
            do="meet", peer=callee.peer, addresses=callee.tell(do="report")["addresses"],
            within_s=DIRECT_S if direct else RELAYED_S,
        )  # fmt: skip

    with ThreadPoolExecutor(len(PAIRS)) as pool:
        for pair, found in zip(PAIRS, pool.map(meet, PAIRS), strict=True):
            assert found["relayed"] and found["talks"], (pair, found)
            assert found["connected_s"] < 10, (pair, found)
            assert (found["direct_s"] is not None) == pair[2], (pair, found)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("port", "endpoint-independent"), ("symmetric", "per-destination")],
)
def test_a_home_knows_its_nat(town: Town, name: str, kind: str) -> None:
    peer = town.peers[name]
    until(lambda: peer.tell(do="report")["nat"]["kind"] != "unknown", READY_S)
    told = peer.tell(do="report")["nat"]
    assert (told["kind"], told["reachability"]) == (kind, "private")


def test_a_peer_whose_address_changes_is_back_within_30_s(town: Town) -> None:
    """From one address of the LAN to another, as by a new lease. Last: the town is another then."""
    caller, mover = town.peers["port"], town.peers["mover"]
    nat_change.by_lease(town, "mover")

    def back() -> bool:
        told = mover.tell(do="report")
        if not told["nat"]["relays"] or not any("192.168.1.77" in a for a in told["addresses"]):
            return False
        found = caller.tell(do="meet", peer=mover.peer, addresses=told["addresses"], within_s=0.1)
        return bool(found["talks"])

    until(back, 30)


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


def test_who_has_moved_or_slept_is_back_within_30_s_unasked(tmp_path: Path) -> None:
    """Each in a town of its own, both at once: what takes long is to notice."""

    def back_s(change: str) -> float | None:
        (logs := tmp_path / change).mkdir()
        found = nat_change.measure(change, logs, directory=True)
        return found["back_s"]  # type: ignore[no-any-return]

    with ThreadPoolExecutor(2) as pool:
        for change, spent_s in zip(CHANGES, pool.map(back_s, CHANGES), strict=True):
            assert spent_s is not None and spent_s < nat_change.BAR_S, (change, spent_s)


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
