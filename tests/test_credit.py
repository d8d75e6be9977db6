"""Credit: what really came in is all that can be used, whoever claims it, however many they are."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from receipts import key
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow

from potluck.crypto.codec import decode, encode
from potluck.swarm.credit import HALF_S, Book, Credit
from potluck.swarm.tally import first_of, next_of

ME = key("me").peer_id
PEERS = [key(f"peer{i}").peer_id for i in range(6)]
edges = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 1000)), max_size=30)


def give(
    credit: Credit, giver: str, taker: str, work: float, *, took: float = 0.0, now: float = 0.0
) -> None:
    tally = next_of(
        first_of(giver, taker), giver, boot=1, gave=work, took=took, now=now, since=bytes(32)
    )
    credit.settle(tally, now)


def world(told: list[tuple[int, int, int]]) -> tuple[Credit, dict[tuple[str, str], int]]:
    """A book of these (giver, taker, work); 6 is me. Of a pair the largest sums count."""
    names = [*PEERS, ME]
    credit = Credit(ME, 0.0)
    sums: dict[tuple[str, str], int] = {}
    for giver, taker, work in told:
        if giver != taker:
            pair = names[giver], names[taker]
            sums[pair] = max(sums.get(pair, 0), work)
            give(credit, *pair, work)
    return credit, sums


@given(edges)
def test_credit_is_the_largest_flow_of_two_hops(told: list[tuple[int, int, int]]) -> None:
    """Against scipy's maximum flow, over the net claims of the one who asks."""
    credit, sums = world(told)
    for peer in PEERS:
        capacity = np.zeros((7, 7), dtype=np.int32)
        here = PEERS.index(peer)
        for i, other in enumerate(PEERS):
            capacity[i, 6] = sums.get((other, ME), 0)
            net = sums.get((peer, other), 0) - sums.get((other, peer), 0)
            capacity[here, i] = max(0, net)
        best = maximum_flow(csr_matrix(capacity), here, 6).flow_value
        assert credit.credit(peer, 0.0) == pytest.approx(best)


@given(edges, st.sets(st.integers(0, 5), min_size=1), st.integers(0, 1000))
def test_a_gang_uses_no_more_than_it_gave_or_is_owed_by_honest_peers(
    told: list[tuple[int, int, int]], gang: set[int], seed: int
) -> None:
    """Whatever its members claim of each other; at once by weights, or by spending in any order."""
    credit, sums = world(told)
    members = [PEERS[i] for i in sorted(gang)]
    others = [peer for peer in PEERS if peer not in members]
    bound = float(sum(sums.get((peer, ME), 0) for peer in members))
    for honest in others:
        owed = sum(
            max(0, sums.get((peer, honest), 0) - sums.get((honest, peer), 0)) for peer in members
        )
        bound += min(owed, sums.get((honest, ME), 0))
    assert sum(credit.weights(members, 0.0).values()) <= bound * (1 + 1e-9) + 1e-6
    dice = Random(seed)
    used = 0.0
    for _ in range(40):
        work = dice.uniform(0, 500)
        used += work - credit.spend(dice.choice(members), work, 0.0)
    assert used <= bound * (1 + 1e-9) + 1e-6


def test_splitting_oneself_gains_nothing() -> None:
    """One who gave 1,000; the same as twenty that gave 50 each; the same behind twenty Sybils."""
    rival = key("rival").peer_id
    sybils = [key(f"sybil{i}").peer_id for i in range(20)]
    shares = []
    for way in ("one", "parts", "behind"):
        credit = Credit(ME, 0.0)
        give(credit, rival, ME, 1000)
        if way == "parts":
            for sybil in sybils:
                give(credit, sybil, ME, 50)
        else:
            give(credit, sybils[0], ME, 1000)
            for sybil in sybils[1:] if way == "behind" else []:
                give(credit, sybil, sybils[0], 10**9)
        peers = sybils[:1] if way == "one" else sybils
        weights = credit.weights([rival, *peers], 0.0)
        shares.append(sum(weights[peer] for peer in peers) / sum(weights.values()))
    assert shares == pytest.approx([0.5, 0.5, 0.5])


def test_credit_through_a_helper_is_spent_once() -> None:
    """A Sybil is used up and thrown away; the next one finds nothing left."""
    credit = Credit(ME, 0.0)
    give(credit, PEERS[0], ME, 100)
    for sybil in PEERS[1:]:
        give(credit, sybil, PEERS[0], 10**9)
    assert credit.credit(PEERS[1], 0.0) == pytest.approx(100)
    assert credit.spend(PEERS[1], 100, 0.0) == pytest.approx(0)
    assert all(credit.credit(peer, 0.0) == pytest.approx(0) for peer in PEERS)
    assert credit.spend(PEERS[2], 50, 0.0) == pytest.approx(50)


def test_credit_fades_by_half_in_a_week_and_survives_a_restart() -> None:
    credit = Credit(ME, 0.0)
    give(credit, PEERS[0], ME, 100)
    give(credit, PEERS[1], PEERS[0], 30)
    credit.spend(PEERS[1], 10, 0.0)
    week = HALF_S
    assert credit.credit(PEERS[0], week) == pytest.approx(45)
    assert credit.credit(PEERS[1], week) == pytest.approx(10)
    again = Credit(ME, week, decode(encode(credit.keep(week)), Book))
    for peer in PEERS:
        assert again.credit(peer, week) == pytest.approx(credit.credit(peer, week))
    give(again, PEERS[0], ME, 160, now=2 * week)  # the sum grew by 60
    assert again.credit(PEERS[0], 2 * week) == pytest.approx(45 / 2 + 60)
    for peer in PEERS[1:]:
        assert again.credit(peer, 3 * week) == pytest.approx(credit.credit(peer, 3 * week))


@pytest.mark.parametrize("kept", [False, True])
def test_a_clock_that_was_ahead_makes_nothing_worth_more(kept: bool) -> None:
    """Four years ahead for a while, then right again: what was given meanwhile is worth itself."""
    credit = Credit(ME, 0.0)
    give(credit, PEERS[0], ME, 100)
    ahead = 200 * HALF_S
    give(credit, PEERS[1], ME, 50, now=ahead)
    credit.spend(PEERS[1], 20, ahead)
    if kept:
        credit = Credit(ME, 0.0, credit.keep(ahead))
    assert credit.credit(PEERS[1], 1.0) == pytest.approx(30)
    give(credit, PEERS[2], ME, 50, now=2.0)
    assert credit.credit(PEERS[2], HALF_S + 2) == pytest.approx(25)
    assert credit.credit(PEERS[1], HALF_S + 2) == pytest.approx(15, rel=1e-3)


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 1e11)), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_tallies_of_any_time_in_any_order_and_many_times_are_worth_no_more_than_was_given(
    told: list[tuple[int, float]], dice: Random
) -> None:
    """Signed years ahead or long ago: as of now at most, and faded where it is said to be old."""
    now = 2e9
    tallies = [
        next_of(
            first_of(PEERS[0], ME), PEERS[0], boot=1, gave=gave, took=0, now=at_s, since=bytes(32)
        )
        for gave, at_s in told
    ]
    credit = Credit(ME, now)
    for tally in dice.sample(tallies * 3, 3 * len(tallies)):
        credit.settle(tally, now)
        assert credit.credit(PEERS[0], now) <= max(gave for gave, _ in told) * (1 + 1e-9)
    if all(at_s >= now for _, at_s in told):
        assert credit.credit(PEERS[0], now) == pytest.approx(max(gave for gave, _ in told))
    assert credit.credit(PEERS[0], now + HALF_S) <= max(gave for gave, _ in told) / 2 * (1 + 1e-9)


def test_an_old_tally_or_the_same_again_adds_nothing() -> None:
    credit = Credit(ME, 0.0)
    for work in (100, 100, 40):
        give(credit, PEERS[0], ME, work)
    assert credit.credit(PEERS[0], 0.0) == pytest.approx(100)
    give(credit, PEERS[1], ME, 100, now=0.0)
    late = Credit(ME, HALF_S)
    late.settle(
        next_of(
            first_of(PEERS[0], ME), PEERS[0], boot=1, gave=80, took=0, now=0.0, since=bytes(32)
        ),
        HALF_S,
    )
    assert late.credit(PEERS[0], HALF_S) == pytest.approx(40)


def test_standing_is_signed_and_bounded() -> None:
    credit = Credit(ME, 0.0)
    give(credit, PEERS[0], ME, 3600)
    give(credit, ME, PEERS[1], 3600)
    assert credit.standing(PEERS[0], 0.0, 3600) == pytest.approx(0.5)
    assert credit.standing(PEERS[1], 0.0, 3600) == pytest.approx(-0.5)
    assert credit.standing(PEERS[2], 0.0, 3600) == 0
    assert credit.owed(PEERS[0], 0.0) == (3600, 0)


def test_what_no_helper_has_a_part_in_is_not_worth_remembering() -> None:
    credit = Credit(ME, 0.0)
    give(credit, PEERS[0], ME, 100)
    base = next_of(
        first_of(PEERS[1], PEERS[2]), PEERS[1], boot=1, gave=1e9, took=0, now=0.0, since=bytes(32)
    )
    owed = next_of(
        first_of(PEERS[1], PEERS[0]), PEERS[1], boot=1, gave=9, took=0, now=0.0, since=bytes(32)
    )
    assert credit.matters(owed) and not credit.matters(base)


def test_a_flood_of_claims_does_not_drive_out_the_useful_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A helper that gave next to nothing signs claims beyond all measure; another's stay."""
    monkeypatch.setattr("potluck.swarm.credit.EDGES_MAX", 64)
    credit = Credit(ME, 0.0)
    give(credit, PEERS[0], ME, 100)
    give(credit, PEERS[1], ME, 0.001)
    give(credit, PEERS[2], PEERS[0], 50)
    for number in range(100):
        give(credit, key(f"sybil{number}").peer_id, PEERS[1], 1e12)
    assert credit.credit(PEERS[2], 0.0) == pytest.approx(50)
    assert len(credit.keep(0.0).edges) <= 64


def test_what_is_remembered_of_strangers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takers that we gave next to nothing; claims of those that nobody hears of again; and turns on
    a helper's credit. What helpers gave stays, and what was used of it stays used."""
    monkeypatch.setattr("potluck.swarm.credit.EDGES_MAX", 64)
    credit = Credit(ME, 0.0)
    give(credit, PEERS[0], ME, 100)
    used = 0.0
    for number in range(100):
        sybil = key(f"sybil{number}").peer_id
        give(credit, ME, sybil, 0.001)
        give(credit, PEERS[1], key(f"taker{number}").peer_id, 1)
        give(credit, sybil, PEERS[0], 1)
        used += 0.5 - credit.spend(sybil, 0.5, 0.0)
    assert used > 40
    assert len(credit._total) <= 64 and len(credit._through) <= 64
    assert set(credit._gave) == {taker for _, taker in credit._total}
    for after in (credit, Credit(ME, 0.0, credit.keep(0.0))):
        assert after.credit(PEERS[0], 0.0) == pytest.approx(100 - used)
