"""A testnet's processes: started, found again and ended, whatever happened in between.

The nodes here are pretended: they write node.json as a node does, and then sleep.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from potluck.cli.main import main
from potluck.errors import PotluckError, UserError
from potluck.node.process import last_lines, marked, process_id
from potluck.node.testnet.launcher import (
    MARK,
    Plan,
    find_testnet,
    folder_of,
    open_testnet,
    start_testnet,
    take_down,
)
from potluck.node.testnet.lies import LIE, parse_lies
from potluck.node.testnet.logs import LOG
from potluck.node.testnet.roster import STATE, Roster

PRETENDED = """
import json, os, pathlib, signal, sys
home = pathlib.Path(sys.argv[sys.argv.index("--home") + 1])
if f"fail:{home.name}" in sys.argv:
    sys.exit("potluck: the oven is cold")
if f"bad:{home.name}" in sys.argv:
    print("potluck: the soup is salted twice", file=sys.stderr)
    sys.exit(2)
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if f"late:{home.name}" not in sys.argv:
    facts = {"pid": os.getpid(), "peer": "peer of " + home.name, "addresses": ["/at/" + home.name]}
    facts |= {"argv": sys.argv, "environ": dict(os.environ)}
    beside = home / "beside"
    beside.write_text(json.dumps(facts))
    beside.rename(home / "node.json")
while True:
    signal.pause()
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "pretended.py").write_text(PRETENDED)
    yield tmp_path
    take_down(tmp_path, grace_s=0)


def program(home: Path, *how: str) -> tuple[str, ...]:
    return (sys.executable, "-S", str(home / "pretended.py"), *how)


def plan(home: Path, nodes: int = 3, ready_s: float = 20.0) -> Plan:
    return Plan(home=home, source="/models/m", name="m", blocks=6, nodes=nodes, ready_s=ready_s)


def nodes_of(home: Path) -> list[psutil.Process]:
    return marked(MARK, str(folder_of(home)))


def launch_apart(home: Path, *how: str, by: str = "start_testnet") -> subprocess.Popen[bytes]:
    """A launcher of three nodes, in a process of its own that can be killed."""
    script = (
        f"import sys, pathlib; from potluck.node.testnet.launcher import Plan, {by} as launch;"
        "plan = Plan(pathlib.Path(sys.argv[1]), '/models/m', 'm', 6, 3);"
        "net = launch(plan, program=sys.argv[2:]);"
        "hasattr(net, '__enter__') and net.__enter__()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, str(home), *program(home, *how)], stderr=subprocess.DEVNULL
    )


def until(holds: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.01)


# ---- its life


def test_a_testnet_serves_until_it_is_taken_down(home: Path) -> None:
    told: list[str] = []
    net = start_testnet(plan(home), tell=lambda seat: told.append(seat.name), program=program(home))
    assert told[0] == "n1" and sorted(told) == ["n1", "n2", "n3"]
    assert {one.pid for one in nodes_of(home)} == {seat.pid for seat in net.seats}
    again = find_testnet(home)
    assert again.seats == net.seats and {seat.state for seat in again.seats} == {"serving"}
    assert again.join == ("/at/n1", "/at/n2", "/at/n3")
    assert take_down(home) == 3
    assert nodes_of(home) == [] and not list(folder_of(home).glob("*/node.json"))
    assert take_down(home) == 0
    with pytest.raises(UserError, match="testnet up"):
        find_testnet(home)


def test_the_others_join_by_the_first_and_ours_is_no_business_of_theirs(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTLUCK_JOIN", "/elsewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    with open_testnet(plan(home), program=program(home)) as net:
        told = [
            json.loads((folder_of(home) / seat.name / "node.json").read_text())
            for seat in net.seats
        ]
    for number, facts in enumerate(told):
        words = facts["argv"]
        joined = [words[k + 1] for k, word in enumerate(words) if word == "--join"]
        assert joined == (["/at/n1"] if number else [])
        assert words[words.index("--blocks") + 1] == f"{2 * number}:{2 * number + 2}"
        assert facts["environ"]["POTLUCK_JOIN"] == ""
        assert facts["environ"]["OMP_NUM_THREADS"] == "1"


def test_a_second_one_is_refused_while_the_first_runs(home: Path) -> None:
    with open_testnet(plan(home), program=program(home)) as net:
        with pytest.raises(UserError, match="testnet down"):
            start_testnet(plan(home), program=program(home))
        assert all(seat.state == "serving" for seat in net.seats)


def test_a_killed_node_is_dead_and_nobody_joins_by_it(home: Path) -> None:
    with open_testnet(plan(home), program=program(home)) as net:
        net.send("n2", signal.SIGKILL)
        assert [seat.state for seat in find_testnet(home).seats] == ["serving", "dead", "serving"]
        assert find_testnet(home).join == ("/at/n1", "/at/n3")
        assert not (folder_of(home) / "n2" / "node.json").exists()
        with pytest.raises(UserError, match="dead already"):
            net.send("n2", signal.SIGKILL)


def test_a_dead_node_can_be_started_anew(home: Path) -> None:
    with open_testnet(plan(home), program=program(home)) as net:
        before = net.seat("n2")
        with pytest.raises(UserError, match="lives"):
            net.restart("n2")
        net.send("n2", signal.SIGKILL)
        after = find_testnet(home).restart("n2")
        assert after.state == "serving" and after.pid != before.pid
        facts = json.loads((folder_of(home) / "n2" / "node.json").read_text())
        assert [word for word in facts["argv"] if word.startswith("/at/")] == ["/at/n1", "/at/n3"]


def test_the_last_nodes_lie_and_nobody_else_does(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIE, "drip")  # ours is no business of theirs
    lies = ["", "skip", "random:0.25"]
    with open_testnet(
        replace(plan(home), liars=parse_lies(",".join(lies[1:]))), program=program(home)
    ) as net:
        net.send("n3", signal.SIGKILL)
        find_testnet(home).restart("n3")
        assert [seat.lie for seat in find_testnet(home).seats] == lies
        for name, lie in zip(("n1", "n2", "n3"), lies, strict=True):
            facts = json.loads((folder_of(home) / name / "node.json").read_text())
            assert facts["environ"][LIE] == lie


def test_more_liars_than_nodes_are_refused(home: Path) -> None:
    with pytest.raises(UserError, match="more --nodes"):
        start_testnet(
            replace(plan(home, nodes=1), liars=parse_lies("skip,drip")), program=program(home)
        )
    assert nodes_of(home) == []


def test_a_stopped_or_deaf_node_is_ended_too(home: Path) -> None:
    net = start_testnet(plan(home), program=program(home, "deaf"))
    net.send("n1", signal.SIGSTOP)
    until(lambda: net.seat("n1").state == "stopped")
    assert take_down(home, grace_s=0.1) == 3
    assert nodes_of(home) == []


def test_an_unknown_node_is_refused_with_the_names(home: Path) -> None:
    with (
        open_testnet(plan(home, nodes=2), program=program(home)) as net,
        pytest.raises(UserError, match="n1, n2"),
    ):
        net.send("n7", signal.SIGTERM)


# ---- when it fails


@pytest.mark.parametrize(
    "how, words, bad_input",
    [("fail:n2", "the oven is cold", False), ("bad:n1", "the soup is salted twice", True)],
)
def test_a_node_that_does_not_start_ends_all_and_is_quoted(
    home: Path, how: str, words: str, bad_input: bool
) -> None:
    with pytest.raises(PotluckError, match=words) as caught:
        start_testnet(plan(home), program=program(home, how))
    assert isinstance(caught.value, UserError) == bad_input
    assert nodes_of(home) == [] and not (folder_of(home) / STATE).exists()
    assert words in last_lines(folder_of(home) / how.partition(":")[2] / LOG, 1)[0]


def test_a_node_that_is_never_ready_is_waited_for_only_so_long(home: Path) -> None:
    with pytest.raises(PotluckError, match="n2 was not ready in time"):
        start_testnet(plan(home, ready_s=0.5), program=program(home, "late:n2"))
    assert nodes_of(home) == []


def test_ctrl_c_ends_what_was_started(home: Path) -> None:
    launcher = launch_apart(home, "late:n3")
    until(lambda: len(nodes_of(home)) == 3)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(20) != 0
    assert nodes_of(home) == [] and not (folder_of(home) / STATE).exists()


def test_after_kill_9_of_the_launcher_all_are_found(home: Path) -> None:
    launcher = launch_apart(home, "late:n3")
    until(lambda: len(nodes_of(home)) == 3)
    launcher.kill()
    launcher.wait()
    assert len(nodes_of(home)) == 3
    assert take_down(home) == 3
    assert nodes_of(home) == []


def test_what_is_meant_to_last_as_long_as_its_launcher_ends_with_it_after_kill_9(
    home: Path,
) -> None:
    launcher = launch_apart(home, "late:n3", by="open_testnet")
    until(lambda: len(nodes_of(home)) == 3)
    launcher.kill()
    launcher.wait()
    until(lambda: nodes_of(home) == [])


def test_what_a_dead_launcher_left_is_no_hindrance(home: Path) -> None:
    launcher = launch_apart(home, "late:n3")
    until(lambda: len(nodes_of(home)) == 3)
    launcher.kill()
    launcher.wait()
    with open_testnet(plan(home), program=program(home)) as net:
        assert {one.pid for one in nodes_of(home)} == {seat.pid for seat in net.seats}


def test_a_launcher_at_work_is_ended_first(home: Path) -> None:
    launcher = launch_apart(home, "late:n3")
    until(lambda: len(nodes_of(home)) == 3)
    with pytest.raises(UserError, match="testnet down"):
        start_testnet(plan(home), program=program(home))
    take_down(home)
    launcher.wait(20)
    assert nodes_of(home) == []


@pytest.mark.parametrize("left", ["", "{", '{"seats": 7}', None])
def test_nodes_are_found_by_their_mark_alone(home: Path, left: str | None) -> None:
    """The file that tells of them is lost, or was cut short by a full disk."""
    net = start_testnet(plan(home), program=program(home))
    (folder_of(home) / STATE).unlink()
    if left is not None:
        (folder_of(home) / STATE).write_text(left)
    assert take_down(home) == len(net.seats)
    assert nodes_of(home) == []


def test_a_stranger_with_an_old_pid_of_ours_is_left_alone(home: Path) -> None:
    net = start_testnet(plan(home), program=program(home))
    stranger = subprocess.Popen(program(home, "--home", str(home), "late:" + home.name))
    try:
        told = json.loads((folder_of(home) / STATE).read_text())
        told["seats"][1]["pid"] = stranger.pid  # as if n2 had ended, and its pid come round
        told["seats"][1]["created_s"] -= 3600
        (folder_of(home) / STATE).write_text(json.dumps(told))
        assert [seat.state for seat in find_testnet(home).seats] == ["serving", "dead", "serving"]
        with pytest.raises(UserError, match="dead already"):
            find_testnet(home).send("n2", signal.SIGKILL)
        assert take_down(home) == len(net.seats)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_another_homes_testnet_is_left_alone(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with (
        open_testnet(plan(other, nodes=1), program=program(home)) as net,
        open_testnet(plan(home, nodes=1), program=program(home)),
    ):
        assert take_down(home) == 1
        assert net.seats[0].state == "serving"


def test_a_home_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--home"):
        start_testnet(plan(tmp_path / "file"))


# ---- its parts


def test_a_nodes_home_that_cannot_be_made_is_told_in_a_line_and_ends_all(home: Path) -> None:
    """Two of three nodes run when the third finds a file in its place."""
    folder_of(home).mkdir(parents=True)
    (folder_of(home) / "n3").write_text("in the way")
    with pytest.raises(UserError, match=r"n3: File exists; n3 cannot be started"):
        start_testnet(plan(home), program=program(home))
    assert nodes_of(home) == [] and not (folder_of(home) / STATE).exists()


def test_what_is_written_down_is_read_again(tmp_path: Path) -> None:
    roster = plan(tmp_path).roster(("potluck", "node"), process_id())
    roster.folder.mkdir()
    roster.create()
    assert Roster.read(roster.folder) == roster
    with pytest.raises(FileExistsError):
        roster.create()


def test_threads_that_write_down_what_they_did_are_not_in_each_others_way(tmp_path: Path) -> None:
    """Chaos starts nodes in threads, while it looks at others."""
    roster = plan(tmp_path, nodes=8).roster(("potluck", "node"), process_id())
    roster.folder.mkdir()
    roster.create()

    def note(name: str) -> None:
        for number in range(15):
            roster.note(replace(roster.seats[name], peer=f"{name} the {number}th"))
            roster.note(replace(roster.seats[name], name=f"{name} guest"))
            roster.forget(f"{name} guest")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(note, tuple(roster.seats)))
    assert len(roster.seats) == 8 and Roster.read(roster.folder) == roster
    assert {seat.peer.split()[-1] for seat in roster.seats.values()} == {"14th"}


def test_the_commands_tell_of_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--home", str(home)]
    with open_testnet(plan(home), program=program(home)):
        assert main(["testnet", "status", *where]) == 0
        assert capsys.readouterr().out.count("serving") == 3
        assert main(["testnet", "kill", "n3", *where]) == 0
        assert main(["testnet", "status", "--json", *where]) == 1
        told = json.loads(capsys.readouterr().out.partition("\n")[2])
        assert [node["state"] for node in told["nodes"]] == ["serving", "serving", "dead"]
        assert main(["testnet", "kill", "n1", "--signal", "WAVE", *where]) == 2
        capsys.readouterr()
        assert main(["testnet", "restart", "n3", "--json", *where]) == 0
        back = json.loads(capsys.readouterr().out)
        assert (back["name"], back["state"], back["blocks"]) == ("n3", "serving", [4, 6])
        assert main(["testnet", "kill", "n1", "-s", "STOP", *where]) == 0
    capsys.readouterr()
    assert main(["testnet", "down", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out) == {"ended": 0}
    assert main(["testnet", "down", *where]) == 0
    assert "no testnet runs here" in capsys.readouterr().out
