"""What the README tells people to do, taken out of it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
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
    redirected = False
    for inner in (substituted := re.compile(r"\$\(([^)]*)\)")).findall(line):
        yield from commands(inner)
    lexed = shlex.shlex(substituted.sub("X", line), posix=True, punctuation_chars=";&|<>")
    lexed.whitespace_split = True
    for word in (*lexed, "&&"):
        if word in ("&&", "|", ";", ">", ">>", "<"):
            if words and not redirected:
                yield words
            words, redirected = [], word[0] in "<>"  # then a file's name follows
        else:
            words.append(word)


def all_commands() -> list[list[str]]:
    """Those of code blocks, and those that stand in the text."""
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    quoted = [one for one in re.findall(r"`([^`\n]+)`", prose) if one.split()[0] in PROGRAMS]
    return [words for line in (*shell_lines(), *quoted) for words in commands(line)]


def parsed(words: list[str]) -> dict[str, Any]:
    """What `potluck` with these words is asked to do, without doing it: the arguments of the
    command's function. Raises what a wrong command line does."""
    command, asked = _stubbed()
    asked.clear()
    command.main(words, prog_name="potluck", standalone_mode=False)
    [one] = asked
    return one


def examples() -> Iterator[tuple[str, list[str]]]:
    """Those that the commands' help gives: of which command, and the words behind `potluck`."""

    def walk(command: Any, name: str) -> Iterator[tuple[str, list[str]]]:
        told = f"{command.help or ''}\n{command.epilog or ''}"
        for line in re.findall(r"^ *(?:Example: )?(potluck .*)$", told, re.MULTILINE):
            for words in commands(line):
                if words[0] == "potluck":
                    yield name, words[1:]
        for inner, one in getattr(command, "commands", {}).items():
            yield from walk(one, f"{name} {inner}")

    return walk(get_command(app), "potluck")


@cache
def _stubbed() -> tuple[Any, list[dict[str, Any]]]:
    """The program, of which every command only notes how it was called; and these notes."""
    asked: list[dict[str, Any]] = []

    def note(**arguments: Any) -> None:
        asked.append(arguments)

    def stub(command: Any) -> Any:
        inner = getattr(command, "commands", None)
        for one in (inner or {}).values():
            stub(one)
        if not inner:
            command.callback = note
        return command

    return stub(get_command(app)), asked
