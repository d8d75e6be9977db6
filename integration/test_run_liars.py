"""A run of processes of which one lies, beside the same run without it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from potluck.node.runs.checkpoint import FOLDER

from .run_group import Member, Wanted, open_group

HONEST = ("a", "b", "c")
LIAR = "liar"
# so few that most of the time goes into the beginnings of processes; so many that all gain by them
WANTED = Wanted(batch=2, steps=8, epochs=6, gate_sequences=8)
PATIENCE_S = 300.0
NEAR = 0.02  # issue F's, with three tenths lying; here it is a quarter


def losses(folder: Path, *, lie: str = "") -> tuple[list[Member], list[float]]:
    """The honest members, and the loss of each at the end on the same held-out sequences."""
    lies = {LIAR: lie} if lie else {}
    with open_group(folder, WANTED, lies=lies, patience_s=PATIENCE_S) as group:
        peers = len(HONEST) + len(lies) - 1
        first = group.start(HONEST[0], peers=peers)
        address = first.address
        others = [group.start(name, address, peers=peers) for name in (*HONEST[1:], *lies)]
        honest = [first, *others[: len(HONEST) - 1]]
        found = [float(one.finishes()["held_out"]) for one in honest]
        if lies:
            assert "THIS MEMBER LIES" in others[-1].all_complaints()
        return honest, found


def gains(member: Member) -> bool:
    """On the sequences that each of its exchanges is judged by."""
    told = [float(epoch["held_out"]) for epoch in member.events("epoch")]
    return told[-1] < told[0]


@pytest.mark.slow
def test_one_liar_of_four_costs_the_honest_next_to_nothing(tmp_path: Path) -> None:
    """The honest have the same keys in both runs, and so train on the same sequences. Averaged
    plainly, and with no gate, the worst of them ended at 1.04 times the loss of the clean run."""
    clean, lied = tmp_path / "clean", tmp_path / "lied"
    clean.mkdir()
    honest, without = losses(clean)
    assert all(gains(one) for one in honest), "there is something to lose"
    for name in HONEST:
        kept = lied / name / FOLDER / "tales"
        kept.mkdir(parents=True)
        shutil.copy(clean / name / FOLDER / "tales" / "identity.key", kept)
    honest, beside = losses(lied, lie="sign flip")
    assert all(gains(one) for one in honest)
    assert max(beside) <= (1 + NEAR) * max(without)
