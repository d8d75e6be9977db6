"""Runs of each kind by real processes: whoever began them is killed, and others come late."""

from __future__ import annotations

from pathlib import Path

from .run_group import Group, Member, Wanted, open_group

PATIENCE_S = 600.0  # five processes on a machine that does other things too
TIMING = "radius = 1.0\ngather_s = 60\nphase_s = 3\ncheck_s = 20\nvalidators = 2"


def adapters(members: list[Member]) -> set[bytes]:
    return {(one.home / "adapter" / "adapter_model.safetensors").read_bytes() for one in members}


def test_a_guarded_group_goes_on_without_its_first_and_takes_it_back(tmp_path: Path) -> None:
    wanted = Wanted(kind="guarded", epochs=10, steps=2)
    with open_group(tmp_path, wanted, patience_s=PATIENCE_S) as group:
        names = ["a", "b", "c", "d"]
        group.seats(names, TIMING)
        first = group.start("a", peers=3)
        others = [group.start(name, first.address, peers=3) for name in names[1:]]
        others[0].reaches(2)
        first.kill()
        others[0].reaches(4)
        again = group.start("a", others[1].address)
        for one in others:
            one.finishes()
            told = one.events("epoch")
            assert [epoch["epoch"] for epoch in told] == list(range(1, 11))
            assert "convicted" not in one.complaints()
        assert len(adapters(others)) == 1, "equal to the bit"
        _came_back(again, group)


def _came_back(again: Member, group: Group) -> None:
    """Killed early in a step it keeps its seat; late in one, it is told that it is lost."""
    if again.process.wait(group.patience_s) == 0:
        assert adapters([again]) == adapters([group.members["b"]])
    else:
        assert "our seat in this guarded group is lost" in again.complaints()


def test_a_run_by_scalars_goes_on_without_its_first_and_takes_in_another(tmp_path: Path) -> None:
    """One stays for whoever comes late: a process may take longer to start than a run to end."""
    table = "[exchange.scalar]\nleast = 2\nround_s = 10\ntrim_percent = 0"
    wanted = Wanted(kind="scalar", more=table, epochs=6, steps=8, rate=1e-4)
    with open_group(tmp_path, wanted, patience_s=PATIENCE_S) as group:
        first = group.start("a", peers=2)
        stays = group.start("b", first.address, peers=2, linger_s=PATIENCE_S)
        other = group.start("c", first.address, peers=2)
        stays.reaches(1)
        first.kill()
        late = group.start("d", stays.address, peers=1)
        again = group.start("a", stays.address, peers=1)
        for one in (other, late, again):
            one.finishes()
            assert one.events("epoch")[-1]["epoch"] == 6
            assert "no voice" not in one.complaints()
        stays.reaches(6)
