"""The README, run as it stands: its commands for whoever has a swarm, and its snippets of Python.

That every other command in it is one that there is, and every file and name, tests/test_readme.py
sees to; nodes, testnets, jobs, runs and services are started by the tests that bear their names.
"""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from readme import blocks, commands, shell_lines

import potluck
from potluck.cli.main import main
from potluck.node.library import DEMO_FOLDER
from potluck.node.testnet.launcher import LocalSwarm, Plan, open_testnet

from .ground import POTLUCK

# commands that need a swarm and nothing else; what stands for something (an address, a folder, a
# model of the hub) is left to other tests
HERE = ("generate", "status", "peers", "models", "credit", "verify")
STANDS_FOR_SOMETHING = ("/ip4/", "org/name", "./my-lora", "PEER_ID")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    home = tmp_path_factory.mktemp("home")
    plan = Plan(home, str(DEMO_FOLDER), "demo", 8, nodes=4, replicas=2, offline=True)
    with open_testnet(plan) as made:
        yield made


@pytest.fixture(autouse=True)
def at_home(net: LocalSwarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTLUCK_HOME", str(net.roster.folder.parent))
    monkeypatch.delenv("POTLUCK_JOIN", raising=False)
    monkeypatch.chdir(tmp_path)


def run_here(words: list[str]) -> bool:
    return words[1] in HERE and not any(
        one in word for word in words for one in STANDS_FOR_SOMETHING
    )


def test_its_commands_run(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [list(commands(line)) for line in shell_lines()]
    run = [line for line in lines if all(one[0] == "potluck" and run_here(one) for one in line)]
    assert {one[1] for line in run for one in line} >= {"generate", "status", "verify", "credit"}
    for line in run:
        for words in line:
            assert main(words[1:]) == 0, (words, capsys.readouterr())
            assert capsys.readouterr().out.strip(), words


def snippet(naming: str) -> str:
    [found] = [code for code in blocks("python") if naming in code]
    return found


def joined(naming: str, net: LocalSwarm) -> str:
    code = snippet(naming)
    assert '["/ip4/..."]' in code
    return code.replace('["/ip4/..."]', repr(list(net.join)))


def test_the_blocking_client_answers(net: LocalSwarm, capsys: pytest.CaptureFixture[str]) -> None:
    exec(joined("swarm.generate(", net), {})
    assert capsys.readouterr().out.strip()


def test_the_trio_client_answers(net: LocalSwarm, capsys: pytest.CaptureFixture[str]) -> None:
    code = "async def run():\n" + textwrap.indent(joined("open_swarm", net), "    ")
    scope: dict[str, Any] = {"potluck": potluck}
    exec(code, scope)
    trio.run(scope["run"])
    assert capsys.readouterr().out.count("(Hop(") == 64  # the route of each token


def test_a_step_of_training_changes_what_is_trained(net: LocalSwarm) -> None:
    scope: dict[str, Any] = {
        "potluck": potluck, "torch": torch, "ids": torch.arange(1, 33).reshape(2, 16),
    }  # fmt: skip
    exec(joined("RemoteModel", net), scope)
    trained = [one for one in scope["model"].parameters() if one.grad is not None]
    assert trained and any(one.grad.abs().max() > 0 for one in trained)


def test_an_openai_client_answers(capsys: pytest.CaptureFixture[str]) -> None:
    command = [*POTLUCK, "api", "-m", "demo", "--port", "0", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as api:
        try:
            assert api.stdout is not None
            url = str(json.loads(api.stdout.readline())["url"])
            code = snippet("openai")
            assert "http://127.0.0.1:11545/v1" in code and url.endswith("/v1")
            exec(code.replace("http://127.0.0.1:11545/v1", url), {})
        finally:
            api.terminate()
        assert api.wait(20) == 0
    assert capsys.readouterr().out
