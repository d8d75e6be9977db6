"""Chaos on real processes, a short one: every rule holds, and a broken one is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from potluck.cli.main import main
from potluck.node.process import marked
from potluck.node.testnet.launcher import MARK, LocalSwarm, find_testnet, folder_of, take_down

from .ground import POTLUCK

CHAOS = ("testnet", "chaos", "--seed", "7", "--sessions", "4", "--minutes")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home under which four nodes serve the demo model, each block twice."""
    place = tmp_path_factory.mktemp("home")
    try:
        up = ["testnet", "up", "--nodes", "4", "--replicas", "2", "--home", str(place)]
        assert main(up) == 0
        yield place
    finally:
        take_down(place, grace_s=0)


def seats(net: LocalSwarm) -> dict[str, tuple[int, int, str]]:
    return {seat.name: (seat.start, seat.stop, seat.peer) for seat in net.seats}


def test_faults_are_noticed_by_nobody_who_asks(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six seconds with faults of two kinds. Afterwards the testnet is as it was: the same nodes,
    under the same identities, and no process more."""
    before = seats(find_testnet(home))
    capsys.readouterr()
    code = main([*CHAOS, "0.1", "--kill", "--stall", "--home", str(home), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == 0, told["failures"]
    assert told["holds"] and told["faults"] >= 1 and set(told["kinds"]) <= {"kill", "stall"}
    assert told["finished"] == told["sessions"] >= 4
    assert all(made["covered_s"] is not None for made in told["made"])
    net = find_testnet(home)
    assert seats(net) == before and {seat.state for seat in net.seats} == {"serving"}
    assert {one.pid for one in marked(MARK, str(folder_of(home)))} == {s.pid for s in net.seats}


def test_a_node_that_dies_by_itself_breaks_a_rule_and_the_seed_is_told(home: Path) -> None:
    """Somebody else kills n4 in the middle: no session fails, for n2 has its blocks; but it is one
    death more than was planned, in 3.6 seconds: none."""
    environment = {**os.environ, "POTLUCK_HOME": str(home)}
    process = subprocess.Popen(
        [*POTLUCK, *CHAOS, "0.06"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "answered undisturbed" in line
    find_testnet(home).send("n4", signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out
    assert "BROKEN: n4 died by itself" in out
    last = err.strip().splitlines()[-1]
    assert last.startswith("potluck: n4 died by itself")
    assert last.endswith("again: potluck testnet chaos --seed 7 --minutes 0.06 --sessions 4")


@pytest.mark.parametrize(
    "words, told",
    [
        (("--partition",), "--isolated"),
        (("--kill",), "n4 is dead: potluck testnet restart n4"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_2(
    home: Path, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the test above n4 is dead."""
    capsys.readouterr()
    assert main([*CHAOS, "1", *words, "--home", str(home)]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
