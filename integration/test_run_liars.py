"""A run of real processes, one of which lies: what it tells is left out, and the others learn."""

from __future__ import annotations

from pathlib import Path

from .run_group import Wanted, open_group
from .runs import synchronous

PATIENCE_S = 600.0  # four processes on a machine that does other things too
WORSE_MAX = 1.02  # bar F5, where three of ten lie
CHARACTERS = 20_000
# no gate: only the rule stands between the liar and the others' weights
WANTED = Wanted(
    steps=8, epochs=6, rate=3e-3, aggregator="judged", asked=3, liars=1, more="gate = 0.0"
)
LIAR = "d"


def test_a_member_that_lies_is_pulled_from_and_moves_nobody(tmp_path: Path) -> None:
    """Ten times back along what was learned. A mean of the four would end above its beginning."""
    lies = {LIAR: "sign flip"}
    with open_group(
        tmp_path, WANTED, characters=CHARACTERS, lies=lies, patience_s=PATIENCE_S
    ) as group:
        first = group.start("a", peers=3)
        address = first.address
        honest = [first, *(group.start(name, address, peers=3) for name in ("b", "c"))]
        liar = group.start(LIAR, address, peers=3)
        ends = [one.finishes()["held_out"] for one in honest]
        liar.finishes()
        assert "THIS MEMBER LIES" in liar.complaints()
        told = [one.events("epoch") for one in honest]
        names = [one.started()["peer"] for one in honest]
    assert all(epochs[-1]["epoch"] == WANTED.epochs for epochs in told)
    # whoever has pulled from three others has pulled from the liar
    assert all(max(epoch["peers"] for epoch in epochs) == 3 for epochs in told)
    before, beside = synchronous(WANTED, names, CHARACTERS)
    assert beside < before
    assert max(ends) <= WORSE_MAX * beside
