"""Every average by its name, and the one that judges by held-out loss: what each promises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potluck.errors import UserError
from potluck.node.compute.average.aggregator import ENOUGH, JUDGED, NAMES, aggregator
from potluck.node.compute.average.rules import OWN_MOTION, RULES, Aggregator, Pulled, by_groups

seeds = st.integers(0, 2**32 - 1)
SIZES = (3, 5)
WIDTH = sum(SIZES)


def draw(seed: int, *shape: int) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=dice, dtype=torch.float64)


def bowl(weights: Tensor) -> Tensor:
    """A loss that is least at zero."""
    return weights.square().sum(-1)


def judged() -> Aggregator:
    return aggregator(JUDGED, SIZES, bowl)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_gives_an_average_of_the_same_form(name: str) -> None:
    mine, theirs, since = draw(1, 4, WIDTH), draw(2, 4, 6, WIDTH), draw(3, 4, WIDTH)
    assert aggregator(name, SIZES, bowl)(mine, theirs, since, 2).shape == (4, WIDTH)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_by_name_is_that_rule_by_groups(name: str) -> None:
    given = (draw(1, WIDTH), draw(2, 6, WIDTH), draw(3, WIDTH), 2)
    expected = by_groups(RULES[name], SIZES)(*given)
    assert torch.equal(aggregator(name, SIZES)(*given), expected)


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(UserError, match=r"'krum': there are mean, median, .*judged"):
        aggregator("krum", SIZES)


def test_judging_needs_something_to_judge_by() -> None:
    with pytest.raises(UserError, match="held-out"):
        aggregator(JUDGED, SIZES)


def around(mine: Tensor, seed: int, radius: float) -> tuple[Tensor, Tensor]:
    """Six others at right angles to each other, and a motion so long that nothing is clipped and so
    short that nobody counts as another's copy: radius / sqrt(2) against 2 and 1/2 of it."""
    theirs = mine + radius * torch.linalg.qr(draw(seed, WIDTH, WIDTH)).Q[:6]
    since = torch.cat([torch.full((size,), radius / 2 / size**0.5) for size in SIZES]).double()
    return theirs, since


@settings(max_examples=30)
@given(seeds)
def test_judged_is_what_the_formula_says(seed: int) -> None:
    """Word by word, for one neighbourhood."""
    mine = draw(seed, WIDTH)
    theirs, since = around(mine, seed + 1, 3.0)
    gains = [max(float(bowl(mine) - bowl((mine + one) / 2)), 0.0) for one in theirs]
    shares = [min(gain / (ENOUGH * max(gains)), 1.0) if gain else 0.0 for gain in gains]
    total = torch.zeros(WIDTH).double()
    for one, share in zip(theirs, shares, strict=True):
        total += share * (one - mine)
    expected = total / (1 + sum(shares))
    torch.testing.assert_close(judged()(mine, theirs, since, 0), expected)


@given(seeds, st.floats(0, 4), st.sampled_from([0.0, 1.0, 1e6, math.inf, math.nan]))
def test_nobody_moves_a_group_further_than_twice_its_own_motion(
    seed: int, motion: float, size: float
) -> None:
    """Even with a judge whom everything pleases."""
    mine, theirs = draw(seed, WIDTH), draw(seed + 1, 6, WIDTH) * size
    since = motion * draw(seed + 2, WIDTH)
    pleased = aggregator(JUDGED, SIZES, lambda weights: -(weights - mine).abs().sum(-1))
    shift = pleased(mine, theirs, since, 0)
    for part, own in zip(shift.split(SIZES), since.split(SIZES), strict=True):
        assert float(part.norm()) <= OWN_MOTION * float(own.norm()) * (1 + 1e-9)


@given(seeds)
def test_a_step_never_makes_a_convex_loss_larger(seed: int) -> None:
    """Whoever lies, and however many: of a bowl no mean of what helps at half way is worse."""
    mine, theirs = draw(seed, WIDTH), 3 * draw(seed + 1, 6, WIDTH)
    shift = judged()(mine, theirs, draw(seed + 2, WIDTH), 0)
    assert float(bowl(mine + shift / 2)) <= float(bowl(mine)) * (1 + 1e-12)


def test_where_all_lie_a_peer_stays_alone() -> None:
    mine = torch.ones(WIDTH).double()
    theirs = mine + torch.rand(6, WIDTH, dtype=torch.float64)  # each further out
    assert bool((judged()(mine, theirs, torch.ones(WIDTH).double(), 0) == 0).all())


def test_four_liars_of_six_are_outvoted_by_the_judge_alone() -> None:
    mine = 10 * torch.ones(WIDTH).double()
    theirs, since = around(mine, 1, 3.0)
    outward = theirs[2:] - mine
    theirs[2:] = mine + outward * torch.sign(outward.sum(-1, keepdim=True))
    inward = theirs[:2] - mine
    theirs[:2] = mine - inward * torch.sign(inward.sum(-1, keepdim=True))
    expected = (theirs[:2] - mine).sum(0) / 3
    torch.testing.assert_close(judged()(mine, theirs, since, 2), expected)
    assert float(bowl(mine + by_groups(RULES["ours"], SIZES)(mine, theirs, since, 2))) > bowl(mine)


def test_a_lie_that_is_just_better_than_nothing_counts_for_nothing() -> None:
    """Three of six help; the others are as far, and turned so that they help a ten-thousandth."""
    mine = 10 * torch.ones(WIDTH).double()
    theirs, since = around(mine, 1, 3.0)
    inward = theirs - mine
    theirs = mine - inward * torch.sign(inward.sum(-1, keepdim=True))
    honest = judged()(mine, theirs[:3], since, 0)
    gain = float(bowl(mine) - bowl((mine + theirs[0]) / 2))
    inside = mine / mine.norm()
    for liar in (3, 4, 5):
        across = theirs[liar] - mine
        across -= (across @ inside) * inside
        least = (float(across.square().sum()) / 4 + gain / 1e4) / float(mine.norm())
        theirs[liar] = mine + across - least * inside
    shift = judged()(mine, theirs, since, 0)
    assert float((shift - honest).norm()) < 0.01 * float(honest.norm())


def test_the_same_word_from_many_counts_once() -> None:
    mine = 10 * torch.ones(WIDTH).double()
    honest, copied = mine - 2 + 0.9 * draw(1, 2, WIDTH), mine - 2 + 0.9 * draw(5, WIDTH)
    since = torch.ones(WIDTH).double() * 2.0
    once = judged()(mine, torch.stack([*honest, copied]), since, 0)
    often = judged()(mine, torch.stack([*honest, *[copied] * 4]), since, 0)
    torch.testing.assert_close(once, often)


def test_own_weights_come_back_as_nobody() -> None:
    """Told its own weights by two of six, ours stands still; judged does not."""
    mine = 10 * torch.ones(WIDTH).double()
    theirs = mine - 2 + 0.5 * draw(1, 6, WIDTH)
    theirs[:2] = mine
    since = 2 * torch.ones(WIDTH).double()
    assert float(aggregator("ours", SIZES)(mine, theirs, since, 2).norm()) == 0.0
    expected = judged()(mine, theirs[2:], since, 0)
    torch.testing.assert_close(judged()(mine, theirs, since, 0), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reply_that_is_not_finite_is_none(bad: float) -> None:
    mine = 10 * torch.ones(WIDTH).double()
    theirs = mine - 2 + 0.5 * draw(1, 6, WIDTH)
    theirs[3, 2] = bad
    since = 2 * torch.ones(WIDTH).double()
    kept = torch.cat((theirs[:3], theirs[4:]))
    torch.testing.assert_close(judged()(mine, theirs, since, 0), judged()(mine, kept, since, 0))


def test_a_judge_that_cannot_tell_takes_nothing() -> None:
    lost = aggregator(JUDGED, SIZES, lambda weights: torch.full(weights.shape[:-1], math.nan))
    shift = lost(draw(1, WIDTH), draw(2, 6, WIDTH), draw(3, WIDTH), 0)
    assert bool((shift == 0).all())


def test_a_median_takes_more_numbers_than_torch_quantile() -> None:
    """16.7 million: an adapter of 2.4 million weights, from 6 peers and oneself."""
    width = 2**24 // 7 + 1
    mine, theirs = torch.zeros(width), torch.ones(1, 1).expand(6, width)
    shift = RULES["median"](Pulled(mine, theirs, torch.tensor(1.0), 2))
    assert bool((shift == 1).all())
