"""Judged weights: on a peer's own held-out text, on sequences that nobody can foresee."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
import torch

from potluck.errors import TransportError, UserError
from potluck.node.compute.average.flat import Flat
from potluck.node.compute.mixing import Mixer, Vector
from potluck.node.compute.panel import TOKENS, Panel
from potluck.swarm.run.shards import Split

FLAT = Flat(("a", "b"), ((2, 3), (4,)))
BEST = torch.full((10,), 3.0)


def far(weights: Vector, rows: Sequence[int]) -> float:
    """The loss is the distance to where all would go."""
    return float((weights - BEST).norm())


def panel_of(seen: list[tuple[int, ...]] | None = None, *, rows: int = 100) -> Panel:
    def loss_of(weights: Vector, drawn: Sequence[int]) -> float:
        if seen is not None:
            seen.append(tuple(drawn))
        return far(weights, drawn)

    return Panel(loss_of, range(rows), 64, Random(1))


def mixer(panel: Panel | None) -> Mixer:
    return Mixer(FLAT, torch.zeros(10), panel, rule="judged", asked=3, liars=1, bits=32)


def test_it_draws_other_sequences_for_each_exchange_and_the_same_within_one() -> None:
    seen: list[tuple[int, ...]] = []
    one = mixer(panel_of(seen))
    for _ in range(5):
        seen.clear()
        one.mixed(torch.ones(10), [BEST, torch.full((10,), -1.0)])
        assert len(seen) == 3 and len({*seen}) == 1  # its own, and each of theirs
        assert len({*seen[0]}) == len(seen[0]) == TOKENS // 64
    drawn = set()
    for _ in range(5):
        seen.clear()
        one.mixed(torch.ones(10), [BEST])
        drawn.add(seen[0])
    assert len(drawn) > 1


def test_who_has_little_held_out_judges_by_all_of_it() -> None:
    seen: list[tuple[int, ...]] = []
    mixer(panel_of(seen, rows=2)).mixed(torch.ones(10), [BEST])
    assert sorted(seen[0]) == [0, 1]


def test_losses_have_the_shape_of_what_is_asked() -> None:
    panel = panel_of()
    panel.convene()
    assert panel(torch.zeros(10)).shape == ()
    assert panel(torch.zeros(2, 3, 10)).shape == (2, 3)


def test_what_makes_the_own_loss_worse_counts_for_nothing_however_many_say_it() -> None:
    one = mixer(panel_of())
    mine = torch.ones(10)
    alone = one.alone(mine).anchor
    lie, good = torch.full((10,), -1.0), torch.full((10,), 2.0)
    assert torch.equal(one.mixed(mine, [lie, lie, lie]).anchor, alone)
    taken = one.mixed(mine, [lie, good, lie]).anchor
    torch.testing.assert_close(taken, one.mixed(mine, [good]).anchor)
    assert far(taken, ()) < far(alone, ())


def test_whoever_has_nothing_to_judge_by_is_told_before_the_first_step() -> None:
    with pytest.raises(UserError, match="needs a held-out part"):
        mixer(None)


def test_a_loss_that_nobody_computes_changes_nothing() -> None:
    def loss_of(weights: Vector, drawn: Sequence[int]) -> float:
        raise TransportError("nobody is there")

    one = mixer(Panel(loss_of, range(9), 64, Random(1)))
    before = one.carried()
    with pytest.raises(TransportError):
        one.mixed(torch.ones(10), [BEST])
    assert all(torch.equal(before[name], kept) for name, kept in one.carried().items())


@pytest.mark.parametrize("count", [2, 3, 7, 40, 1000])
def test_what_is_judged_by_is_not_what_losses_are_told_of(count: int) -> None:
    split = Split.of(count, 0.1, 3)
    told, judges = split.held_out(split.scored), split.judging()
    assert judges and {*told} | {*judges} == {*split.held_out(count)}
    assert split.held == 1 or not {*told} & {*judges}
