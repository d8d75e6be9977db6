"""Who serves what in a testnet: every block its replicas, and nobody idle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import UserError
from potluck.node.testnet.launcher import (
    lay_out,
)


@given(blocks=st.integers(1, 80), nodes=st.integers(1, 24), replicas=st.integers(1, 6))
def test_every_block_has_its_replicas_and_nobody_is_idle(
    blocks: int, nodes: int, replicas: int
) -> None:
    if replicas > nodes:
        with pytest.raises(UserError, match="--nodes"):
            lay_out(blocks, nodes, replicas)
        return
    spans = lay_out(blocks, nodes, replicas)
    assert len(spans) == nodes
    for block in range(blocks):
        assert sum(start <= block < stop for start, stop in spans) >= replicas
    sizes = {stop - start for start, stop in spans}
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1


def test_four_nodes_with_two_replicas_are_two_stages() -> None:
    assert lay_out(8, 4, 2) == ((0, 4), (4, 8), (0, 4), (4, 8))


def test_nodes_beyond_a_multiple_become_further_replicas() -> None:
    assert lay_out(8, 5, 2) == ((0, 4), (4, 8), (0, 4), (4, 8), (0, 4))


@pytest.mark.parametrize("nodes, replicas", [(0, 1), (1, 0), (-1, -1)])
def test_less_than_one_node_is_refused(nodes: int, replicas: int) -> None:
    with pytest.raises(UserError, match="1 or more"):
        lay_out(8, nodes, replicas)
