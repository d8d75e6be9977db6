"""What is installed is what is here: a folder that is not named would be missing from the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import potluck

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NOT_SHIPPED = {"tests", "integration", "build", "dist"}


def test_every_package_is_named_and_every_name_is_a_package() -> None:
    found = {"potluck"}
    for marker in ROOT.rglob("__init__.py"):
        parts = marker.parent.relative_to(ROOT).parts
        if parts and parts[0] not in NOT_SHIPPED and not parts[0].startswith("."):
            found.add(".".join(("potluck", *parts)))
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_every_python_file_stands_in_a_package() -> None:
    for file in ROOT.rglob("*.py"):
        parts = file.relative_to(ROOT).parts
        if parts[0] in NOT_SHIPPED or parts[0].startswith("."):
            continue
        assert (file.parent / "__init__.py").exists(), f"{file} would not be installed"


def test_only_what_belongs_there_stands_at_the_root() -> None:
    """Any other module at the root would be shipped as one of ours; setup.py leaves itself out."""
    assert {file.name for file in ROOT.glob("*.py")} == {"__init__.py", "errors.py", "setup.py"}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."}
    allowed = {"node", "dht", "swarm", "crypto", "cli", "tests", "integration"}
    assert folders - {"build", "dist", "potluck.egg-info", "__pycache__"} == allowed


def test_the_demo_model_is_shipped_and_small() -> None:
    folder = ROOT / "node" / "compute" / "demo"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["potluck.node.compute.demo"]
    data = [file for file in folder.iterdir() if file.is_file() and file.suffix != ".py"]
    assert all(any(file.match(pattern) for pattern in patterns) for file in data)
    assert sum(file.stat().st_size for file in data) <= 8 * 2**20


def test_the_version_is_said_once() -> None:
    assert PROJECT["project"]["version"] == potluck.__version__


@pytest.mark.parametrize("compiler", [None, f"{sys.executable} -c raise(SystemExit(1))"])
def test_the_package_is_built_without_a_compiler_and_with_one_that_fails(
    tmp_path: Path, compiler: str | None
) -> None:
    """pip runs the same command of setup.py; what it says then shows in pip's own output."""
    pytest.importorskip("setuptools", minversion="77")  # as pyproject.toml asks of pip
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    native = Path("node/compute/native")
    ours = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / native, tmp_path / native, ignore=ours)
    empty = tmp_path / "bin"
    empty.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "CC"}
    environment |= {"PATH": str(empty)} | ({} if compiler is None else {"CC": compiler})
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", "made", "--build-temp", "temp"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "potluck: no compiled kernels, torch's are used" in done.stderr
    assert not list((tmp_path / "made").rglob("*.so"))
