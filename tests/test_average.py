"""Averages among strangers: what each rule promises, against plain loops and against liars."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potluck.node.compute.average.outer import KEEP, PULL, Outer
from potluck.node.compute.average.rules import OWN_MOTION, RULES, Pulled, by_groups

seeds = st.integers(0, 2**32 - 1)
crowds = st.sampled_from([(1, 0), (3, 1), (4, 1), (6, 2), (8, 3)])


def draw(seed: int, asked: int, width: int = 5) -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    return (
        torch.randn(width, generator=dice, dtype=torch.float64),
        torch.randn(asked, width, generator=dice, dtype=torch.float64),
    )


def ours_by_loops(mine: Tensor, theirs: Tensor, moved: float, liars: int) -> Tensor:
    """Word by word, for one neighbourhood."""
    shifts = sorted(((each - mine) for each in theirs), key=lambda shift: float(shift.norm()))
    kept = shifts[: len(shifts) - liars]
    radius = min(float(shifts[len(shifts) - 2 * liars - 1].norm()), OWN_MOTION * moved)
    total = torch.zeros_like(mine)
    for shift in kept:
        total += shift * min(1.0, radius / float(shift.norm()))
    return total / (len(kept) + 1)


@given(seeds, crowds, st.floats(0, 4))
def test_ours_is_what_the_formula_says(seed: int, crowd: tuple[int, int], moved: float) -> None:
    mine, theirs = draw(seed, crowd[0])
    got = RULES["ours"](Pulled(mine, theirs, torch.tensor(moved).double(), crowd[1]))
    torch.testing.assert_close(got, ours_by_loops(mine, theirs, moved, crowd[1]))


@given(seeds, crowds, st.floats(0, 4), st.sampled_from([0.0, 1.0, 1e6, math.inf, math.nan]))
def test_nobody_moves_ours_further_than_twice_the_own_motion(
    seed: int, crowd: tuple[int, int], moved: float, size: float
) -> None:
    """Even where all lie."""
    mine, theirs = draw(seed, crowd[0])
    got = RULES["ours"](Pulled(mine, theirs * size, torch.tensor(moved).double(), crowd[1]))
    assert float(got.norm()) <= OWN_MOTION * moved * (1 + 1e-9)


@given(seeds, crowds)
@pytest.mark.parametrize("name", RULES)
def test_the_order_of_the_replies_does_not_matter(
    name: str, seed: int, crowd: tuple[int, int]
) -> None:
    mine, theirs = draw(seed, crowd[0])
    moved = torch.tensor(1.0).double()
    once = RULES[name](Pulled(mine, theirs, moved, crowd[1]))
    again = RULES[name](Pulled(mine, theirs.flip(0), moved, crowd[1]))
    torch.testing.assert_close(once, again)


@given(seeds, crowds)
@pytest.mark.parametrize("name", RULES)
def test_many_neighbourhoods_at_once_are_each_by_itself(
    name: str, seed: int, crowd: tuple[int, int]
) -> None:
    drawn = [draw(seed ^ at, crowd[0]) for at in range(3)]
    moved = torch.tensor([0.5, 1.0, 2.0]).double()
    mine, theirs = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    together = RULES[name](Pulled(mine, theirs, moved, crowd[1]))
    for at, (one, others) in enumerate(drawn):
        torch.testing.assert_close(
            together[at], RULES[name](Pulled(one, others, moved[at], crowd[1]))
        )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", RULES)
def test_what_is_not_finite_moves_nothing(name: str, bad: float) -> None:
    mine, theirs = draw(7, 6)
    theirs[2, 3] = bad
    got = RULES[name](Pulled(mine, theirs, torch.tensor(1.0).double(), 2))
    assert bool(torch.isfinite(got).all())
    for other in (bad, -bad):
        theirs[2] = other
        same = RULES[name](Pulled(mine, theirs, torch.tensor(1.0).double(), 2))
        torch.testing.assert_close(got, same)


@pytest.mark.parametrize("name", RULES)
def test_nobody_answers_and_nothing_moves(name: str) -> None:
    mine, theirs = draw(7, 6)
    got = RULES[name](Pulled(mine, theirs * math.nan, torch.tensor(1.0).double(), 2))
    assert bool((got == 0).all())


@pytest.mark.parametrize("name", [name for name in RULES if name != "mean"])
def test_two_who_are_far_off_are_outvoted_where_the_mean_follows(name: str) -> None:
    mine, theirs = draw(3, 8)
    moved = torch.tensor(1.0).double()
    theirs[:2] = 1e6
    far = max(float(one.norm()) for one in theirs[2:] - mine)
    assert float(RULES[name](Pulled(mine, theirs, moved, 3)).norm()) <= far
    assert float(RULES["mean"](Pulled(mine, theirs, moved, 3)).norm()) > 1e5


@given(seeds)
def test_a_group_is_judged_by_its_own_distances(seed: int) -> None:
    """A lie in the small group, which the noise of the large one would hide."""
    mine, theirs = draw(seed, 6, width=12)
    mine[:10] *= 1e3
    theirs[:, :10] *= 1e3
    theirs[0, 10:] = 50.0
    since = torch.ones(12).double()
    shift = by_groups(RULES["nearest neighbours"], [10, 2])(mine, theirs, since, 2)
    clean = [float(one.norm()) for one in theirs[1:, 10:] - mine[10:]]
    assert float(shift[10:].norm()) <= max(clean)


@pytest.mark.parametrize(
    "sizes",
    [((4,), (3, 5), ()), ((4,), (3, 4), (2,)), ((2, 4), (3, 4), (2,))],
)
def test_shapes_that_do_not_fit_are_refused(sizes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"beside|motions"):
        Pulled(torch.zeros(sizes[0]), torch.zeros(sizes[1]), torch.zeros(sizes[2]), 0)


def test_as_many_liars_as_half_are_refused() -> None:
    with pytest.raises(ValueError, match="3 liars among 6"):
        Pulled(torch.zeros(4), torch.zeros(6, 4), torch.tensor(1.0), 3)


@settings(max_examples=30)
@given(seeds)
def test_weights_alone_give_the_step_that_motion_and_anchor_give(seed: int) -> None:
    """NoLoCo's step, as its paper writes it: for a group that averages all."""
    dice = torch.Generator().manual_seed(seed)
    anchors, weights = torch.randn(2, 4, 6, generator=dice, dtype=torch.float64)
    momentum = torch.zeros(4, 6, dtype=torch.float64)
    outer = Outer.begin(anchors)
    for _ in range(3):
        motion = (weights - anchors).mean(0)
        momentum = KEEP * momentum + PULL * motion + PULL * (anchors.mean(0) - anchors)
        anchors = anchors + momentum
        theirs = torch.stack([weights[torch.arange(4) != at] for at in range(4)])
        shift = RULES["mean"](Pulled(weights, theirs, torch.ones(4).double(), 0))
        outer = outer.step(weights, shift)
        torch.testing.assert_close(outer.anchor, anchors)
        weights = anchors + torch.randn(4, 6, generator=dice, dtype=torch.float64)
