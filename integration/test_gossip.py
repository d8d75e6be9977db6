"""The bars of membership and evidence, in swarms small enough for every run of the tests."""

from __future__ import annotations

import pytest

from potluck.dht.record import REFRESH_S

from .evidence_sim import Accusers, Equivocators
from .false_flood import measure as flood
from .healing_sim import SETTLED_S, World
from .sampling_sim import measure


def test_an_equivocator_is_known_to_99_percent_within_ten_seconds() -> None:
    told = Equivocators(200, 2, seed=1).measure()
    assert all(seconds is not None and seconds < 10 for seconds in told["known_to_99_percent_s"])


def test_liars_who_accuse_and_attest_together_get_nobody_honest_banned() -> None:
    """48 peers in 8 parts: each part has four honest ones, and whoever computes the few true
    accusations again bans the liar."""
    told = Accusers(48, 3, seed=1).measure()
    assert told["honest_banned"] == 0 and told["false_accusations"] == 14
    assert told["bans"]["liar, recomputed"] >= 4


@pytest.mark.parametrize("seed", [1, 2])
def test_after_a_parting_comparing_alone_makes_all_registries_equal_within_a_refresh(
    seed: int,
) -> None:
    told = World(60, "quiet", seed=seed).measure()
    assert told["others_before"] == 21
    assert told["alike_after_s"] <= REFRESH_S
    assert told["lies_refused"] > 0


def test_after_a_parting_all_are_equal_as_soon_as_nothing_new_is_on_its_way() -> None:
    """Someone whom the mesh did not reach has met others within two rounds."""
    told = World(60, "refreshing", seed=1).measure()
    assert told["alike_after_s"] <= REFRESH_S - SETTLED_S + 10


def test_a_flood_wins_no_view_and_a_crowd_in_one_network_no_samples() -> None:
    """200 peers, 40 slots: at the end no view is more than 0.6 liars (0.30 of the peers; one view
    deviates by 0.07), and the crowd, 18.8 % of the peers, has at most 1.2 % of the samples."""
    spread = measure("spread", 200, 40, 60, seed=1)
    last = spread["liars_share_of_views"][60]
    assert last["largest"] < 0.6 and last["isolated"] == 0
    crowd = measure("crowd", 200, 40, 75, seed=1)
    assert crowd["samples"] > 1000 and crowd["liars_share_of_samples"] <= 0.012


def test_no_record_and_no_item_of_evidence_that_is_false_is_taken() -> None:
    """All kinds in turn; the bar is a million."""
    found = flood(3000)
    assert found["taken_which"] == {} and found["hold_what_they_held"]
    assert found["said"] > 2990 and len(found["kinds"]) == 49
    assert found["take_what_is_true"]
