"""What the shell completes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

POTLUCK = [sys.executable, "-P", "-m", "potluck.cli"]


def asked(shell: str, words: str, **more: str) -> list[str]:
    environment = {
        "_POTLUCK_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args", "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1), **more,
    }  # fmt: skip
    done = subprocess.run(
        POTLUCK, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )
    return done.stdout.split("\n")


@pytest.mark.parametrize(
    ("words", "found", "not_found"),
    [
        ("potluck sta", ["status"], ["node"]),
        ("potluck testnet ", ["up", "down", "chaos"], ["status?"]),
        ("potluck node --max-", ["--max-memory", "--max-up", "--max-disk"], ["--hours"]),
        ("potluck node --while-active ", ["auto", "yes", "no"], []),
    ],
)
def test_commands_options_and_choices_are_completed(
    words: str, found: list[str], not_found: list[str]
) -> None:
    told = asked("bash", words)
    assert set(found) <= set(told) and set(told).isdisjoint(not_found)


def test_bash_takes_what_is_installed_for_it(tmp_path: Path) -> None:
    """The script that `--show-completion` shows, in a real shell."""
    if (bash := shutil.which("bash")) is None:
        pytest.skip("no bash here")
    environment = {**os.environ, "_POTLUCK_COMPLETE": "source_bash"}
    script = subprocess.run(
        POTLUCK, env=environment, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    program = tmp_path / "potluck"
    program.write_text(f'#!/bin/sh\nexec {" ".join(POTLUCK)} "$@"\n')
    program.chmod(0o755)
    lines = [
        script, "COMP_WORDS=(potluck doc)", "COMP_CWORD=1", "_potluck_completion potluck",
        'echo "${COMPREPLY[@]}"',
    ]  # fmt: skip
    done = subprocess.run(
        [bash, "--norc", "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stdout.split() == ["doctor"], done.stderr
