"""Bar 4 of issue H in small: four nodes and one that poisons, as processes."""

from __future__ import annotations

from pathlib import Path

from .weights import ROOT_MOST, measure


def test_neighbours_give_the_weights_and_the_root_gives_them_once(tmp_path: Path) -> None:
    """How much faster is for the bench: here other tests run beside."""
    found = measure(4, 24, tmp_path, mbit=200.0)
    assert found.right and found.root <= ROOT_MOST
    assert found.poisoner_banned_by > 0
    assert found.resumed, found
