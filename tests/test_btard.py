"""A guarded step among honest members: one outcome, whatever the order, and nobody blamed."""

from __future__ import annotations

import numpy as np
import pytest
from guards import Silent, Table
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.node.runs.btard_numbers import NUMBER


@pytest.mark.parametrize("members", [2, 3, 5, 16])
def test_all_agree_on_the_clipped_mean_and_nobody_is_out(members: int) -> None:
    table = Table(members)
    table.run()
    assert len(table.outcomes()) == 1
    done = table.honest[0].done
    assert done is not None and done.attempts == 1
    assert done.standing.members == tuple(range(members))
    assert table.convicts() == set()
    assert not any(one.faults for one in table.honest)
    assert table.now < 2.0  # no deadline was waited for


def test_with_a_wide_radius_it_is_the_plain_mean() -> None:
    table = Table(4, radius=100.0)
    table.run()
    told = [np.frombuffer(one.contribution(), NUMBER) for one in table.honest]
    assert np.allclose(table.average(table.honest[0]), np.mean(told, 0), rtol=1e-6)


@given(st.integers(0, 2**16), st.sampled_from([3, 4, 7]))
@settings(max_examples=6)
def test_the_coin_differs_with_the_dice_and_the_average_does_not(seed: int, members: int) -> None:
    one, other = Table(members, seed=seed), Table(members, seed=seed)
    for member in other.all.values():
        member.guard._moves._secret = type(member.guard._moves._secret)(b"x" * 32, b"y" * 32)
    one.run()
    other.run()
    assert one.honest[0].done and other.honest[0].done
    assert one.honest[0].done.coin != other.honest[0].done.coin
    assert one.honest[0].done.results == other.honest[0].done.results


def test_a_dead_member_is_out_of_the_step_and_keeps_its_seat() -> None:
    table = Table(5, {2: Silent})
    table.run()
    assert len(table.outcomes()) == 1
    done = table.honest[0].done
    assert done is not None and done.standing.silent == (2,)
    assert done.standing.out_for_good == frozenset()
    assert table.convicts() == set()
