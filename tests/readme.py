"""What the README tells people to do, taken out of it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

import potluck
from potluck.cli.commands import app

ROOT = Path(potluck.__file__).parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = ("potluck", "make", "python", "pip")


def blocks(language: str) -> list[str]:
    """The code blocks of a language, in their order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return [code for name, code in found if name == language]


def shell_lines() -> list[str]:
    return [line for code in blocks("sh") for line in code.splitlines() if line.strip()]


def commands(line: str) -> Iterator[list[str]]:
    """The commands of a line of the shell, each as its words."""
    words: list[str] = []
    for word in (*shlex.split(line, comments=True), "&&"):
        if word in ("&&", "|", ";"):
            if words:
                yield words
            words = []
        else:
            words.append(word)


def all_commands() -> list[list[str]]:
    """Those of code blocks, and those that stand in the text."""
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    quoted = [one for one in re.findall(r"`([^`\n]+)`", prose) if one.split()[0] in PROGRAMS]
    return [words for line in (*shell_lines(), *quoted) for words in commands(line)]


def parsed(words: list[str]) -> list[dict[str, Any]]:
    """What `potluck` with these words is asked to do, without doing it: the arguments of the
    command's function. Raises what a wrong command line does."""
    asked: list[dict[str, Any]] = []

    def note(**arguments: Any) -> None:
        asked.append(arguments)

    def stub(command: Any) -> Any:
        inner = getattr(command, "commands", None)
        if inner:
            for one in inner.values():
                stub(one)
        else:
            command.callback = note
        return command

    stub(get_command(app)).main(words, prog_name="potluck", standalone_mode=False)
    return asked
