"""What liars tell: each attack does what its name says, and one peer alone can carry it out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from potluck.errors import UserError
from potluck.node.compute.average.aggregator import ONCE, aggregator
from potluck.node.compute.average.attacks import (
    APART,
    ATTACKS,
    CONSTANT,
    DELAY,
    DISSENSUS,
    FLIP,
    IPM,
    PLANS,
    Scene,
    adaptive,
    flip_labels,
)
from potluck.node.compute.average.liar import KNOWN_MAX, Liar

HONEST, LIARS, WIDTH, ASKED = 12, 4, 40, 6
GOAL = torch.full((WIDTH,), 10.0)


def far_from_goal(weights: Tensor) -> Tensor:
    return (weights - GOAL).square().sum(-1)


def scene(rule: str = "ours", seed: int = 1) -> Scene:
    """Peers that gained one towards the goal in each weight, under noise of three."""
    dice = torch.Generator().manual_seed(seed)
    anchors = 0.1 * torch.randn(HONEST, WIDTH, generator=dice)
    honest = anchors + 1.0 + 3.0 * torch.randn(HONEST, WIDTH, generator=dice)
    past = anchors - 4.0
    rules = aggregator(rule, (WIDTH,), far_from_goal)
    return Scene(honest, anchors, past, LIARS, rules, 2, ASKED, dice, far_from_goal)


def after(found: Scene, lies: Tensor) -> float:
    """How far from the goal the victims are who each pulled four honest peers and two liars."""
    beside = torch.arange(1, ASKED - 1)
    others = found.honest[(torch.arange(HONEST).unsqueeze(1) + beside) % HONEST]
    theirs = torch.cat((others, lies[:, :2]), 1)
    since = found.honest - found.anchors
    shift = found.aggregate(found.honest, theirs, since, found.believed)
    return float(far_from_goal(found.honest + shift).mean())


@pytest.mark.parametrize("name", ATTACKS)
def test_every_liar_tells_every_victim_a_vector(name: str) -> None:
    told = ATTACKS[name](scene())
    assert told.shape == (HONEST, LIARS, WIDTH)
    assert bool(torch.isfinite(told).all()) == (name != "withheld")


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_dice_tell_the_same(name: str) -> None:
    told, again = ATTACKS[name](scene()), ATTACKS[name](scene())
    torch.testing.assert_close(told, again, equal_nan=True)


@pytest.mark.parametrize(("name", "back"), [("sign flip", FLIP), ("inner product", IPM)])
def test_some_undo_what_was_gained(name: str, back: float) -> None:
    found = scene()
    told = ATTACKS[name](found)[0, 0] - found.anchors.mean(0)
    torch.testing.assert_close(told, -back * found.progress)


def test_a_little_is_enough_stays_among_the_honest() -> None:
    """12 honest, 4 liars: 5 of the honest must seem worse, so that 7 of 12 are nearer the mean."""
    found = scene()
    told = ATTACKS["a little is enough"](found)[0, 0]
    away = (found.honest.mean(0) - told) / found.honest.std(0, correction=0)
    torch.testing.assert_close(away, torch.full_like(away, 0.2104), atol=1e-3, rtol=0)


def test_dissensus_drives_each_from_the_others() -> None:
    found = scene()
    away = found.honest - found.honest.mean(0)
    told = ATTACKS["dissensus"](found)[:, 0] - found.honest
    torch.testing.assert_close(told, DISSENSUS * away)


def test_noise_differs_by_liar_and_victim() -> None:
    told = ATTACKS["noise"](scene()).flatten(0, 1)
    assert float(torch.pdist(told).min()) > 1.0


def test_a_constant_is_a_thousand_gains_long_and_always_the_same_way() -> None:
    found = scene()
    told = ATTACKS["constant"](found)[0, 0] - found.honest.mean(0)
    torch.testing.assert_close(told.norm(), CONSTANT * found.progress.norm())
    torch.testing.assert_close(told, told[0].expand(WIDTH))


def test_some_tell_what_was_right_long_ago() -> None:
    found = scene()
    torch.testing.assert_close(ATTACKS["delayed"](found)[3, 2], found.past.mean(0))
    for told in ATTACKS["copied work"](found).flatten(0, 1):
        assert any(torch.equal(told, one) for one in found.past)


def test_mimics_all_say_what_one_honest_peer_says() -> None:
    found = scene()
    told = ATTACKS["mimicry"](found).flatten(0, 1)
    assert all(torch.equal(one, found.honest[0]) for one in told)


def test_an_echo_tells_each_its_own() -> None:
    found = scene()
    assert torch.equal(ATTACKS["echo"](found)[:, 1], found.honest)


def test_two_faces_tell_half_the_opposite() -> None:
    found = scene()
    told = ATTACKS["two faces"](found)[:, 0] - found.honest.mean(0)
    torch.testing.assert_close(told[0], -told[1])


def test_flipped_labels_flip_back() -> None:
    labels = torch.arange(50)
    flipped = flip_labels(labels, 50)
    assert torch.equal(flip_labels(flipped, 50), labels)
    assert int((flipped == labels).sum()) == 0


@pytest.mark.parametrize("rule", ["mean", "median", "nearest neighbours", "CS+", "ours", "judged"])
def test_the_adaptive_leaves_victims_worse_than_honest_peers_would(rule: str) -> None:
    found = scene(rule)
    honest = found.honest.roll(3, 0).unsqueeze(1).expand(-1, LIARS, -1)
    assert after(found, adaptive(found)) > after(found, honest)


def test_the_adaptive_undoes_a_mean_altogether() -> None:
    found = scene("mean")
    assert after(found, adaptive(found)) > 100 * float(far_from_goal(found.honest).mean())


def test_without_a_loss_the_adaptive_goes_back_along_what_was_gained() -> None:
    found = replace(scene("mean"), harm=None)
    moved = (adaptive(found)[:, 0] - found.honest) @ found.progress
    assert float(moved.max()) < 0


def test_noisy_plans_keep_liars_further_apart_than_copies() -> None:
    """Each liar's noise is APART of the own motion, at right angles to the others'."""
    assert any(plan.noisy for plan in PLANS)
    assert APART * math.sqrt(2) > ONCE


def liar(attack: str, rule: str = "ours") -> Liar:
    rules = aggregator(rule, (WIDTH,), far_from_goal)
    return Liar(attack, rules, liars=LIARS, asked=ASKED, believed=2, seed=1, harm=far_from_goal)


@pytest.mark.parametrize("name", ATTACKS)
def test_one_liar_among_real_peers_answers_from_what_it_heard(name: str) -> None:
    found = scene()
    one = liar(name)
    one.begin(found.anchors[0])
    for number, weights in enumerate(found.honest):
        one.heard(f"peer {number}", weights)
    told = one.reply("peer 3")
    if name == "withheld":
        assert told is None
    else:
        assert told is not None
        assert told.shape == (WIDTH,)


def test_a_liar_tells_a_victim_its_own_lie() -> None:
    found = scene()
    one = liar("echo")
    one.begin(found.anchors[0])
    for number, weights in enumerate(found.honest):
        one.heard(f"peer {number}", weights)
    told = one.reply("peer 3")
    assert told is not None
    assert torch.equal(told, found.honest[3])


def test_a_liar_that_heard_nothing_says_nothing() -> None:
    one = liar("sign flip")
    assert one.reply("peer 3") is None
    one.begin(torch.zeros(WIDTH))
    assert one.reply("peer 3") is None


def test_a_liar_remembers_what_was_long_ago_and_no_longer() -> None:
    one = liar("delayed")
    one.begin(torch.zeros(WIDTH))
    for epoch in range(DELAY + 2):
        one.heard("peer", torch.full((WIDTH,), float(epoch)))
    told = one.reply("peer")
    assert told is not None
    assert float(told[0]) == 2.0


def test_a_liar_forgets_those_it_heard_longest_ago() -> None:
    one = liar("echo")
    one.begin(torch.zeros(WIDTH))
    for number in range(KNOWN_MAX + 1):
        one.heard(str(number), torch.full((WIDTH,), float(number)))
    first, second = one.reply("0"), one.reply("1")
    assert first is not None
    assert second is not None
    assert float(first[0]) == KNOWN_MAX
    assert float(second[0]) == 1.0


def test_an_unknown_attack_is_told_what_there_is() -> None:
    with pytest.raises(UserError, match=r"'gamma': there are sign flip, .*adaptive"):
        liar("gamma")
