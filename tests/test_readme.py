"""The README: each command in it is one that there is, each snippet reads and names what is there.

What can be run without a swarm of one's own is run by integration/test_readme.py.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from readme import ROOT, TEXT, all_commands, blocks, examples, parsed
from test_cli import commands as commands_there

import potluck

ASKED = [words for words in all_commands() if words[0] == "potluck"]
THERE = commands_there()
TARGETS = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path))


def test_there_is_much_to_look_at() -> None:
    """So that a change of the README's form does not leave nothing to test."""
    assert len(ASKED) > 30 and len(blocks("python")) >= 4 and len(blocks("toml")) >= 1


@pytest.mark.parametrize("words", ASKED, ids=" ".join)
def test_every_command_is_one_that_there_is(words: list[str]) -> None:
    if words[1:] not in THERE:  # else it is named alone, in the text
        parsed(words[1:])


@pytest.mark.parametrize("words", [one for one in all_commands() if one[0] != "potluck"],
                         ids=" ".join)  # fmt: skip
def test_whatever_else_is_to_be_run_is_there(words: list[str]) -> None:
    if words[0] == "make":
        assert set(words[1:]) <= set(TARGETS)
    elif words[0] == "python":
        assert words[1] == "-m"
        path = ROOT.joinpath(*words[2].split("."))
        assert path.with_suffix(".py").exists() or importlib.util.find_spec(words[2])
    else:
        assert words[:2] == ["pip", "install"]
        if words[2] == "-c":
            assert (ROOT / words[3]).exists() and words[4:] == ["."]
            return
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        name, _, extra = words[2].rstrip("]").partition("[")
        assert name == extras["name"] and (not extra or extra in extras["optional-dependencies"])


@pytest.mark.parametrize("code", blocks("python"))
def test_every_snippet_reads_and_names_what_there_is(code: str) -> None:
    tree = compile(code, "README.md", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id != "potluck" or hasattr(potluck, node.attr), node.attr


def test_every_file_that_is_linked_to_is_here() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert "://" in target or (ROOT / target).exists(), target


def test_the_run_file_is_one(tmp_path: Path) -> None:
    from potluck.node.runs.finetune import load_plan

    (code, *_) = blocks("toml")
    (tmp_path / "tales.toml").write_text(code)
    assert load_plan(tmp_path / "tales.toml").name == "tales"


@pytest.mark.parametrize(("name", "words"), list(examples()), ids=str)
def test_every_example_of_a_command_s_help_is_one(name: str, words: list[str]) -> None:
    if words == ["node"]:  # behind init, which has told it all in the file
        assert name == "potluck init"
        return
    parsed(words)
