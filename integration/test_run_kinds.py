"""Runs of each kind by real processes: whoever began them is killed, and others come late."""

from __future__ import annotations

import re
from pathlib import Path

from .run_group import Group, Member, Wanted, open_group

PATIENCE_S = 600.0  # five processes on a machine that does other things too
# guess: gather_s is several times what one member begins a step after another on such a machine,
# and as long as a step without the dead takes
TIMING = "radius = 1.0\ngather_s = 30\nphase_s = 3\ncheck_s = 20\nvalidators = 2"

FETCHED = re.compile(r"a state was fetched .*of=(\d+)")


def adapter_of(member: Member) -> bytes:
    """Once it is there: at its end, which those who stay for others have not come to."""
    file = member.home / "adapter" / "adapter_model.safetensors"
    member.until(lambda one: file.exists(), "its adapter was there")
    return file.read_bytes()


def test_a_guarded_group_goes_on_without_its_first_and_takes_it_back(tmp_path: Path) -> None:
    """Two stay for whoever comes back, since more than can lie have to tell it where they are."""
    wanted = Wanted(kind="guarded", epochs=8, steps=2)
    with open_group(tmp_path, wanted, patience_s=PATIENCE_S) as group:
        group.seats(["a", "b", "c", "d"], TIMING)
        first = group.start("a", peers=3)
        stay = [
            group.start(name, first.address, peers=3, linger_s=PATIENCE_S) for name in ("b", "c")
        ]
        others = [*stay, group.start("d", first.address, peers=3)]
        stay[0].reaches(2)
        first.kill()
        stay[0].until(
            lambda one: one.events("epoch")[-1]["peers"] == 2, "a step without the first was over"
        )
        again = group.start("a", stay[0].address)
        others[-1].finishes()
        for one in others:
            one.reaches(wanted.epochs)
            told = one.events("epoch")
            assert [epoch["epoch"] for epoch in told] == list(range(1, wanted.epochs + 1))
            assert "convicted" not in one.complaints()
        assert len({adapter_of(one) for one in others}) == 1, "equal to the bit"
        _came_back(again, group)


def _came_back(again: Member, group: Group) -> None:
    """Killed early in a step it keeps its seat; late in one, it is told that it is lost."""
    if again.process.wait(group.patience_s) == 0:
        assert adapter_of(again) == adapter_of(group.members["b"])
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


def test_a_group_takes_in_a_latecomer_that_fetches_the_state_from_all_of_them(
    tmp_path: Path,
) -> None:
    """Of 4 bytes for each of a million numbers and its momentum there are some thirty pieces."""
    wanted = Wanted(kind="group", rank=64, epochs=5000, steps=4, epoch_s=20.0)  # it is cut short
    options = ("--log-level", "debug")
    with open_group(tmp_path, wanted, patience_s=PATIENCE_S, options=lambda name: options) as group:
        first = group.start("a", peers=2)
        others = [group.start(name, first.address, peers=2) for name in ("b", "c")]
        first.reaches(3)
        late = group.start("d", others[0].address, peers=3)
        late.until(lambda one: bool(one.events("epoch")), "an epoch was over")
        assert late.events("epoch")[0]["epoch"] > 3, "it began where the others were"
        told = FETCHED.search(late.all_complaints())
        assert told is not None and int(told[1]) >= 2, "from several of them"
        newest = late.events("epoch")[-1]["epoch"]
        for one in (first, *others):
            one.reaches(newest + 1)
            assert "banned" not in one.all_complaints()
