"""A node on somebody's machine: a game is started, and it gets out of the way."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from potluck.node.library import DEMO_FOLDER
from potluck.node.rest import running

from .ground import open_node, potluck
from .waiting import until

# nothing else of what the test's machine does is to have it rest
ELSE_EASY = ("--busy-percent", "0", "--on-battery", "--while-active", "yes", "--share-gpu")


@pytest.mark.slow
def test_a_node_rests_while_a_named_program_runs_and_says_so(tmp_path: Path) -> None:
    game = tmp_path / "some-game"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", game)
    home = tmp_path / "node"
    words = ("--name", "demo", "--guest", "--rest-for", game.name, *ELSE_EASY)
    with open_node(home, DEMO_FOLDER, *words) as node:
        assert running(home)["state"] == "serving" and running(home)["rest"] is None
        with subprocess.Popen([str(game), "1000"]) as playing:
            until(lambda: running(home)["state"] == "resting")
            assert running(home)["rest"]["why"] == f"{game.name} runs"
            assert "gave the memory back" in node.log
            told = potluck("resume", "--home", str(home))  # which a rule does not heed
            assert told["state"] == "resting" and told["rest"]["rules"] == ["program"]
            playing.kill()
