"""What a newcomer types, with real processes: start, ask, look, break, end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from potluck.cli.main import main
from potluck.node.process import marked
from potluck.node.testnet.launcher import MARK, READY_S, find_testnet, folder_of, take_down

from .ground import POTLUCK
from .waiting import until

ASK = ["generate", "The function returns", "-m", "demo", "-n", "16"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home under which four nodes serve the demo model, each block twice."""
    place = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "POTLUCK_HOME": str(place)}
    up = [*POTLUCK, "testnet", "up", "--nodes", "4", "--replicas", "2", "--json"]
    try:
        done = subprocess.run(up, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert [node["blocks"] for node in told["nodes"]] == [[0, 4], [4, 8], [0, 4], [4, 8]]
        yield place
    finally:
        take_down(place, grace_s=0)


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were the user's own; and whoever died in the test before lives again."""
    monkeypatch.setenv("POTLUCK_HOME", str(home))
    monkeypatch.delenv("POTLUCK_JOIN", raising=False)
    net = find_testnet(home)
    waiting = {seat.name for seat in net.seats if seat.state == "dead"}
    for name in waiting:  # all at once: most of a start is spent on imports, by one core each
        net.launch(name, net.join)

    def back() -> bool:
        waiting.difference_update({name for name in waiting if net.ready(name) is not None})
        return not waiting

    until(back, READY_S)


@pytest.fixture
def facts(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command that is to succeed, and read the JSON that it prints."""

    def run(*words: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert main([*words, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return run


def free_tokens(home: Path, name: str) -> int:
    """What a node itself counts, which it says when asked by SIGUSR1."""
    log = folder_of(home) / name / "log"
    before = log.read_text().count(" counts ")
    find_testnet(home).send(name, signal.SIGUSR1)
    until(lambda: log.read_text().count(" counts ") > before)
    line = next(line for line in reversed(log.read_text().splitlines()) if " counts " in line)
    return int(line.partition("free_tokens=")[2].split()[0])


def test_it_answers_and_the_same_without_whoever_served(
    home: Path, facts: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    first = facts(*ASK)
    assert len(first["tokens"]) == len(first["seconds"]) == 16 and first["finish"] == "length"
    assert [hop["blocks"] for hop in first["route"]] == [[0, 4], [4, 8]]
    used = {hop["peer"] for hop in first["route"]}
    for seat in find_testnet(home).seats:
        if seat.peer in used:
            assert main(["testnet", "kill", seat.name]) == 0
    again = facts(*ASK)
    assert again["text"] == first["text"] and again["tokens"] == first["tokens"]
    assert used.isdisjoint(hop["peer"] for hop in again["route"])
    capsys.readouterr()
    assert main(ASK) == 0
    said = capsys.readouterr()
    assert said.out == first["text"] + ("" if first["text"].endswith("\n") else "\n")
    assert "16 tokens" in said.err and "2 hops" in said.err


def test_a_seed_gives_the_same_text(facts: Callable[..., Any]) -> None:
    drawn = [*ASK, "--temperature", "1", "--seed"]
    texts = [facts(*drawn, seed)["text"] for seed in ("7", "7", "8")]
    assert texts[0] == texts[1] != texts[2]


def test_status_shows_who_serves_what_and_what_nobody_does(
    home: Path, facts: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (model,) = facts("status")["models"]
    assert model["name"] == "demo" and model["replicas"] == [2] * 8 and model["missing"] == []
    assert {span["link"] for span in model["spans"]} == {"direct"}
    assert all(0 < span["rtt_s"] < 1 for span in model["spans"])
    (first, *others) = facts("peers")
    assert len(others) == 3 and first["link"] == "direct" and first["rtt_s"] > 0
    assert first["serves"][0]["name"] == "demo" and first["addresses"]
    capsys.readouterr()
    assert main(["top", "--count", "2", "--every", "0.1"]) == 0
    looks = capsys.readouterr().out
    assert looks.count("4 peers, 1 model") == 2 and looks.count(first["peer"]) == 2
    assert "\x1b" not in looks  # it is no terminal
    assert main(["peers"]) == 0 and first["peer"] in capsys.readouterr().out
    for name in ("n2", "n4"):
        find_testnet(home).send(name, signal.SIGKILL)
    (model,) = facts("models")
    assert model["missing"] == [[4, 8]] and model["replicas_min"] == 0
    capsys.readouterr()
    assert main(["status"]) == 0
    said = capsys.readouterr().out
    assert "2222...." in said and "nobody serves 4:8" in said


def test_missing_blocks_are_named_or_waited_for(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = find_testnet(home)
    for name in ("n2", "n4"):
        net.send(name, signal.SIGKILL)
    capsys.readouterr()
    assert main(ASK) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("potluck: no peer serves blocks 4:8 of demo; start a node")
    waiting = subprocess.Popen(
        [*POTLUCK, *ASK, "--wait", "60", "--json"], stdout=subprocess.PIPE, text=True
    )
    net.restart("n4")
    out, _ = waiting.communicate(timeout=90)
    assert waiting.returncode == 0 and len(json.loads(out)["tokens"]) == 16


@pytest.mark.parametrize(
    "words, told",
    [
        (["generate", "", "-m", "demo"], "empty"),
        (["generate", "word " * 3000, "-m", "demo"], "context"),
        (["generate", "x", "-m", "demo", "-n", "5000"], "context"),
        (["generate", "x", "-m", "demo", "--top-p", "2"], "top_p"),
        (["generate", "x", "-m", "nonesuch"], "nonesuch"),
        (["testnet", "up"], "runs already"),
    ],
)
def test_bad_input_is_one_line_and_2(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert told in said and said.startswith("potluck: ") and said.count("\n") == 1


def test_ctrl_c_prints_what_there_was_and_frees_every_cache(home: Path) -> None:
    before = {name: free_tokens(home, name) for name in ("n1", "n2", "n3", "n4")}
    asking = subprocess.Popen(
        [*POTLUCK, *ASK[:-1], "900", "--stop", "never said"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert asking.stdout is not None
    assert asking.stdout.read(20)  # it streams
    asking.send_signal(signal.SIGINT)
    out, err = asking.communicate(timeout=30)
    assert asking.returncode == 130
    assert out.endswith("\n") and "interrupted" in err and "Traceback" not in err
    until(lambda: {name: free_tokens(home, name) for name in before} == before)


def test_a_reader_that_leaves_ends_it(home: Path) -> None:
    done = subprocess.run(
        f"{' '.join(POTLUCK)} generate 'The function returns' -m demo -n 300 | head -c 5",
        shell=True,
        capture_output=True,
        timeout=60,
    )
    assert len(done.stdout) == 5 and b"Traceback" not in done.stderr


def test_a_conversation(home: Path) -> None:
    said = subprocess.run(
        [*POTLUCK, "chat", "-m", "demo", "-n", "8", "--temperature", "0"],
        input="What does os.walk do?\n/reset\nWhat does os.walk do?\nAnd len?\n/quit\nlost\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 0 and "Traceback" not in said.stderr
    assert said.stderr.count("hops]") == 3  # a note after each answer, and none after /quit


def test_the_demo_loses_a_server_and_no_word(home: Path) -> None:
    done = subprocess.run([*POTLUCK, "demo", "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["same"] and told["disturbed"]["text"] == told["undisturbed"]["text"]
    assert told["killed"]["blocks"][0] > 0
    assert told["killed"]["peer"] not in [hop["peer"] for hop in told["disturbed"]["route"]]
    assert marked(MARK, str(folder_of(home / "demo"))) == []
    assert find_testnet(home).seats  # the user's own testnet was left alone


def test_down_leaves_no_process_and_no_port(home: Path) -> None:
    """Last: it ends what the tests above stand on."""
    net = find_testnet(home)
    addresses = [address for seat in net.seats for address in seat.addresses]
    assert main(["testnet", "down"]) == 0
    assert marked(MARK, str(folder_of(home))) == []
    for address in addresses:
        _, _, host, _, port, *_ = address.split("/")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=5)
    assert main(["testnet", "down"]) == 0
    assert main(["testnet", "status"]) == 2
    assert main(["testnet", "logs", "n1"]) == 0
